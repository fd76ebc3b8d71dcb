//! When a condition stands, what the core is told, and what is over its limit.

use std::os::unix::fs::symlink;

use skiff_protocol::wire::spec::{Container, PodSpec, Volume, VolumeSource};

use super::*;
use crate::config::Threshold;

fn watch() -> Watch {
    Watch {
        memory: Signal::default(),
        disk: Signal::default(),
        pids: Signal::default(),
        most_pids: 1000,
        next: Instant::now(),
        stalled: None,
        measuring: None,
        measured: None,
        files: BTreeMap::new(),
        told: [false; 3],
        read_only: false,
    }
}

fn memory(available: u64) -> Reading {
    Reading {
        memory: Some(Amount {
            total: 1000 << 20,
            available: available << 20,
        }),
        ..Default::default()
    }
}

fn cgroups() -> (tempfile::TempDir, Cgroups) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("cgroup.controllers"), "memory pids\n").unwrap();
    let cgroups = Cgroups::detect(dir.path()).unwrap();
    (dir, cgroups)
}

#[test]
fn a_condition_stands_at_least_as_long_as_it_is_held() {
    let limits = Eviction::default();
    let start = Instant::now();
    let (dir, cgroups) = cgroups();
    let pod = dir.path().join(format!("skiff/{}", Uid([1; 16])));
    fs::create_dir_all(&pod).unwrap();
    fs::write(pod.join("memory.current"), "5000").unwrap();
    fs::write(pod.join("memory.stat"), "anon 1\ninactive_file 1000\n").unwrap();
    let mut watch = watch();
    // Seconds, MiB that are available, whether the condition stands, whether the core is told and of what use.
    for (second, available, stands, told) in [
        (0, 60, false, None),
        (10, 49, true, Some(Some(4000))),
        (11, 49, true, Some(Some(4000))),
        (12, 51, true, None),
        (30, 40, true, Some(Some(4000))),
        (31, 60, true, None),
        (59, 60, true, None),
        (60, 60, false, Some(None)),
        (70, 60, false, None),
    ] {
        let now = start + Duration::from_secs(second);
        let stood = watch.memory.stands();
        assert_eq!(
            watch.judge(&memory(available), &limits, now),
            stood != stands,
            "{second}"
        );
        let [condition, ..] = &watch.conditions()[..] else {
            panic!()
        };
        let reason = if stands {
            "NodeHasInsufficientMemory"
        } else {
            "NodeHasSufficientMemory"
        };
        assert_eq!(
            (condition.status, condition.reason.as_str()),
            (stands, reason),
            "{second}"
        );
        let found = watch.pressure([Uid([1; 16])].into_iter(), &cgroups, "skiff", false);
        assert_eq!(
            found.as_ref().map(|it| it.usage.first().map(|it| it.memory)),
            told,
            "{second}"
        );
        let message = found.and_then(|it| it.memory);
        assert_eq!(message.is_some(), told == Some(Some(4000)), "{second}");
        if let Some(message) = message {
            let expected = format!("Threshold quantity: 50Mi, available: {available}Mi");
            assert_eq!(message, expected);
        }
        let next = watch.next.duration_since(now);
        assert_eq!(next, if stands { SHORT } else { EASE }, "{second}");
    }
}

#[test]
fn each_signal_has_its_threshold() {
    let disk = |available, files_free| Reading {
        disk: Some(Space {
            total: 1000,
            available,
            files: 100,
            files_free,
            read_only: false,
        }),
        ..Default::default()
    };
    let pids = |available| Reading {
        pids: Some(Amount {
            total: 1000,
            available,
        }),
        ..Default::default()
    };
    let limits = Eviction {
        memory_available: Some(Threshold::Amount(200 << 20)),
        ..Default::default()
    };
    for (reading, expected) in [
        (memory(200), [false, false, false]),
        (memory(199), [true, false, false]),
        (disk(50, 5), [false, false, false]),
        (disk(49, 5), [false, true, false]),
        (disk(50, 4), [false, true, false]),
        (pids(100), [false, false, false]),
        (pids(99), [false, false, true]),
        (Reading::default(), [false, false, false]),
    ] {
        let mut watch = watch();
        watch.judge(&reading, &limits, Instant::now());
        let found: Vec<bool> = watch.conditions().iter().map(|it| it.status).collect();
        assert_eq!(found, expected, "{reading:?}");
    }
}

#[test]
fn for_the_disk_nobody_is_named_before_files_were_counted() {
    let limits = Eviction::default();
    let now = Instant::now();
    let (_dir, cgroups) = cgroups();
    let mut watch = watch();
    assert_eq!(watch.to_measure(now), Some(All(false)), "limited Pods at first");
    watch.measure(Vec::new(), now);
    let reading = Reading {
        disk: Some(Space {
            total: 1000,
            available: 0,
            files: 0,
            files_free: 0,
            read_only: false,
        }),
        ..Default::default()
    };
    let later = now + Duration::from_secs(1);
    watch.judge(&reading, &limits, later);
    let pods = || [Uid([1; 16])].into_iter();
    let told = watch.pressure(pods(), &cgroups, "skiff", false).unwrap();
    assert_eq!((told.disk.is_some(), told.usage[0].disk), (true, 0));
    assert_eq!(watch.to_measure(later), Some(All(true)), "at once");
    watch.measured = Some(later);
    assert_eq!(watch.to_measure(later), None);
    let over = watch.counted(vec![Measured {
        pod: Uid([1; 16]),
        bytes: 7,
        over: None,
    }]);
    assert_eq!(over, []);
    let told = watch.pressure(pods(), &cgroups, "skiff", false).unwrap();
    assert_eq!((told.disk.is_some(), told.usage[0].disk), (true, 7));
    let told = watch.pressure(pods(), &cgroups, "skiff", true).unwrap();
    assert_eq!(told.usage[0].disk, 0, "images may make room instead");
}

