//! One value of every message, with every field filled, so that a field that moves shows in the bytes.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test uses its part, and says by its line what failed"
)]

use std::collections::BTreeMap;

use skiff_protocol::topic::NodeName;
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::desired::{Change, Desired, Index};
use skiff_protocol::wire::spec::{
    AppArmor, ConfigData, Container, DnsConfig, DnsPolicy, DownwardFile, DownwardValue, EnvFrom, EnvValue,
    EnvVar, FieldPath, Handler, HostAlias, HostPathType, HttpGet, KeyToPath, Mount, Object, ObjectKey,
    PersistentVolume, PodSecurity, PodSpec, Port, PortRef, Probe, Projection, Propagation, Protocol,
    PullPolicy, RecursiveReadOnly, ResizePolicy, ResourceField, ResourceName, Resources, RestartPolicy,
    Seccomp, Security, SubPath, Volume, VolumeSource,
};
use skiff_protocol::wire::status::{ContainerState, ContainerStatus, InForce, Phase, PodStatus, Terminated};
use skiff_protocol::wire::{
    Down, Event, Hello, LogRequest, NodeCondition, NodeImage, NodeInfo, StreamEnd, StreamOpen, Unreadable,
    Up, decode_down, decode_up, encode_down, encode_up,
};

/// A message or an object inside one.
#[allow(
    clippy::large_enum_variant,
    reason = "a few dozen of them exist, in tests only"
)]
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Sample {
    Down(Down),
    Up(Up),
    Object(Object),
}

impl Sample {
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Down(message) => encode_down(message),
            Self::Up(message) => encode_up(message),
            Self::Object(object) => postcard::to_allocvec(object).unwrap(),
        }
    }

    /// Decodes `bytes` as what `self` is.
    pub(crate) fn decode_same(&self, bytes: &[u8]) -> Result<Self, Unreadable> {
        match self {
            Self::Down(_) => decode_down(bytes).map(Self::Down),
            Self::Up(_) => decode_up(bytes).map(Self::Up),
            Self::Object(_) => match postcard::take_from_bytes(bytes) {
                Ok((object, [])) => Ok(Self::Object(object)),
                _ => Err(Unreadable::Malformed),
            },
        }
    }

    /// A message of several frames.
    pub(crate) fn long() -> Self {
        let one: Vec<u8> = (0..100_000_u32).map(|at| (at % 253) as u8).collect();
        Self::Down(Down::Objects {
            generation: 3,
            objects: vec![one],
        })
    }
}

pub(crate) fn node() -> NodeName {
    NodeName::parse("rover-7").unwrap()
}

pub(crate) fn uid(first: u8) -> Uid {
    Uid(std::array::from_fn(|at| first + at as u8))
}

fn text(text: &str) -> String {
    text.to_owned()
}

pub(crate) fn index() -> Index {
    Index(BTreeMap::from([
        (ObjectKey::Secret(text("default"), text("keys")), [3; 32]),
        (ObjectKey::Pod(uid(1)), [1; 32]),
        (ObjectKey::ConfigMap(text("default"), text("settings")), [2; 32]),
    ]))
}

