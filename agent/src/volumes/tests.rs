//! Whole Pods: what is made for them, kept, brought up to date and refused.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

use skiff_protocol::wire::spec::{
    ConfigData, DownwardFile, DownwardValue, FieldPath, HostPathType, PodSecurity, Projection,
};

use super::*;
use crate::plan::mounts_tests::facts;

struct Node {
    dir: tempfile::TempDir,
    objects: RefCell<BTreeMap<(bool, String), String>>,
}

impl Drop for Node {
    fn drop(&mut self) {
        skiff_sys::mount::unmount_all_under(self.dir.path()).unwrap();
    }
}

impl Node {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            objects: RefCell::default(),
        }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// A ConfigMap or Secret whose one key, `k`, has this value; `None` removes it.
    fn object(&self, secret: bool, name: &str, value: Option<&str>) {
        let mut objects = self.objects.borrow_mut();
        match value {
            Some(value) => drop(objects.insert((secret, name.to_owned()), value.to_owned())),
            None => drop(objects.remove(&(secret, name.to_owned()))),
        }
    }

    fn with<R>(&self, act: impl FnOnce(&Facts<'_>, Lookup<'_>) -> R) -> R {
        let (run, state, volumes) = (self.path("run"), self.path("state"), self.path("pv"));
        let lookup = |secret: bool, name: &str| {
            let objects = self.objects.borrow();
            let value = objects.get(&(secret, name.to_owned()))?;
            Some(ConfigData {
                namespace: "default".into(),
                name: name.to_owned(),
                data: [("k".to_owned(), value.as_bytes().to_vec())].into(),
            })
        };
        act(&facts(&run, &state, &volumes), &lookup)
    }

    fn prepare(&self, pod: &PodSpec) -> Result<Vec<Unowned>, String> {
        self.with(|facts, lookup| prepare(pod, "c-0", 1 << 20, facts, lookup))
    }

    fn refresh(&self, pod: &PodSpec) -> Vec<String> {
        self.with(|facts, lookup| refresh(pod, facts, lookup))
    }

    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.path(path)).ok()
    }
}

fn pod(volumes: Vec<(&str, VolumeSource)>) -> PodSpec {
    PodSpec {
        name: "p".into(),
        namespace: "default".into(),
        hostname: "p".into(),
        volumes: volumes
            .into_iter()
            .map(|(name, source)| Volume {
                name: name.to_owned(),
                source,
            })
            .collect(),
        ..Default::default()
    }
}

fn config(secret: bool, name: &str, optional: bool) -> VolumeSource {
    VolumeSource::Config {
        secret,
        name: name.to_owned(),
        items: Vec::new(),
        default_mode: 0o644,
        optional,
    }
}

fn claim_of(name: &str, read_only: bool) -> VolumeSource {
    VolumeSource::Claim {
        name: name.to_owned(),
        read_only,
    }
}

#[test]
fn what_cannot_be_made_is_said_in_a_kubelets_words() {
    let host = |path: &str| VolumeSource::HostPath {
        path: path.to_owned(),
        kind: HostPathType::Directory,
    };
    for (source, expected) in [
        (
            config(false, "no", false),
            "MountVolume.SetUp failed for volume \"v\" : configmap \"no\" not found",
        ),
        (
            config(true, "no", false),
            "MountVolume.SetUp failed for volume \"v\" : secret \"no\" not found",
        ),
        (
            host("/dev/null"),
            "MountVolume.SetUp failed for volume \"v\" : hostPath type check failed: /dev/null is not a directory",
        ),
        (
            claim_of("other", false),
            "persistentvolumeclaim \"other\" not found",
        ),
    ] {
        let node = Node::new();
        assert_eq!(node.prepare(&pod(vec![("v", source)])).unwrap_err(), expected);
    }
}