#[test]
fn what_is_held_is_told_once_nothing_is_short() {
    let limits = Eviction::default();
    let (_dir, cgroups) = cgroups();
    let mut watch = watch();
    let now = Instant::now();
    let both = |memory: u64, pids: u64| Reading {
        pids: Some(Amount {
            total: 100,
            available: pids,
        }),
        ..self::memory(memory)
    };
    for (second, reading, expected) in [
        (0, both(10, 5), Some([true, false, true])),
        (1, both(90, 5), Some([false, false, true])),
        (2, both(90, 90), Some([true, false, true])),
        (3, both(90, 90), None),
        (30, both(90, 90), Some([false, false, true])),
        (31, both(90, 90), Some([false; 3])),
        (32, both(90, 90), None),
    ] {
        watch.judge(&reading, &limits, now + Duration::from_secs(second));
        let found = watch.pressure(std::iter::empty(), &cgroups, "skiff", false);
        let found = found.map(|it| [it.memory, it.disk, it.pids].map(|it| it.is_some()));
        assert_eq!(found, expected, "{second}");
    }
}

fn limited(container: Option<u64>, volume: Option<u64>) -> PodSpec {
    let mut spec = Container {
        name: "c".into(),
        ..Default::default()
    };
    spec.resources.storage_limit = container;
    let source = VolumeSource::EmptyDir {
        memory: false,
        size_limit: volume,
    };
    PodSpec {
        containers: vec![spec],
        volumes: vec![Volume {
            name: "v".into(),
            source,
        }],
        ..Default::default()
    }
}

#[test]
fn what_is_over_its_limit_is_said_as_a_kubelet_says_it() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().to_owned();
    for (path, bytes) in [
        ("containers/c-0/upper/sub/file", 64 << 10),
        ("containers/c-x/upper/other", 1 << 20),
        ("containers/c-0/work/file", 1 << 20),
        ("volumes/v/file", 128 << 10),
        ("volumes/w/file", 1 << 20),
    ] {
        let path = state.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, vec![1; bytes]).unwrap();
    }
    let volume = state.join("volumes/v");
    fs::hard_link(volume.join("file"), volume.join("again")).unwrap();
    symlink(state.join("volumes/w"), volume.join("link")).unwrap();
    let kib = |amount: u64| Some(amount << 10);
    for (pod, limited, expected) in [
        (limited(None, None), false, None),
        (limited(kib(1024), kib(256)), true, None),
        (
            limited(None, kib(64)),
            true,
            Some("Usage of EmptyDir volume \"v\" exceeds the limit \"64Ki\". "),
        ),
        (
            limited(kib(96), None),
            true,
            Some("Pod ephemeral local storage usage exceeds the total limit of containers 96Ki. "),
        ),
    ] {
        let it = ToMeasure::of(&pod, state.clone(), state.join("containers"));
        assert_eq!(it.is_limited(), limited);
        let found = it.measure();
        assert_eq!(found.over.as_deref(), expected);
        assert!(
            (192 << 10..320 << 10).contains(&found.bytes),
            "what is counted: {}",
            found.bytes
        );
    }
    // A container may exceed its own while the Pod does not exceed the sum.
    let mut pod = limited(kib(32), None);
    pod.containers.push(Container {
        name: "d".into(),
        ..Default::default()
    });
    pod.containers[1].resources.storage_limit = kib(1024);
    assert_eq!(
        ToMeasure::of(&pod, state.clone(), state.join("containers"))
            .measure()
            .over
            .as_deref(),
        Some("Container c exceeded its local ephemeral storage limit \"32Ki\". ")
    );
}

#[tokio::test]
async fn the_first_look_is_due_at_once_and_files_are_counted_beside() {
    let mut watch = Watch::new();
    assert_eq!(watch.stalled.is_some(), Path::new(PSI).exists());
    assert!(matches!(watch.wake().await, Wake::Look));
    assert!(watch.amount_of_pids().is_some_and(|it| it.available < it.total));
    let now = Instant::now();
    watch.next = now + EASE;
    let dir = tempfile::tempdir().unwrap();
    watch.measure(
        vec![ToMeasure::of(
            &PodSpec::default(),
            dir.path().to_owned(),
            dir.path().join("containers"),
        )],
        now,
    );
    let measured = loop {
        if let Wake::Measured(measured) = watch.wake().await {
            break measured;
        }
    };
    assert_eq!(measured.len(), 1);
    assert!(watch.measuring.is_none());
}

#[test]
fn a_read_only_disk_is_a_condition_while_it_is_so() {
    let mut watch = watch();
    let reading = |read_only| Reading {
        disk: Some(Space {
            total: 1000,
            available: 1000,
            files: 0,
            files_free: 0,
            read_only,
        }),
        ..Default::default()
    };
    let now = Instant::now();
    let kinds = |watch: &Watch| -> usize { watch.conditions().len() };
    for (read_only, changed, conditions) in [
        (false, false, 3),
        (true, true, 4),
        (true, false, 4),
        (false, true, 3),
    ] {
        // The condition of the room itself has been found good before.
        assert_eq!(
            watch.judge(&reading(read_only), &Eviction::default(), now),
            changed
        );
        assert_eq!(kinds(&watch), conditions, "{read_only}");
    }
}
