//! What becomes of requests, limits and quality of service.

use super::*;

fn sidecar(it: Container) -> Container {
    Container { sidecar: true, ..it }
}

/// A node may hear of larger quantities than a server of this version passes on.
#[test]
fn huge_quantities_saturate() {
    let huge = Some(u64::MAX);
    for (containers, quota, shares, memory) in [
        (vec![asks(Some(250), Some(1))], Some(25_000), 256, Some(1)),
        (
            vec![asks(Some(250), Some(1)), asks(Some(250), Some(2))],
            Some(50_000),
            512,
            Some(3),
        ),
        (vec![asks(Some(250), Some(1)), asks(None, None)], None, 256, None),
        (
            vec![asks(Some(1), Some(1))],
            Some(1000),
            limits::LEAST_SHARES,
            Some(1),
        ),
        (
            vec![asks(huge, huge)],
            Some(u64::MAX / 1000),
            u64::MAX / 1000,
            huge,
        ),
        (
            vec![asks(huge, huge), asks(huge, huge)],
            Some(u64::MAX / 1000),
            u64::MAX / 1000,
            huge,
        ),
    ] {
        let pod = pod_of(containers);
        let whole = limits::pod_limits(&pod, &NONE);
        assert_eq!(
            (whole.cpu_quota_us, whole.cpu_shares, whole.memory_bytes),
            (quota, Some(shares), memory)
        );
        if let [one] = &pod.containers[..] {
            let one = limits(&pod, one, &NONE).unwrap();
            assert_eq!(
                (one.cpu_quota_us, one.cpu_shares, one.memory_bytes),
                (quota, Some(shares), memory)
            );
        }
    }
    let pod = pod_of(vec![asks(huge, huge)]);
    assert_eq!(limits::oom_score_adj(&pod, &pod.containers[0], 1), -997);
}

#[test]
fn init_containers_count_one_at_a_time_and_sidecars_beside_all() {
    let one = |milli: u64| asks(Some(milli), Some(milli));
    for (init, containers, expected) in [
        (vec![], vec![one(100)], 100),
        (vec![one(500), one(300)], vec![one(100), one(100)], 500),
        (vec![sidecar(one(50))], vec![one(100)], 150),
        (vec![sidecar(one(50)), one(500)], vec![one(100)], 550),
        (vec![one(500), sidecar(one(50))], vec![one(100)], 500),
    ] {
        let mut pod = pod_of(containers);
        pod.init_containers = init;
        let whole = limits::pod_limits(&pod, &NONE);
        assert_eq!(whole.memory_bytes, Some(expected));
        assert_eq!(whole.cpu_quota_us, Some(expected * 100));
    }
    let mut pod = pod_of(vec![asks(Some(100), Some(1 << 20))]);
    pod.init_containers = vec![asks(None, None)];
    assert_eq!(
        limits::pod_limits(&pod, &NONE).memory_bytes,
        None,
        "one has no limit"
    );
}

#[test]
fn the_pods_own_resources_bound_it_and_containers_without_their_own() {
    let mut pod = pod_of(vec![asks(None, None), asks(Some(100), Some(1 << 20))]);
    pod.resources = asks(Some(500), Some(8 << 20)).resources;
    pod.resources.hugepages = vec![(2 << 20, 4 << 20)];
    let whole = limits::pod_limits(&pod, &NONE);
    assert_eq!(
        (
            whole.memory_bytes,
            whole.cpu_quota_us,
            whole.cpu_shares,
            whole.hugepages
        ),
        (Some(8 << 20), Some(50_000), Some(512), vec![(2 << 20, 4 << 20)])
    );
    for (at, memory, quota, shares) in [(0, 8 << 20, 50_000, 2), (1, 1 << 20, 10_000, 102)] {
        let one = limits(&pod, &pod.containers[at], &NONE).unwrap();
        assert_eq!(
            (one.memory_bytes, one.cpu_quota_us, one.cpu_shares, one.pids),
            (Some(memory), Some(quota), Some(shares), Some(7))
        );
    }
}