#[test]
fn a_pod_finds_its_files() {
    let node = Node::new();
    node.object(false, "cm", Some("1"));
    node.object(true, "s", Some("2"));
    let memory = VolumeSource::EmptyDir {
        memory: true,
        size_limit: None,
    };
    let disk = VolumeSource::EmptyDir {
        memory: false,
        size_limit: None,
    };
    let mut pod = pod(vec![
        ("cm", config(false, "cm", false)),
        ("s", config(true, "s", false)),
        ("none", config(true, "no", true)),
        ("memory", memory),
        ("disk", disk),
        ("claim", claim_of("claim", false)),
    ]);
    pod.security = PodSecurity {
        fs_group: Some(4242),
        ..Default::default()
    };
    let done = node.prepare(&pod);
    let bounded = |path: &str| fs::write(node.path(path), vec![0; 2 << 20]).is_err();
    let bounded = bounded("run/volumes/memory/big") && bounded("run/files/term/c-0");
    let memory = fs::metadata(node.path("run/volumes/memory")).unwrap();
    assert_eq!(done.unwrap(), []);
    assert!(
        bounded,
        "without a size it is what Pods may use, and last words have theirs"
    );
    assert_eq!((memory.gid(), memory.mode() & 0o7777), (4242, 0o3777));
    assert_eq!(node.read("run/volumes/cm/k").as_deref(), Some("1"));
    assert_eq!(node.read("run/volumes/s/k").as_deref(), Some("2"));
    for (path, gid, mode) in [
        ("run/volumes/cm/k", 4242, 0o644),
        ("run/volumes/none", 4242, 0o2755),
        ("state/volumes/disk", 4242, 0o2777),
        ("pv/pvc-1", 4242, 0o2777),
        ("run/files/term/c-0", 0, 0o666),
        ("run/files/etc/hosts", 0, 0o644),
    ] {
        let found = fs::metadata(node.path(path)).unwrap();
        assert_eq!((found.gid(), found.mode() & 0o7777), (gid, mode), "{path}");
    }
}

#[test]
fn mounted_files_follow_their_objects() {
    let node = Node::new();
    let projected = VolumeSource::Projected {
        sources: vec![
            Projection::Config {
                secret: true,
                name: "s".into(),
                items: Vec::new(),
                optional: false,
            },
            Projection::Downward(vec![DownwardFile {
                path: "labels".into(),
                mode: None,
                value: DownwardValue::Field(FieldPath::Labels),
            }]),
        ],
        default_mode: 0o600,
    };
    let mut pod = pod(vec![
        ("must", config(false, "must", false)),
        ("may", config(false, "may", true)),
        ("all", projected),
    ]);
    for (secret, name) in [(false, "must"), (false, "may"), (true, "s")] {
        node.object(secret, name, Some("1"));
    }
    assert!(node.refresh(&pod).is_empty());
    assert!(
        !node.path("run/volumes/must").exists(),
        "nothing is made before a start"
    );
    node.prepare(&pod).unwrap();
    let seen = |path: &str| node.read(&format!("run/volumes/{path}")).unwrap_or_default();
    let version = |name: &str| fs::read_link(node.path(&format!("run/volumes/{name}/..data"))).unwrap();
    let before = version("must");
    assert!(node.refresh(&pod).is_empty());
    assert_eq!(version("must"), before, "the same again writes nothing");

    for (secret, name) in [(false, "must"), (false, "may"), (true, "s")] {
        node.object(secret, name, Some("2"));
    }
    pod.labels.insert("a".into(), "b".into());
    assert!(node.refresh(&pod).is_empty());
    assert_eq!((seen("must/k"), seen("may/k")), ("2".into(), "2".into()));
    assert_eq!(
        (seen("all/k"), seen("all/labels")),
        ("2".into(), "a=\"b\"".into())
    );

    for (secret, name) in [(false, "must"), (false, "may"), (true, "s")] {
        node.object(secret, name, None);
    }
    assert_eq!(
        node.refresh(&pod),
        [
            "MountVolume.SetUp failed for volume \"must\" : configmap \"must\" not found",
            "MountVolume.SetUp failed for volume \"all\" : secret \"s\" not found",
        ]
    );
    assert_eq!((seen("must/k"), seen("may/k")), ("2".into(), String::new()));
    assert_eq!(seen("all/k"), "2");
    assert!(node.path("run/volumes/may/..data").exists());
    node.prepare(&pod)
        .expect("a container starts again without an object that it had");
    node.object(false, "must", Some("3"));
    node.prepare(&pod).unwrap();
    assert_eq!(seen("must/k"), "3", "a start finds what is true then");
}

