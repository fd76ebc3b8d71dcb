//! A Pod of its own for each test: a shim as a process, busybox as the image, a cgroup, a bridge and directories that no
//! other test uses, all removed at the end.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::fs;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use skiff_shim::client::{Client, ClientError};
use skiff_shim::protocol::{Event, Exit, LogConfig, ReplyBody, RequestBody, RunRequest, State};
use skiff_shim::ring::{Reader, Stream};
use skiff_sys::cgroup::{Cgroups, ROOT};
use skiff_sys::netlink::Netlink;
use skiff_sys::{
    ContainerConfig, IpNet, Limits, NetworkConfig, Overlay, PodCgroup, SandboxConfig, Seccomp, Started, User,
    mount,
};

pub const TIMEOUT: Duration = Duration::from_secs(30);

pub struct Pod {
    pub dir: PathBuf,
    pub shim: Child,
    pub client: Client,
    pub sandbox: SandboxConfig,
    image: PathBuf,
    root: tempfile::TempDir,
}

/// Directories of one test; on tmpfs, where `/run` would be.
fn root() -> tempfile::TempDir {
    let dir = tempfile::Builder::new()
        .prefix("skiff-")
        .tempdir_in("/dev/shm")
        .unwrap();
    // The whole of it is one mount, so that a test which fails leaves one thing to unmount.
    mount::tmpfs(dir.path(), 256 << 20, 0o755).unwrap();
    nix::mount::mount(
        None::<&str>,
        dir.path(),
        None::<&str>,
        nix::mount::MsFlags::MS_REMOUNT | nix::mount::MsFlags::MS_NOSUID,
        None::<&str>,
    )
    .unwrap();
    dir
}

/// busybox with a link per applet.
pub fn busybox(image: &Path) {
    let bin = image.join("bin");
    fs::create_dir_all(&bin).unwrap();
    for dir in ["tmp", "etc", "proc", "dev", "sys", "root"] {
        fs::create_dir_all(image.join(dir)).unwrap();
    }
    fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
    let applets = Command::new("/bin/busybox").arg("--list").output().unwrap();
    for applet in String::from_utf8(applets.stdout)
        .unwrap()
        .lines()
        .filter(|name| *name != "busybox")
    {
        symlink("busybox", bin.join(applet)).unwrap();
    }
    fs::write(
        image.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n",
    )
    .unwrap();
}

impl Pod {
    pub fn new(subnet: u8) -> Self {
        Self::with(subnet, Limits::default())
    }

    pub fn with(subnet: u8, limits: Limits) -> Self {
        let root = root();
        let image = root.path().join("image");
        busybox(&image);
        let dir = root.path().join("pods/uid");
        fs::create_dir_all(&dir).unwrap();
        let pid = std::process::id();
        let sandbox = SandboxConfig {
            pod_uid: "uid".into(),
            hostname: "pod-name".into(),
            ns_dir: dir.join("ns"),
            host_network: false,
            network: Some(NetworkConfig {
                bridge: bridge(pid),
                bridge_address: net(subnet, 1),
                address: net(subnet, 2),
                gateway: net(subnet, 1).address,
                mtu: 0,
                host_veth: format!("skv{pid}"),
            }),
            cgroup: PodCgroup {
                parent: format!("skiff-test-{pid}"),
                pod: "pod-uid".into(),
                limits,
            },
            shm_bytes: 1 << 20,
            ..Default::default()
        };
        let (shim, client) = start_shim(&dir);
        Self {
            dir,
            shim,
            client,
            sandbox,
            image,
            root,
        }
    }

    pub fn sandboxed(subnet: u8) -> Self {
        let mut pod = Self::new(subnet);
        pod.client
            .call(RequestBody::MakeSandbox(pod.sandbox.clone()), TIMEOUT)
            .unwrap();
        pod
    }

    pub fn root(&self) -> &Path {
        self.root.path()
    }

    pub fn cgroups(&self) -> Cgroups {
        Cgroups::detect(Path::new(ROOT)).unwrap()
    }

    /// A container that runs a shell script with the defaults that Kubernetes gives it.
    pub fn shell(&self, id: &str, script: &str) -> ContainerConfig {
        self.command(id, &["sh", "-c", script])
    }

    pub fn command(&self, id: &str, args: &[&str]) -> ContainerConfig {
        let layers = self.root.path().join("layers").join(id);
        ContainerConfig {
            id: id.into(),
            state_root: self.dir.join("state"),
            bundle: self.dir.join("bundle").join(id),
            rootfs: Overlay {
                lower: vec![self.image.clone()],
                upper: layers.join("upper"),
                work: layers.join("work"),
                merged: layers.join("merged"),
            },
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            env: vec!["PATH=/bin".into(), "COLOUR=blue".into()],
            cwd: "/".into(),
            user: User::default(),
            capabilities: skiff_sys::default_capabilities(),
            no_new_privileges: false,
            read_only_root: false,
            privileged: false,
            mounts: vec![],
            namespaces: self.sandbox.namespaces(),
            cgroup_path: format!("{}/{id}", self.sandbox.cgroup.path()),
            resources: Limits::default(),
            seccomp: Seccomp::RuntimeDefault,
            rlimits: vec![],
            oom_score_adj: None,
            ..Default::default()
        }
    }

