//! What a node refuses, and how it says so.

use std::fmt::Write as _;

use skiff_core::{Core, Event, Pressure, Recovered};
use skiff_protocol::wire::spec::{
    AppArmor, HostPathType, Mount, PodSpec, Port, Protocol, RecursiveReadOnly, Resources, Volume,
    VolumeSource,
};
use skiff_protocol::wire::{NodeInfo, feature};

use crate::bench::{Bench, compare, container, pod_with, uid};

fn port(number: u16, ip: &str, protocol: Protocol) -> Port {
    Port {
        name: String::new(),
        container_port: 80,
        host_port: number,
        host_ip: ip.to_owned(),
        protocol,
    }
}

fn volume(name: &str, source: VolumeSource) -> Volume {
    Volume {
        name: name.to_owned(),
        source,
    }
}

/// A Pod and what its name says of it.
type Case = (&'static str, Box<dyn Fn(&mut PodSpec)>);

fn case(name: &'static str, change: impl Fn(&mut PodSpec) + 'static) -> Case {
    (name, Box::new(change))
}

fn resources(change: impl Fn(&mut Resources) + 'static) -> impl Fn(&mut PodSpec) {
    move |it| change(&mut it.containers[0].resources)
}

/// Each Pod alone on a node that runs `base`.
fn refusals(b: &mut Bench, base: &PodSpec, cases: Vec<Case>) -> String {
    let mut out = String::new();
    for (name, change) in cases {
        let pod = pod_with("new", |it| change(it));
        b.pods(&[base.clone(), pod]);
        let (_, status) = b
            .core
            .statuses()
            .find(|(_, it)| it.uid == uid("new"))
            .expect("it is there");
        let _ = match status.reason.as_str() {
            "" => writeln!(out, "{name}: taken"),
            reason => writeln!(out, "{name}: {reason}: {}", status.message),
        };
        b.pods(std::slice::from_ref(base));
        b.wait(1);
        b.event("removed new", Event::Removed(uid("new")));
    }
    out
}

fn base() -> PodSpec {
    pod_with("base", |it| {
        it.init_containers = vec![container("big")];
        it.init_containers[0].resources.cpu_request = Some(600);
        let app = &mut it.containers[0];
        app.resources.cpu_request = Some(100);
        app.resources.storage_request = Some(4 << 30);
        app.resources.extended = vec![("skiff.io/tty".to_owned(), 1)];
        app.ports = vec![port(8080, "", Protocol::Tcp), port(53, "10.0.0.1", Protocol::Udp)];
    })
}

#[test]
fn what_does_not_fit_and_what_is_not_allowed() {
    let mut b = Bench::new();
    b.observed(Vec::new());
    let cases = vec![
        case("nothing", |_| {}),
        case(
            "cpu beside an init container's 600m",
            resources(|it| it.cpu_request = Some(401)),
        ),
        case("cpu that fits", resources(|it| it.cpu_request = Some(400))),
        case("memory", resources(|it| it.memory_request = Some((1 << 30) + 1))),
        case(
            "ephemeral-storage",
            resources(|it| it.storage_request = Some(7 << 30)),
        ),
        case(
            "hugepages",
            resources(|it| it.hugepages = vec![(2 << 20, 4 << 20)]),
        ),
        case(
            "an extended resource",
            resources(|it| it.extended = vec![("skiff.io/tty".into(), 2)]),
        ),
        case(
            "one that is left",
            resources(|it| it.extended = vec![("skiff.io/tty".into(), 1)]),
        ),
        case(
            "one that there is not",
            resources(|it| it.extended = vec![("nvidia.com/gpu".into(), 1)]),
        ),
        case("pod-level cpu", |it| it.resources.cpu_request = Some(500)),
        case("hostPort", |it| {
            it.containers[0].ports = vec![port(8080, "10.0.0.7", Protocol::Tcp)];
        }),
        case("hostPort, udp", |it| {
            it.containers[0].ports = vec![port(8080, "", Protocol::Udp)];
        }),
        case("hostIP, another", |it| {
            it.containers[0].ports = vec![port(53, "10.0.0.2", Protocol::Udp)];
        }),
        case("hostIP, the same", |it| {
            it.containers[0].ports = vec![port(53, "10.0.0.1", Protocol::Udp)];
        }),
        case("hostNetwork", |it| it.host_network = true),
        case("hostPID", |it| it.host_pid = true),
        case("hostIPC", |it| it.host_ipc = true),
        case("hostUsers", |it| it.user_namespace = true),
        case("privileged", |it| {
            it.containers[0].security.privileged = true;
            it.containers[0].security.allow_privilege_escalation = true;
        }),
        case("capabilities", |it| {
            it.containers[0].security.add_capabilities = vec!["CHOWN".into(), "SYS_MODULE".into()];
        }),
        case("hostPath", |it| {
            let source = VolumeSource::HostPath {
                path: "/dev".into(),
                kind: HostPathType::Unchecked,
            };
            it.volumes = vec![volume("dev", source)];
        }),
        case("appArmorProfile", |it| {
            it.security.apparmor = Some(AppArmor::RuntimeDefault);
        }),
        case("appArmorProfile Unconfined", |it| {
            it.security.apparmor = Some(AppArmor::Unconfined);
        }),
        case("recursiveReadOnly", |it| {
            let source = VolumeSource::EmptyDir {
                memory: false,
                size_limit: None,
            };
            it.volumes = vec![volume("data", source)];
            it.containers[0].mounts = vec![Mount {
                volume: "data".into(),
                path: "/data".into(),
                read_only: true,
                recursive_read_only: RecursiveReadOnly::Enabled,
                ..Mount::default()
            }];
        }),
    ];
    compare("admission-table", &refusals(&mut b, &base(), cases));
}

#[test]
fn a_node_that_is_short_of_something_takes_no_more() {
    let mut b = Bench::new();
    b.observed(Vec::new());
    let small = || resources(|it| it.memory_request = Some(1 << 20));
    let best_effort = || case("BestEffort", |_| {});
    let mut out = String::new();
    for (memory, disk) in [(true, false), (false, true), (true, true), (false, false)] {
        let said = |met: bool| met.then(|| "little is left".to_owned());
        b.event(
            "pressure",
            Event::Pressure(Pressure {
                memory: said(memory),
                disk: said(disk),
                ..Pressure::default()
            }),
        );
        let _ = writeln!(out, "# memory {memory}, disk {disk}");
        out += &refusals(&mut b, &base(), vec![best_effort(), case("Burstable", small())]);
    }
    compare("admission-pressure", &out);
}

#[test]
fn a_place_is_kept_over_a_start_at_which_a_device_is_not_there_yet() {
    let mut b = Bench::new();
    b.config.features = [feature::HOST_PID.to_owned()].into();
    b.core = Core::new(b.config.clone(), Recovered::default());
    b.observed(Vec::new());
    let reasons = |b: &Bench| -> Vec<String> {
        let all = b.core.statuses().filter(|(_, it)| !it.reason.is_empty());
        all.map(|(_, it)| it.reason.clone()).collect()
    };
    let seeing = pod_with("seeing", |it| {
        it.host_pid = true;
        it.containers[0].resources.extended = vec![("nvidia.com/gpu".into(), 1)];
    });
    // What the node has of devices follows what it finds.
    let gpus = |count| {
        Event::NodeChanged(NodeInfo {
            extended: vec![("nvidia.com/gpu".to_owned(), count)],
            ..NodeInfo::default()
        })
    };
    b.event("one GPU", gpus(1));
    b.pods(std::slice::from_ref(&seeing));
    assert_eq!(reasons(&b), [""; 0]);
    let late = pod_with("late", |it| {
        it.containers[0].resources.extended = vec![("nvidia.com/gpu".into(), 1)];
    });
    b.pods(&[seeing.clone(), late]);
    assert_eq!(reasons(&b), ["OutOfnvidia.com/gpu"]);
    b.pods(std::slice::from_ref(&seeing));
    // The machine boots, and what describes its devices has not been made yet.
    assert!(!b.config.extended.contains_key("nvidia.com/gpu"));
    b.restart(Vec::new());
    assert_eq!(reasons(&b), [""; 0]);
    // What the node does not allow any more is another matter.
    b.config.features.clear();
    b.restart(Vec::new());
    assert_eq!(reasons(&b), ["PodFeatureUnsupported"]);
}