#[test]
fn a_claims_files_are_given_to_the_group_once() {
    let gid = |node: &Node| fs::metadata(node.path("pv/pvc-1/f")).unwrap().gid();
    for (read_only, on_mismatch, first, second) in [
        (false, false, 4242, 4242),
        (true, false, 0, 0),
        // The root is not as it must be yet; then it is.
        (false, true, 4242, 0),
    ] {
        let node = Node::new();
        fs::create_dir_all(node.path("pv/pvc-1")).unwrap();
        fs::write(node.path("pv/pvc-1/f"), "").unwrap();
        let mut pod = pod(vec![("v", claim_of("claim", read_only))]);
        pod.security = PodSecurity {
            fs_group: Some(4242),
            fs_group_on_root_mismatch: on_mismatch,
            ..Default::default()
        };
        assert_eq!(node.prepare(&pod).unwrap(), []);
        assert_eq!(gid(&node), first, "{read_only} {on_mismatch}");
        std::os::unix::fs::chown(node.path("pv/pvc-1/f"), None, Some(0)).unwrap();
        node.prepare(&pod).unwrap();
        assert_eq!(gid(&node), 0, "once a Pod and boot");
        // Another Pod, or another boot.
        skiff_sys::mount::unmount_all_under(&node.path("run")).unwrap();
        fs::remove_dir_all(node.path("run")).unwrap();
        node.prepare(&pod).unwrap();
        assert_eq!(gid(&node), second, "{read_only} {on_mismatch}");
    }
}

#[test]
fn many_files_are_left_to_a_thread() {
    let node = Node::new();
    fs::create_dir_all(node.path("pv/pvc-1")).unwrap();
    for at in 0..=OWNED_AT_ONCE {
        fs::write(node.path(&format!("pv/pvc-1/{at}")), "").unwrap();
    }
    let mut pod = pod(vec![("v", claim_of("claim", false))]);
    pod.security.fs_group = Some(4242);
    let left = node.prepare(&pod).unwrap();
    let [it] = &left[..] else { panic!("{left:?}") };
    assert!(!owner::matches(&it.path, 4242));
    give_to_group(&it.path, it.group, usize::MAX).unwrap();
    note_owned(&it.done).unwrap();
    assert!(owner::matches(&it.path, 4242));
    assert_eq!(node.prepare(&pod).unwrap(), []);
}

#[test]
fn last_words_are_kept_for_one_attempt() {
    let dir = tempfile::tempdir().unwrap();
    for (id, expected) in [
        ("c-0", "c-0"),
        ("c-1-0", "c-0 c-1-0"),
        ("c-1", "c-1 c-1-0"),
        ("c-2", "c-1-0 c-2"),
    ] {
        last_words(&plan::termination_path(dir.path(), id)).unwrap();
        let mut names: Vec<_> = fs::read_dir(dir.path().join("files/term"))
            .unwrap()
            .map(|it| it.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names.join(" "), expected);
    }
}

#[test]
fn a_pod_that_is_gone_gets_no_directory() {
    let dir = tempfile::tempdir().unwrap();
    assert!(note_owned(&dir.path().join("gone/owned/v")).is_err());
    assert!(!dir.path().join("gone").exists());
}