    pub fn run(&mut self, config: ContainerConfig) -> Result<Started, ClientError> {
        self.run_attempt(config, 0, TIMEOUT)
    }

    pub fn run_attempt(
        &mut self,
        config: ContainerConfig,
        attempt: u32,
        timeout: Duration,
    ) -> Result<Started, ClientError> {
        let request = RunRequest {
            name: config.id.split('.').next().unwrap().to_owned(),
            config,
            attempt,
            log: LogConfig::default(),
            timeout_ms: timeout.as_millis() as u64,
        };
        match self
            .client
            .call(RequestBody::Run(Box::new(request)), timeout + TIMEOUT)?
        {
            ReplyBody::Started(started) => Ok(started),
            other => panic!("{other:?}"),
        }
    }

    pub fn exit(&mut self) -> Exit {
        match self.client.next_event(TIMEOUT).unwrap() {
            Some(Event::Exited(exit)) => exit,
            None => panic!("no exit in time; {:?}", self.state()),
        }
    }

    /// Runs a container to its end and gives its exit code and output, standard error marked with `!`.
    pub fn output(&mut self, config: ContainerConfig) -> (i32, String) {
        let name = config.id.clone();
        self.run(config).unwrap();
        let exit = self.exit();
        assert_eq!(exit.container, name);
        (exit.exit_code, self.log(&name, 0))
    }

    pub fn log(&self, name: &str, attempt: u32) -> String {
        let reader = Reader::open(&self.dir.join("logs").join(name).join(format!("{attempt}.ring"))).unwrap();
        let chunk = reader.read(0, usize::MAX).unwrap();
        let mut text = String::new();
        for record in chunk.records {
            if record.stream == Stream::Stderr {
                text.push('!');
            }
            text.push_str(&String::from_utf8_lossy(&record.bytes));
            if !record.partial {
                text.push('\n');
            }
        }
        text
    }

    pub fn wait_for_log(&self, name: &str, text: &str) {
        wait_until(&format!("{text:?} in the log of {name}"), || {
            self.log(name, 0).contains(text)
        });
    }

    pub fn state(&mut self) -> State {
        match self.client.call(RequestBody::State, TIMEOUT).unwrap() {
            ReplyBody::State(state) => state,
            other => panic!("{other:?}"),
        }
    }

    pub fn call(&mut self, body: RequestBody) -> Result<ReplyBody, ClientError> {
        self.client.call(body, TIMEOUT)
    }

    /// Shuts the Pod down and checks that nothing of it is left.
    pub fn shut_down(mut self) {
        self.call(RequestBody::Shutdown).unwrap();
        wait_until("the shim's end", || self.shim.try_wait().unwrap().is_some());
        self.assert_gone();
    }

    pub fn assert_gone(&self) {
        assert_eq!(mount::mounts_under(&self.dir).unwrap(), Vec::<PathBuf>::new());
        let cgroups = self.cgroups();
        assert!(cgroups.children(&self.sandbox.cgroup.parent).unwrap().is_empty());
        assert!(cgroups.pids(&self.sandbox.cgroup.parent).unwrap().is_empty());
        let network = self.sandbox.network.as_ref().unwrap();
        assert_eq!(Netlink::open().unwrap().link(&network.host_veth).unwrap(), None);
        assert!(!self.sandbox.ns_dir.exists());
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.shim.kill();
        let _ = self.shim.wait();
        if let Ok(cgroups) = Cgroups::detect(Path::new(ROOT)) {
            let _ = skiff_sys::sandbox::destroy(&self.sandbox, &cgroups);
            let _ = cgroups.kill_all(&self.sandbox.cgroup.parent, TIMEOUT);
            let _ = cgroups.remove(&self.sandbox.cgroup.parent, TIMEOUT);
        }
        if let Ok(mut netlink) = Netlink::open() {
            let _ = netlink.delete_link(&bridge(std::process::id()));
        }
        let _ = mount::unmount_all_under(self.root.path());
    }
}

fn bridge(pid: u32) -> String {
    format!("skb{pid}")
}

pub fn net(subnet: u8, host: u8) -> IpNet {
    IpNet {
        address: IpAddr::V4(Ipv4Addr::new(10, 213, subnet, host)),
        prefix: 24,
    }
}

/// Starts a shim and waits until it serves.
pub fn start_shim(dir: &Path) -> (Child, Client) {
    let mut shim = Command::new(shim_binary())
        .arg("--pod-dir")
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    shim.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, skiff_shim::READY);
    let client = Client::connect(dir).unwrap();
    (shim, client)
}

/// The shim under test; another build of it can be named for measurements.
fn shim_binary() -> PathBuf {
    std::env::var_os("SKIFF_SHIM").map_or_else(|| env!("CARGO_BIN_EXE_skiff-shim").into(), PathBuf::from)
}

pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