#[test]
fn memory_qos_and_oom_group_are_for_v2_alone() {
    const V2: NodeLimits<'static> = NodeLimits {
        unified: true,
        ..NONE
    };
    const QOS: NodeLimits<'static> = NodeLimits {
        memory_qos: true,
        ..V2
    };
    const OLD: NodeLimits<'static> = NodeLimits {
        memory_qos: true,
        ..NONE
    };
    let both = |request: u64, limit: Option<u64>| {
        let mut it = asks(None, limit.map(|it| it << 20));
        it.resources.memory_request = Some(request << 20).filter(|it| *it > 0);
        it
    };
    let mib = |amount: Option<u64>| amount.map(|it| it << 20);
    for (what, node, container, min, high, group) in [
        ("v1", &OLD, both(10, Some(20)), None, None, false),
        ("off", &V2, both(10, Some(20)), None, None, true),
        ("on", &QOS, both(10, Some(20)), Some(10), Some(19), true),
        ("guaranteed", &QOS, both(10, Some(10)), Some(10), None, true),
        ("best effort", &QOS, both(0, None), None, Some(900), true),
    ] {
        let pod = pod_of(vec![container]);
        let found = limits(&pod, &pod.containers[0], node).unwrap();
        assert_eq!(found.memory_min, mib(min), "{what}");
        let near = |it: u64| it.next_multiple_of(1 << 20);
        assert_eq!(found.memory_high.map(near), mib(high), "{what}");
        assert_eq!(found.oom_group, group, "{what}");
        assert_eq!(limits::pod_limits(&pod, node).memory_min, mib(min), "{what}");
    }
}

#[test]
fn limits_that_the_kernel_cannot_keep_are_left_out() {
    const PI: NodeLimits<'static> = NodeLimits {
        memory_qos: true,
        unified: true,
        lacks: Lacks {
            memory: true,
            cpu: false,
            pids: true,
        },
        ..NONE
    };
    let mut container = asks(Some(200), Some(64 << 20));
    container.resources.memory_request = Some(32 << 20);
    let pod = pod_of(vec![container]);
    let found = limits(&pod, &pod.containers[0], &PI).unwrap();
    let whole = limits::pod_limits(&pod, &PI);
    for it in [&found, &whole] {
        assert_eq!(
            (it.memory_bytes, it.memory_min, it.memory_high, it.pids),
            (None, None, None, None)
        );
        assert!(
            !it.oom_group && it.cpu_quota_us.is_some() && it.cpu_shares.is_some(),
            "{it:?}"
        );
    }
}

#[test]
fn huge_pages_that_were_not_asked_for_are_denied() {
    const NODE: NodeLimits<'static> = NodeLimits {
        hugepages: &[2 << 20, 1 << 30],
        ..NONE
    };
    let mut asking = asks(Some(1), None);
    asking.resources.hugepages = vec![(2 << 20, 6 << 20)];
    let pod = pod_of(vec![asking, asks(Some(1), None)]);
    let found = |at: usize, node| limits(&pod, &pod.containers[at], node).unwrap().hugepages;
    assert_eq!(found(0, &NODE), [(2 << 20, 6 << 20), (1 << 30, 0)]);
    assert_eq!(found(1, &NODE), [(2 << 20, 0), (1 << 30, 0)]);
    assert_eq!(found(1, &NONE), []);
    assert_eq!(limits::pod_limits(&pod, &NODE).hugepages, [(2 << 20, 6 << 20)]);
}

#[test]
fn io_is_bounded_by_annotation() {
    for (annotations, expected) in [
        (vec![], Ok(vec![])),
        (
            vec![("skiff.io/io-max", "device=/dev/x,rbps=1Mi,wiops=10")],
            Ok(vec![(Some(1 << 20), None, None, Some(10))]),
        ),
        (
            vec![
                ("skiff.io/io-max", "device=/dev/x,rbps=1"),
                ("skiff.io/io-max.c", "device=/dev/x, wbps=2, riops=3"),
            ],
            Ok(vec![(None, Some(2), Some(3), None)]),
        ),
        (
            vec![("skiff.io/io-max", "device=/dev/x,rbps=1;device=/dev/x,wbps=2")],
            Ok(vec![(Some(1), None, None, None), (None, Some(2), None, None)]),
        ),
        (vec![("skiff.io/io-max.other", "?")], Ok(vec![])),
        (
            vec![("skiff.io/io-max", "rbps=1")],
            Err("annotation skiff.io/io-max: device= is missing"),
        ),
        (
            vec![("skiff.io/io-max.c", "device=/dev/y")],
            Err("annotation skiff.io/io-max.c: device /dev/y: not found"),
        ),
        (
            vec![("skiff.io/io-max", "device=/dev/x,rbps=fast")],
            Err("annotation skiff.io/io-max: rbps: \"fast\" must be a quantity above 0"),
        ),
        (
            vec![("skiff.io/io-max", "device=/dev/x,bps=1")],
            Err("annotation skiff.io/io-max: \"bps\" must be one of device, rbps, wbps, riops, wiops"),
        ),
        (
            vec![("skiff.io/io-max", "fast")],
            Err("annotation skiff.io/io-max: \"fast\" must be name=value"),
        ),
    ] {
        let mut pod = pod_of(vec![asks(None, None)]);
        let given = annotations
            .iter()
            .map(|(key, value)| ((*key).into(), (*value).into()));
        pod.annotations = given.collect();
        let found = limits(&pod, &pod.containers[0], &NONE).map(|it| {
            assert!(it.io.iter().all(|it| it.device == (8, 16)));
            let each = it
                .io
                .iter()
                .map(|it| (it.read_bytes, it.write_bytes, it.reads, it.writes));
            each.collect::<Vec<_>>()
        });
        assert_eq!(found, expected.map_err(str::to_owned), "{annotations:?}");
    }
}