fn container() -> Container {
    let key = |secret, name: &str| EnvValue::Key {
        secret,
        name: text(name),
        key: text("k"),
        optional: secret,
    };
    let values = [
        EnvValue::Literal(text("$(B)")),
        key(false, "settings"),
        key(true, "keys"),
        EnvValue::Field(FieldPath::Name),
        EnvValue::Field(FieldPath::Namespace),
        EnvValue::Field(FieldPath::Uid),
        EnvValue::Field(FieldPath::Label(text("app"))),
        EnvValue::Field(FieldPath::Annotation(text("note"))),
        EnvValue::Field(FieldPath::NodeName),
        EnvValue::Field(FieldPath::ServiceAccountName),
        EnvValue::Field(FieldPath::HostIp),
        EnvValue::Field(FieldPath::PodIp),
        EnvValue::Resource(ResourceField {
            container: text("app"),
            request: true,
            resource: ResourceName::HugePages(2 << 20),
            divisor_milli: 1000,
        }),
    ];
    let port = |name: &str, protocol| Port {
        name: text(name),
        container_port: 80,
        host_port: 8080,
        host_ip: text("127.0.0.1"),
        protocol,
    };
    Container {
        name: text("app"),
        image: text("registry.example/app:1"),
        pull_policy: PullPolicy::IfNotPresent,
        command: vec![text("/bin/app")],
        args: vec![text("--flag"), text("é")],
        working_dir: text("/srv"),
        env_from: vec![EnvFrom {
            prefix: text("P_"),
            secret: true,
            name: text("keys"),
            optional: true,
        }],
        env: values
            .map(|value| EnvVar {
                name: text("A"),
                value,
            })
            .to_vec(),
        ports: vec![
            port("http", Protocol::Tcp),
            port("dns", Protocol::Udp),
            port("sig", Protocol::Sctp),
        ],
        resources: Resources {
            cpu_limit: Some(500),
            memory_limit: Some(128 << 20),
            cpu_request: Some(250),
            memory_request: None,
            storage_limit: Some(1 << 30),
            storage_request: None,
            hugepages: vec![(2 << 20, 4 << 20)],
            extended: vec![(text("nvidia.com/gpu"), 1)],
        },
        mounts: vec![Mount {
            volume: text("scratch"),
            path: text("/scratch"),
            read_only: true,
            recursive_read_only: RecursiveReadOnly::IfPossible,
            propagation: Propagation::HostToContainer,
            sub_path: SubPath::Expr(text("$(A)/b")),
        }],
        resize: ResizePolicy {
            cpu_restarts: true,
            memory_restarts: false,
        },
        sidecar: true,
        liveness: Some(probe(Handler::Exec(vec![text("true")]))),
        readiness: Some(probe(Handler::HttpGet(HttpGet {
            host: text("127.0.0.1"),
            port: PortRef::Name(text("http")),
            path: text("/ready?x=1"),
            https: true,
            headers: vec![(text("X-A"), text("b"))],
        }))),
        startup: Some(probe(Handler::Grpc {
            port: 50_051,
            service: text("s"),
        })),
        post_start: Some(Handler::TcpSocket {
            host: text(""),
            port: PortRef::Number(80),
        }),
        pre_stop: Some(Handler::Sleep(5)),
        stop_signal: Some(10),
        termination_message_path: text("/dev/termination-log"),
        termination_message_from_log: true,
        stdin: true,
        stdin_once: true,
        tty: true,
        security: Security {
            run_as_user: Some(1000),
            run_as_group: Some(3000),
            run_as_non_root: true,
            privileged: true,
            unmasked_proc: true,
            apparmor: Some(AppArmor::Localhost(text("strict"))),
            read_only_root: true,
            allow_privilege_escalation: false,
            add_capabilities: vec![text("NET_ADMIN")],
            drop_capabilities: vec![text("ALL")],
            seccomp: Some(Seccomp::Localhost(text("profiles/a.json"))),
        },
    }
}

