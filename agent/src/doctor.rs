//! `skiff-agent doctor`: can this machine run Pods, and what to do where it cannot.
//!
//! Always holds: looks only; nothing is changed. Every finding that is not good comes with a fix.

use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use skiff_sys::cgroup::{Cgroups, Version};

use crate::config::Config;
use crate::identity::Identity;
use crate::node;

/// How a check came out.
enum Outcome {
    Good(String),
    /// Pods run, with something missing.
    Warn(String, String),
    /// Pods do not run.
    Bad(String, String),
}

use Outcome::{Bad, Good, Warn};

/// Runs every check and prints it; fails where Pods cannot run.
pub(crate) fn run(config: &Config) -> ExitCode {
    println!(
        "skiff-agent {} on {}",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::ARCH
    );
    let checks: [(&str, Outcome); 11] = [
        ("kernel", kernel()),
        ("privileges", privileges()),
        ("namespaces", namespaces()),
        ("cgroups", cgroups(config)),
        ("overlayfs", overlay(config)),
        ("seccomp", seccomp()),
        ("network", network()),
        ("clock", clock()),
        ("memory", memory()),
        ("disk", disk(config)),
        ("broker", broker(config)),
    ];
    let mut bad = 0;
    for (name, outcome) in &checks {
        match outcome {
            Good(text) => println!("  ok    {name:<11} {text}"),
            Warn(text, fix) => println!("  warn  {name:<11} {text}\n                    fix: {fix}"),
            Bad(text, fix) => {
                bad += 1;
                println!("  FAIL  {name:<11} {text}\n                    fix: {fix}");
            }
        }
    }
    if bad == 0 {
        println!("this machine can run Pods");
        ExitCode::SUCCESS
    } else {
        println!("this machine cannot run Pods yet: {bad} checks failed");
        ExitCode::FAILURE
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

fn kernel() -> Outcome {
    let release = read("/proc/sys/kernel/osrelease");
    let mut parts = release.split(['.', '-']).map_while(|it| it.parse::<u32>().ok());
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if version >= (5, 6) {
        Good(format!("Linux {release}"))
    } else {
        Bad(
            format!("Linux {release}"),
            "use Linux 5.6 or later: pidfd and openat2 are needed".to_owned(),
        )
    }
}

fn privileges() -> Outcome {
    let needed = [
        "CAP_SYS_ADMIN",
        "CAP_NET_ADMIN",
        "CAP_SYS_CHROOT",
        "CAP_SETUID",
        "CAP_SETGID",
        "CAP_KILL",
        "CAP_MKNOD",
    ];
    let have = skiff_sys::cap::bounding()
        .map(skiff_sys::cap::names)
        .unwrap_or_default();
    let lacking: Vec<&str> = needed.iter().filter(|it| !have.contains(it)).copied().collect();
    let root = read("/proc/self/status")
        .lines()
        .any(|line| line.starts_with("Uid:\t0\t"));
    if !root {
        Bad("not root".to_owned(), "run the agent as root".to_owned())
    } else if !lacking.is_empty() {
        Bad(
            format!("lacks {}", lacking.join(", ")),
            "grant these capabilities to the agent's unit".to_owned(),
        )
    } else if !have.contains(&"CAP_SYS_RESOURCE") {
        Warn(
            "root without CAP_SYS_RESOURCE: out-of-memory scores cannot be lowered".to_owned(),
            "grant CAP_SYS_RESOURCE, so that the kernel kills Pods before the agent".to_owned(),
        )
    } else {
        Good("root with all capabilities needed".to_owned())
    }
}

fn namespaces() -> Outcome {
    let missing: Vec<&str> = ["mnt", "net", "ipc", "uts", "pid", "cgroup"]
        .into_iter()
        .filter(|it| !Path::new("/proc/self/ns").join(it).exists())
        .collect();
    if missing.is_empty() {
        Good("mnt net ipc uts pid cgroup".to_owned())
    } else {
        Bad(
            format!("missing: {}", missing.join(" ")),
            "use a kernel with CONFIG_NAMESPACES and these namespaces".to_owned(),
        )
    }
}

fn cgroups(config: &Config) -> Outcome {
    let cgroups = match Cgroups::detect(&config.cgroup_root) {
        Ok(cgroups) => cgroups,
        Err(error) => return Bad(error.to_string(), "mount cgroup2 on /sys/fs/cgroup".to_owned()),
    };
    let version = match cgroups.version() {
        Version::V2 => "v2",
        Version::V1 => "v1",
        Version::Hybrid => "v1 (hybrid)",
    };
    let controllers: Vec<&str> = cgroups.controllers().iter().map(String::as_str).collect();
    let text = format!("{version}: {}", controllers.join(" "));
    let lacking: Vec<String> = node::lacking(&cgroups)
        .into_iter()
        .map(|(_, message)| message)
        .collect();
    if lacking.is_empty() {
        Good(text)
    } else {
        Warn(text, lacking.join("; "))
    }
}

fn overlay(config: &Config) -> Outcome {
    let known = read("/proc/filesystems")
        .lines()
        .any(|line| line.split_whitespace().last() == Some("overlay"));
    let dir = nearest(&config.state_dir);
    if !known {
        Bad(
            "the kernel does not list overlay".to_owned(),
            "modprobe overlay, or use a kernel with CONFIG_OVERLAY_FS".to_owned(),
        )
    } else {
        Good(format!(
            "in the kernel; containers' files lie in {}",
            dir.display()
        ))
    }
}

fn seccomp() -> Outcome {
    if read("/proc/self/status")
        .lines()
        .any(|line| line.starts_with("Seccomp:"))
    {
        Good("filters are available".to_owned())
    } else {
        Bad(
            "no seccomp".to_owned(),
            "use a kernel with CONFIG_SECCOMP_FILTER; containers never run unfiltered".to_owned(),
        )
    }
}

fn network() -> Outcome {
    let modules = read("/proc/modules");
    let built_in = std::fs::read_to_string(format!(
        "/lib/modules/{}/modules.builtin",
        read("/proc/sys/kernel/osrelease")
    ))
    .unwrap_or_default();
    let has = |name: &str| {
        Path::new("/sys/module").join(name).exists()
            || modules.lines().any(|line| line.starts_with(name))
            || built_in.contains(&format!("/{name}.ko"))
    };
    let missing: Vec<&str> = ["bridge", "veth"].into_iter().filter(|it| !has(it)).collect();
    if missing.is_empty() {
        Good("bridge and veth".to_owned())
    } else {
        Warn(
            format!("not loaded: {}", missing.join(", ")),
            format!(
                "modprobe {}, unless the kernel has them built in",
                missing.join(" ")
            ),
        )
    }
}

fn clock() -> Outcome {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |it| it.as_secs());
    if i64::try_from(now).unwrap_or(0) < crate::BUILT {
        Warn(
            "the clock is behind this program's build".to_owned(),
            "set the clock, or run an NTP client; until then certificates are checked against the last known time".to_owned(),
        )
    } else {
        Good("later than this program's build".to_owned())
    }
}

fn memory() -> Outcome {
    let total = node::meminfo("MemTotal:").unwrap_or(0) >> 20;
    let available = node::meminfo("MemAvailable:").unwrap_or(0) >> 20;
    if available < 32 {
        Warn(
            format!("{available} MiB of {total} MiB available"),
            "free some memory: a start needs about 10 MiB".to_owned(),
        )
    } else {
        Good(format!("{available} MiB of {total} MiB available"))
    }
}

fn disk(config: &Config) -> Outcome {
    let dir = nearest(&config.state_dir);
    match skiff_sys::fs::space(&dir) {
        Err(error) => Bad(
            error.to_string(),
            "make the state directory's file system available".to_owned(),
        ),
        Ok(space) if space.available < 64 << 20 => Warn(
            format!("{} MiB free in {}", space.available >> 20, dir.display()),
            "free some space: images and the journal need it".to_owned(),
        ),
        Ok(space) => Good(format!("{} MiB free in {}", space.available >> 20, dir.display())),
    }
}

fn broker(config: &Config) -> Outcome {
    let identity = match Identity::load(&config.state_dir) {
        Ok(identity) => identity,
        Err(error) => {
            return Warn(
                format!("{error:#}"),
                "join a fleet; Pods of the journal run without one".to_owned(),
            );
        }
    };
    let url = config
        .broker_url
        .as_deref()
        .unwrap_or(&identity.joined.broker_url);
    let Ok(url) = skiff_transport::BrokerUrl::parse(url, false) else {
        return Bad(
            format!("{url:?} is no broker's URL"),
            "correct broker_url".to_owned(),
        );
    };
    let reached = (url.host(), url.port())
        .to_socket_addrs()
        .and_then(|mut addresses| {
            let address = addresses
                .next()
                .ok_or_else(|| std::io::Error::other("the name has no address"))?;
            TcpStream::connect_timeout(&address, Duration::from_secs(5))
        });
    match reached {
        Ok(_) => Good(format!("{url} answers")),
        Err(error) => Warn(
            format!("{url}: {error}"),
            "check the link, the name and the firewall; Pods run on without it".to_owned(),
        ),
    }
}

/// The directory, or the nearest one above it that exists.
fn nearest(dir: &Path) -> PathBuf {
    dir.ancestors()
        .find(|it| it.exists())
        .unwrap_or(Path::new("/"))
        .to_owned()
}
