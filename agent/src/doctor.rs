//! `skiff-agent doctor`: can this machine run Pods, and what to do where it cannot.
//!
//! Always holds: looks only; nothing is changed. Every finding that is not good comes with a fix.

use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use skiff_protocol::quantity::binary;
use skiff_sys::IdRange;
use skiff_sys::cgroup::{Cgroups, Version};
use skiff_sys::doctor::{self, Facts, Probe};
use skiff_sys::process::Report;

use crate::config::{Config, USER_IDS};
use crate::devices::Cdi;
use crate::identity::Identity;
use crate::plan::APPARMOR_DEFAULT;
use crate::{node, own};

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
    let facts = doctor::look();
    let checks: [(&str, Outcome); 20] = [
        ("kernel", kernel(&facts)),
        ("privileges", privileges(&facts)),
        ("namespaces", namespaces(&facts)),
        ("cgroups", cgroups(config)),
        ("own memory", own_memory(config)),
        ("devices", devices(&facts)),
        ("overlayfs", overlay(config)),
        ("seccomp", seccomp(&facts)),
        ("users", users(config)),
        ("apparmor", apparmor()),
        ("read-only", recursive_read_only()),
        ("hugepages", hugepages(config)),
        ("cdi", cdi(config)),
        ("network", network()),
        ("nf_tables", nf_tables(&facts)),
        ("pressure", pressure(&facts)),
        ("clock", clock(&facts)),
        ("memory", memory(&facts)),
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

fn kernel(facts: &Facts) -> Outcome {
    let mut parts = facts
        .kernel
        .split(['.', '-'])
        .map_while(|it| it.parse::<u32>().ok());
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    let text = format!("Linux {} on {}", facts.kernel, facts.machine);
    if version >= (5, 6) {
        Good(text)
    } else {
        Bad(
            text,
            "use Linux 5.6 or later: pidfd and openat2 are needed".to_owned(),
        )
    }
}

fn privileges(facts: &Facts) -> Outcome {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let lacking = &facts.lacking_capabilities;
    if !status.lines().any(|line| line.starts_with("Uid:\t0\t")) {
        Bad("not root".to_owned(), "run the agent as root".to_owned())
    } else if lacking.iter().any(|it| *it != "CAP_SYS_RESOURCE") {
        Bad(
            format!("lacks {}", lacking.join(", ")),
            "grant these capabilities to the agent's unit".to_owned(),
        )
    } else if !lacking.is_empty() {
        Warn(
            "root without CAP_SYS_RESOURCE: out-of-memory scores cannot be lowered".to_owned(),
            "grant CAP_SYS_RESOURCE, so that the kernel kills Pods before the agent".to_owned(),
        )
    } else {
        Good("root with all capabilities needed".to_owned())
    }
}

fn namespaces(facts: &Facts) -> Outcome {
    let names = |there: bool| {
        facts
            .namespaces
            .iter()
            .filter(|it| it.1 == there)
            .map(|it| it.0)
            .collect::<Vec<_>>()
    };
    let missing = names(false);
    if missing.is_empty() {
        Good(names(true).join(" "))
    } else {
        let fix = "use a kernel with CONFIG_NAMESPACES and these namespaces";
        Bad(format!("missing: {}", missing.join(" ")), fix.to_owned())
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

fn devices(facts: &Facts) -> Outcome {
    let controller = facts
        .controllers
        .iter()
        .any(|(name, there)| *name == "devices" && *there);
    match (&facts.cgroup, &facts.device_program) {
        (Ok(Version::V2), Probe::Works) => Good("by a cgroup program".to_owned()),
        (Ok(Version::V2), Probe::Fails(why)) => Bad(
            why.clone(),
            "use a kernel with CONFIG_CGROUP_BPF; containers never run without device rules".to_owned(),
        ),
        _ if controller => Good("by the devices controller".to_owned()),
        _ => Bad(
            "no devices controller".to_owned(),
            "use a kernel with CONFIG_CGROUP_DEVICE".to_owned(),
        ),
    }
}

fn overlay(config: &Config) -> Outcome {
    let layers = match layers(config) {
        Ok(layers) => layers,
        Err(why) => return untried(&why),
    };
    match layers.lacking {
        None => Good(format!("works in {}", nearest(&config.state_dir).display())),
        Some((why, fix)) if layers.in_memory => Warn(why, fix),
        Some((why, fix)) => Bad(why, fix),
    }
}

/// Where the writable layers of containers can lie.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layers {
    /// On the tmpfs of `run_dir`, because the state directory cannot have them.
    pub in_memory: bool,
    /// What is lacking, and the fix.
    pub lacking: Option<(String, String)>,
}

/// Whether overlays work in the state directory, or why not. Called in a process with one thread.
///
/// # Errors
/// When it cannot be tried, which says nothing.
pub(crate) fn layers(config: &Config) -> Result<Layers, String> {
    let disk = nearest(&config.state_dir);
    if doctor::takes_overlays(&disk) {
        return Ok(Layers::default());
    }
    let Some(why) = in_child(|| failure(doctor::try_overlay(&disk)))? else {
        return Ok(Layers::default());
    };
    // The attempt had the kernel load its module, if there is one.
    let in_memory = doctor::has_file_system("overlay");
    let lacking = if in_memory {
        let why = format!(
            "the file system of {} cannot hold the writable layers of containers ({why}), so they lie in memory",
            disk.display()
        );
        (why, "put the state directory on ext4".to_owned())
    } else {
        let why = format!("the kernel has no overlayfs, so no container can start ({why})");
        let fix = "modprobe overlay, or use a kernel with CONFIG_OVERLAY_FS";
        (why, fix.to_owned())
    };
    Ok(Layers {
        in_memory,
        lacking: Some(lacking),
    })
}

fn seccomp(facts: &Facts) -> Outcome {
    match &facts.seccomp {
        Probe::Works => Good("filters are available".to_owned()),
        Probe::Fails(why) => Bad(
            why.clone(),
            "use a kernel with CONFIG_SECCOMP_FILTER; containers never run unfiltered".to_owned(),
        ),
    }
}

fn own_memory(config: &Config) -> Outcome {
    let cgroups = Cgroups::detect(&config.cgroup_root);
    let memory = cgroups.is_ok_and(|it| it.controllers().contains("memory"));
    if config.agent_memory == 0 {
        let fix = "set agent_memory, so that a fault of the agent cannot take the memory of Pods";
        Warn("the agent's memory is not bounded".to_owned(), fix.to_owned())
    } else if !memory {
        Warn(
            "the agent's memory cannot be bounded: the kernel has no memory cgroup controller".to_owned(),
            "add cgroup_enable=memory cgroup_memory=1 to the kernel's command line".to_owned(),
        )
    } else {
        let (agent, pull) = (config.agent_memory >> 20, config.pull_memory >> 20);
        Good(format!(
            "{agent} MiB for the agent and {pull} MiB for pulls, in cgroup {}",
            own::parent(config)
        ))
    }
}

fn users(config: &Config) -> Outcome {
    match user_namespaces(config) {
        Ok(()) => Good("Pods can have user namespaces (hostUsers: false)".to_owned()),
        Err(why) => Warn(
            format!("no Pods with hostUsers: false: {why}"),
            "use Linux 6.3 or later with CONFIG_USER_NS, user.max_user_namespaces above 0, and a state directory on ext4, \
             f2fs, xfs or btrfs; or leave hostUsers out: containers are confined without it"
                .to_owned(),
        ),
    }
}

/// Whether Pods can have user namespaces, or why not. Called in a process with one thread.
pub(crate) fn user_namespaces(config: &Config) -> Result<(), String> {
    let ids = IdRange {
        first: config.user_ids_base,
        count: USER_IDS,
    };
    let (disk, memory) = (nearest(&config.state_dir), nearest(&config.run_dir));
    match in_child(|| failure(doctor::try_user_namespace(&disk, &memory, ids)))? {
        None => Ok(()),
        Some(why) => Err(why),
    }
}

fn apparmor() -> Outcome {
    if !doctor::apparmor() {
        return Warn(
            "not in the kernel, or off: no Pods with an appArmorProfile of Localhost".to_owned(),
            "use a kernel with CONFIG_SECURITY_APPARMOR and boot it with apparmor=1 security=apparmor"
                .to_owned(),
        );
    }
    if node::apparmor_profile(APPARMOR_DEFAULT) {
        Good(format!("RuntimeDefault is the profile {APPARMOR_DEFAULT}"))
    } else {
        Warn(
            format!("on, but no profile {APPARMOR_DEFAULT} is loaded: RuntimeDefault confines nothing"),
            format!("load a profile of the name {APPARMOR_DEFAULT} with apparmor_parser"),
        )
    }
}

fn recursive_read_only() -> Outcome {
    if doctor::recursive_read_only() {
        Good("whole trees of mounts (recursiveReadOnly)".to_owned())
    } else {
        Warn(
            "the kernel has no mount_setattr(2): no mounts with recursiveReadOnly: Enabled".to_owned(),
            "use Linux 5.12 or later".to_owned(),
        )
    }
}

fn hugepages(config: &Config) -> Outcome {
    let pages = node::hugepages();
    if pages.is_empty() {
        // Few machines need any: nothing is wrong.
        return Good("none are set aside".to_owned());
    }
    let text: Vec<String> = pages
        .iter()
        .map(|(size, bytes)| format!("{} in pages of {}", binary(*bytes), binary(*size)))
        .collect();
    let text = text.join(", ");
    let cgroups = Cgroups::detect(&config.cgroup_root);
    if cgroups.is_ok_and(|it| it.controllers().contains("hugetlb")) {
        Good(text)
    } else {
        Warn(
            format!("{text}, which no Pod gets: the kernel has no hugetlb cgroup controller"),
            "use a kernel with CONFIG_CGROUP_HUGETLB".to_owned(),
        )
    }
}

fn cdi(config: &Config) -> Outcome {
    let found = Cdi::load(&config.cdi_dirs);
    let kinds = found.kinds();
    let kinds: Vec<String> = kinds
        .iter()
        .map(|(kind, names)| format!("{kind} ({})", names.join(" ")))
        .collect();
    let text = match found.files {
        0 => "no specifications".to_owned(),
        files => format!("{files} specifications: {}", kinds.join(", ")),
    };
    let missing = config.devices.iter().flat_map(|it| &it.paths);
    let missing = missing.filter(|path| !path.exists());
    let missing: Vec<String> = missing.map(|path| path.display().to_string()).collect();
    if !found.broken.is_empty() {
        let fix = format!("correct or remove: {}", found.broken.join("; "));
        Warn(text, fix)
    } else if !missing.is_empty() {
        Warn(
            format!("{text}; of [[devices]] not there: {}", missing.join(" ")),
            "plug it in, or correct its path; Pods that ask for it wait".to_owned(),
        )
    } else {
        Good(text)
    }
}

fn network() -> Outcome {
    match in_child(|| failure(doctor::try_network())) {
        Ok(None) => Good("bridge and veth work".to_owned()),
        Err(why) => untried(&why),
        Ok(Some(why)) => Warn(
            why,
            "modprobe bridge veth, or use a kernel with CONFIG_BRIDGE and CONFIG_VETH".to_owned(),
        ),
    }
}

fn nf_tables(facts: &Facts) -> Outcome {
    match &facts.nf_tables {
        Probe::Works => Good("answers".to_owned()),
        Probe::Fails(why) => Warn(
            why.clone(),
            "modprobe nf_tables, or use a kernel with CONFIG_NF_TABLES".to_owned(),
        ),
    }
}

fn pressure(facts: &Facts) -> Outcome {
    match &facts.pressure {
        Probe::Works => Good("pressure stall information is there".to_owned()),
        Probe::Fails(why) => Warn(why.clone(), "add psi=1 to the kernel's command line".to_owned()),
    }
}

fn clock(facts: &Facts) -> Outcome {
    if facts.unix_ns / 1_000_000_000 < crate::BUILT {
        let fix = "set the clock, or run an NTP client; until then certificates are checked against the last known time";
        Warn(
            "the clock is behind this program's build".to_owned(),
            fix.to_owned(),
        )
    } else {
        Good("later than this program's build".to_owned())
    }
}

fn memory(facts: &Facts) -> Outcome {
    match &facts.memory {
        Err(why) => Warn(why.clone(), "mount /proc".to_owned()),
        Ok(memory) => {
            let text = format!(
                "{} MiB of {} MiB available",
                memory.available >> 20,
                memory.total >> 20
            );
            if memory.available < 32 << 20 {
                Warn(text, "free some memory: a start needs about 10 MiB".to_owned())
            } else {
                Good(text)
            }
        }
    }
}

fn untried(why: &str) -> Outcome {
    let fix = "run the doctor where the agent will run, outside of an emulator";
    Warn(format!("could not be tried: {why}"), fix.to_owned())
}

fn failure(probe: Probe) -> Option<String> {
    match probe {
        Probe::Works => None,
        Probe::Fails(why) => Some(why),
    }
}

/// Runs a probe that changes its process' namespaces in a process of its own.
fn in_child(probe: impl FnOnce() -> Option<String>) -> Result<Option<String>, String> {
    let mut child = skiff_sys::process::fork_child(probe).map_err(|error| error.to_string())?;
    let report = child.wait(Duration::from_secs(10));
    // The child ends with its report; waiting for it leaves no zombie.
    while skiff_sys::process::reap().is_some() {}
    match report {
        Report::Done(outcome) => Ok(outcome),
        _ => Err("the probe gave no answer".to_owned()),
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