pub(crate) fn pod(restart_policy: RestartPolicy, pull_policy: PullPolicy) -> PodSpec {
    let config = |secret, name: &str| VolumeSource::Config {
        secret,
        name: text(name),
        items: vec![KeyToPath {
            key: text("k"),
            path: text("a/b"),
            mode: Some(0o400),
        }],
        default_mode: 0o644,
        optional: secret,
    };
    let dir = VolumeSource::EmptyDir {
        memory: true,
        size_limit: Some(1 << 20),
    };
    let volume = |name: &str, source| Volume {
        name: text(name),
        source,
    };
    PodSpec {
        uid: uid(1),
        namespace: text("default"),
        name: text("web"),
        labels: BTreeMap::from([(text("app"), text("web"))]),
        annotations: BTreeMap::from([(text("note"), text("a b"))]),
        deletion_grace_seconds: Some(5),
        restart_policy,
        termination_grace_seconds: 30,
        hostname: text("web"),
        security: PodSecurity {
            run_as_user: Some(1),
            run_as_group: Some(2),
            run_as_non_root: true,
            supplemental_groups: vec![4, 300],
            strict_groups: true,
            fs_group: Some(2000),
            fs_group_on_root_mismatch: true,
            sysctls: vec![(text("net.ipv4.tcp_syncookies"), text("1"))],
            apparmor: Some(AppArmor::RuntimeDefault),
            seccomp: Some(Seccomp::Unconfined),
        },
        active_deadline_seconds: Some(600),
        subdomain: text("sub"),
        hostname_is_fqdn: true,
        host_aliases: vec![HostAlias {
            ip: text("192.0.2.1"),
            hostnames: vec![text("a"), text("b.c")],
        }],
        dns_policy: DnsPolicy::None,
        dns: DnsConfig {
            nameservers: vec![text("192.0.2.53")],
            searches: vec![text("example.com")],
            options: vec![(text("ndots"), text("2")), (text("edns0"), text(""))],
        },
        host_network: true,
        host_pid: true,
        host_ipc: true,
        user_namespace: true,
        share_process_namespace: true,
        service_account: text("default"),
        resources: container().resources,
        init_containers: vec![container()],
        containers: vec![Container {
            pull_policy,
            ..container()
        }],
        image_pull_secrets: vec![text("regcred")],
        volumes: vec![
            volume(
                "host",
                VolumeSource::HostPath {
                    path: text("/srv"),
                    kind: HostPathType::DirectoryOrCreate,
                },
            ),
            volume(
                "all",
                VolumeSource::Projected {
                    sources: vec![
                        Projection::Config {
                            secret: true,
                            name: text("keys"),
                            items: Vec::new(),
                            optional: true,
                        },
                        Projection::Downward(vec![
                            DownwardFile {
                                path: text("labels"),
                                mode: Some(0o444),
                                value: DownwardValue::Field(FieldPath::Labels),
                            },
                            DownwardFile {
                                path: text("notes"),
                                mode: None,
                                value: DownwardValue::Field(FieldPath::Annotations),
                            },
                            DownwardFile {
                                path: text("cpu"),
                                mode: None,
                                value: DownwardValue::Resource(ResourceField {
                                    container: text("app"),
                                    request: false,
                                    resource: ResourceName::Cpu,
                                    divisor_milli: 1,
                                }),
                            },
                        ]),
                    ],
                    default_mode: 0o640,
                },
            ),
            volume(
                "model",
                VolumeSource::Image {
                    reference: text("registry.example/model:1"),
                    pull_policy: PullPolicy::Always,
                },
            ),
            volume(
                "data",
                VolumeSource::Claim {
                    name: text("claim"),
                    read_only: true,
                },
            ),
            volume("scratch", dir),
            volume("config", config(false, "settings")),
            volume("keys", config(true, "keys")),
        ],
    }
}

fn probe(handler: Handler) -> Probe {
    Probe {
        handler,
        initial_delay_seconds: 1,
        timeout_seconds: 2,
        period_seconds: 3,
        success_threshold: 4,
        failure_threshold: 5,
        termination_grace_seconds: Some(6),
    }
}

fn persistent_volume() -> PersistentVolume {
    PersistentVolume {
        name: text("pvc-1"),
        claim: (text("default"), text("claim")),
        capacity: 1 << 30,
        drop: true,
    }
}

fn data(name: &str) -> ConfigData {
    ConfigData {
        namespace: text("default"),
        name: text(name),
        data: BTreeMap::from([(text("a"), vec![0, 1, 255]), (text("b"), Vec::new())]),
    }
}

fn ended() -> Terminated {
    Terminated {
        exit_code: 137,
        signal: 9,
        reason: text("OOMKilled"),
        message: text("out of memory"),
        started_at: 1_700_000_000,
        finished_at: 1_700_000_009,
        container_id: text("skiff://abc"),
    }
}

pub(crate) fn status(phase: Phase, state: ContainerState) -> PodStatus {
    PodStatus {
        uid: uid(1),
        phase,
        reason: text("Evicted"),
        message: text("node is low on memory"),
        pod_ip: text("10.88.0.2"),
        start_time: Some(1_700_000_000),
        ready_since: None,
        initialized_since: Some(1_700_000_002),
        init_containers: Vec::new(),
        resize: Some((text("Deferred"), text("no room"))),
        containers: vec![ContainerStatus {
            name: text("app"),
            state,
            last: Some(ended()),
            ready: true,
            started: true,
            resources: Some(InForce {
                cpu_limit: Some(500),
                memory_limit: None,
                cpu_request: Some(250),
                memory_request: Some(1 << 20),
            }),
            restart_count: 300,
            image_id: text("sha256:12"),
            container_id: text("skiff://def"),
        }],
        gone: false,
    }
}