#[test]
fn who_dies_first_when_memory_runs_out() {
    let burstable = |request: u64| {
        let mut it = asks(None, None);
        it.resources.memory_request = Some(request);
        it
    };
    let storage = || {
        let mut it = asks(None, None);
        it.resources.storage_limit = Some(1);
        it
    };
    for (what, init, containers, expected) in [
        ("best effort", vec![], vec![asks(None, None)], 1000),
        ("storage says nothing", vec![], vec![storage()], 1000),
        ("guaranteed", vec![], vec![asks(Some(1), Some(1))], -997),
        (
            "an init container without limits",
            vec![asks(None, None)],
            vec![asks(Some(1), Some(1))],
            999,
        ),
        ("a fourth", vec![], vec![burstable(250)], 750),
        ("next to nothing", vec![], vec![burstable(0), burstable(1)], 999),
        ("all of it", vec![], vec![burstable(1000)], 2),
    ] {
        let mut pod = pod_of(containers);
        pod.init_containers = init;
        assert_eq!(
            limits::oom_score_adj(&pod, &pod.containers[0], 1000),
            expected,
            "{what}"
        );
    }
    let mut pod = pod_of(vec![burstable(400)]);
    pod.init_containers = vec![sidecar(burstable(10))];
    assert_eq!(limits::oom_score_adj(&pod, &pod.init_containers[0], 1000), 600);
    // The 200 that nobody asked for by itself are everybody's.
    let mut pod = pod_of(vec![burstable(100), burstable(100)]);
    pod.resources.memory_request = Some(400);
    assert_eq!(limits::oom_score_adj(&pod, &pod.containers[0], 1000), 800);
}

/// Source: Kubernetes documentation, "Downward API", information available via `resourceFieldRef`.
#[test]
fn a_resource_field_is_rounded_up_and_falls_back_to_the_node() {
    let mut pod = pod_of(vec![asks(Some(250), Some(1 << 20)), asks(None, None)]);
    pod.containers[1].name = "bare".into();
    pod.containers[0].resources.hugepages = vec![(2 << 20, 4 << 20)];
    pod.containers[0].resources.storage_request = Some(1500);
    pod.init_containers = vec![sidecar(asks(Some(1500), None))];
    pod.init_containers[0].name = "side".into();
    let facts = Facts {
        node: "n",
        host_ip: "",
        pod_ip: None,
        hostname: "n",
        node_cpu_milli: 3500,
        node_memory: 1,
        node_storage: 4096,
        limits: &NONE,
        seccomp_dir: Path::new("/"),
        apparmor: None,
        pod_cgroup: String::new(),
        run: Path::new("/"),
        state: Path::new("/"),
        layers: Path::new("/containers"),
        bounding: &[],
        namespaces: Namespaces::default(),
        volumes: Path::new("/"),
        claim: &|_| None,
    };
    use ResourceName::{Cpu, EphemeralStorage, HugePages, Memory};
    for (container, request, name, divisor, expected) in [
        ("", false, Cpu, 1000, Some("1")),
        ("", false, Cpu, 1, Some("250")),
        ("", false, Memory, 1000, Some("1048576")),
        ("", false, Memory, 1000 << 10, Some("1024")),
        ("", true, EphemeralStorage, 1000 * 1000, Some("2")),
        ("", false, HugePages(2 << 20), 1000, Some("4194304")),
        ("", false, HugePages(1 << 30), 1000, Some("0")),
        ("bare", false, Cpu, 1000, Some("4")),
        ("bare", true, Cpu, 1000, Some("0")),
        ("bare", false, Memory, 1000 << 20, Some("1000")),
        ("bare", false, EphemeralStorage, 1000, Some("4096")),
        ("side", false, Cpu, 1000, Some("2")),
        ("none", false, Cpu, 1000, None),
    ] {
        let wanted = ResourceField {
            container: container.into(),
            request,
            resource: name,
            divisor_milli: divisor,
        };
        let found = resource(&pod, "c", &wanted, &facts);
        assert_eq!(found.ok().as_deref(), expected, "{container} {name:?} {divisor}");
    }
}