fn info() -> NodeInfo {
    NodeInfo {
        agent_version: text("0.1.0"),
        architecture: text("arm64"),
        kernel: text("6.1.0"),
        os_image: text("Debian GNU/Linux 12"),
        machine_id: text("m"),
        boot_id: text("b"),
        address: text("192.0.2.7"),
        cpu_milli: 4000,
        memory: 1 << 30,
        storage: 1 << 34,
        allocatable_cpu_milli: 3900,
        allocatable_memory: (1 << 30) - (64 << 20),
        allocatable_storage: 1 << 33,
        extended: vec![(text("nvidia.com/gpu"), 1)],
        features: vec![text("host-network")],
        pods: 110,
        labels: vec![(text("zone"), text("hall"))],
        conditions: vec![NodeCondition {
            kind: text("DiskPressure"),
            status: true,
            reason: text("LowSpace"),
            message: text("make room under the state directory"),
        }],
    }
}

fn down() -> Vec<(&'static str, Down)> {
    let desired = |change| {
        Down::Desired(Desired {
            generation: 7,
            signature: (0..64).collect(),
            change,
            objects: vec![vec![1, 2, 3], Vec::new()],
        })
    };
    let delta = Change::Delta {
        base: 6,
        remove: vec![ObjectKey::ConfigMap(text("default"), text("old"))],
        put: vec![(ObjectKey::Pod(uid(9)), [9; 32])],
    };
    let request = LogRequest {
        uid: Some(uid(1)),
        container: text("app"),
        follow: true,
        previous: false,
        timestamps: true,
        tail_lines: Some(100),
        since: Some(-1),
        limit_bytes: Some(1 << 20),
    };
    vec![
        ("down-desired-full", desired(Change::Full(index()))),
        ("down-desired-delta", desired(delta)),
        (
            "down-objects",
            Down::Objects {
                generation: 7,
                objects: vec![vec![4, 5]],
            },
        ),
        ("down-in-step", Down::InStep { generation: 300 }),
        ("down-resync", Down::Resync),
        (
            "down-stream-open-logs",
            Down::StreamOpen(StreamOpen::Logs { sid: 5, request }),
        ),
        (
            "down-stream-credit",
            Down::StreamCredit {
                sid: 5,
                bytes: 65_536,
            },
        ),
        ("down-stream-close", Down::StreamClose { sid: u32::MAX }),
        ("down-need-statics", Down::NeedStatics { uids: vec![uid(7)] }),
    ]
}

fn up() -> Vec<(&'static str, Up)> {
    let hello = Hello {
        epoch: 12,
        versions: (1, 1),
        max_frame: 32 * 1024,
        generation: 7,
        desired_digest: [7; 32],
        inventory_digest: [8; 32],
        node: info(),
    };
    let waiting = ContainerState::Waiting {
        reason: text("ImagePullBackOff"),
        message: text("registry says no"),
    };
    let running = ContainerState::Running {
        started_at: 1_700_000_001,
    };
    let pods = vec![
        status(Phase::Pending, waiting),
        status(Phase::Running, running),
        status(Phase::Failed, ContainerState::Terminated(ended())),
        PodStatus {
            gone: true,
            ..status(Phase::Succeeded, ContainerState::Terminated(ended()))
        },
    ];
    let event = Event {
        uid: uid(1),
        container: Some(text("app")),
        warning: true,
        reason: text("BackOff"),
        message: text("restarting failed container"),
        at: 1_700_000_010,
    };
    let failed = StreamEnd::Failed(text("no such container"));
    vec![
        ("up-hello", Up::Hello(hello)),
        (
            "up-need",
            Up::Need {
                generation: 7,
                keys: index().0.into_keys().collect(),
            },
        ),
        (
            "up-applied",
            Up::Applied {
                generation: 7,
                digest: [7; 32],
            },
        ),
        (
            "up-status",
            Up::Status {
                epoch: 12,
                sequence: 1,
                pods,
            },
        ),
        ("up-node", Up::Node(info())),
        (
            "up-events",
            Up::Events {
                lost: 2,
                events: vec![event],
            },
        ),
        (
            "up-stream-data",
            Up::StreamData {
                sid: 5,
                offset: 65_536,
                bytes: b"line\n".to_vec(),
            },
        ),
        (
            "up-stream-end-complete",
            Up::StreamEnd {
                sid: 5,
                end: StreamEnd::Complete,
            },
        ),
        ("up-stream-end-failed", Up::StreamEnd { sid: 5, end: failed }),
        ("up-bye", Up::Bye { epoch: 12 }),
        (
            "up-statics",
            Up::Statics {
                uids: vec![uid(7), uid(9)],
            },
        ),
        (
            "up-static-pod",
            Up::StaticPod {
                uid: uid(7),
                manifest: b"{\"kind\":\"Pod\"}".to_vec(),
            },
        ),
        (
            "up-images",
            Up::Images {
                images: vec![NodeImage {
                    names: vec!["docker.io/library/busybox:latest".into()],
                    size_bytes: 2_220_000,
                }],
            },
        ),
    ]
}

/// Every variant of both directions and every object, by the name of its golden file.
pub(crate) fn samples() -> Vec<(&'static str, Sample)> {
    let objects = [
        (
            "object-pod-always",
            Object::Pod(pod(RestartPolicy::Always, PullPolicy::Always)),
        ),
        (
            "object-pod-on-failure",
            Object::Pod(pod(RestartPolicy::OnFailure, PullPolicy::IfNotPresent)),
        ),
        (
            "object-pod-never",
            Object::Pod(pod(RestartPolicy::Never, PullPolicy::Never)),
        ),
        ("object-config-map", Object::ConfigMap(data("settings"))),
        ("object-secret", Object::Secret(data("keys"))),
        ("object-volume", Object::Volume(persistent_volume())),
    ];
    let mut all: Vec<_> = down()
        .into_iter()
        .map(|(name, it)| (name, Sample::Down(it)))
        .collect();
    all.extend(up().into_iter().map(|(name, it)| (name, Sample::Up(it))));
    all.extend(objects.map(|(name, it)| (name, Sample::Object(it))));
    for (name, sample) in &all {
        assert!(name.starts_with(prefix(sample)), "{name}");
    }
    all
}

/// What each variant's golden file begins with. A new variant stops this from compiling, and wants its sample above.
fn prefix(sample: &Sample) -> &'static str {
    match sample {
        Sample::Down(Down::Desired(_)) => "down-desired",
        Sample::Down(Down::Objects { .. }) => "down-objects",
        Sample::Down(Down::InStep { .. }) => "down-in-step",
        Sample::Down(Down::Resync) => "down-resync",
        Sample::Down(Down::StreamOpen(StreamOpen::Logs { .. })) => "down-stream-open-logs",
        Sample::Down(Down::StreamCredit { .. }) => "down-stream-credit",
        Sample::Down(Down::StreamClose { .. }) => "down-stream-close",
        Sample::Down(Down::NeedStatics { .. }) => "down-need-statics",
        Sample::Up(Up::Hello(_)) => "up-hello",
        Sample::Up(Up::Need { .. }) => "up-need",
        Sample::Up(Up::Applied { .. }) => "up-applied",
        Sample::Up(Up::Status { .. }) => "up-status",
        Sample::Up(Up::Node(_)) => "up-node",
        Sample::Up(Up::Events { .. }) => "up-events",
        Sample::Up(Up::StreamData { .. }) => "up-stream-data",
        Sample::Up(Up::StreamEnd { .. }) => "up-stream-end",
        Sample::Up(Up::Bye { .. }) => "up-bye",
        Sample::Up(Up::Statics { .. }) => "up-statics",
        Sample::Up(Up::StaticPod { .. }) => "up-static-pod",
        Sample::Up(Up::Images { .. }) => "up-images",
        Sample::Object(Object::Pod(_)) => "object-pod",
        Sample::Object(Object::ConfigMap(_)) => "object-config-map",
        Sample::Object(Object::Secret(_)) => "object-secret",
        Sample::Object(Object::Volume(_)) => "object-volume",
    }
}
