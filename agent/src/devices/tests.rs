//! Specifications that are read and refused, what they add, and who holds what.

use super::*;

const FUSE: &str = r#"{
  "cdiVersion": "0.6.0",
  "kind": "skiff.io/fuse",
  "devices": [
    {"name": "one", "containerEdits": {"env": ["FUSE=one"], "deviceNodes": [{"path": "/dev/fuse", "permissions": "rw"}]}},
    {"name": "two", "containerEdits": {"env": ["FUSE=two"], "additionalGids": [0, 44]}},
    {"name": "all", "containerEdits": {"env": ["FUSE=all"]}}
  ],
  "containerEdits": {
    "env": ["VENDOR=skiff"],
    "mounts": [{"hostPath": "/usr/share", "containerPath": "/fuse", "options": ["ro", "rbind", "nosuid"]}],
    "hooks": [{"hookName": "prestart", "path": "/bin/true", "args": ["true"], "timeout": 3}]
  }
}"#;

/// The same in YAML, as generators write it, for another kind.
const CAMERA: &str = "---
cdiVersion: 0.5.0
kind: vendor.com/camera
devices:
- name: all
  containerEdits:
    deviceNodes:
    - path: /dev/null
      hostPath: /dev/zero
      fileMode: 0640
      uid: 7
";

fn config(dirs: &[&Path], devices: &str) -> Config {
    let mut config: Config = toml::from_str(devices).unwrap();
    config.cdi_dirs = dirs.iter().map(|it| it.to_path_buf()).collect();
    config.check().unwrap();
    config
}

fn pod(id: u8) -> PodSpec {
    PodSpec {
        uid: Uid([id; 16]),
        ..Default::default()
    }
}

fn wanting(name: &str, resource: &str, count: u64) -> Container {
    let mut container = Container {
        name: name.into(),
        ..Default::default()
    };
    container.resources.extended = vec![(resource.into(), count)];
    container
}

fn nobody(_: Uid) -> bool {
    false
}

#[test]
fn a_specification_injects_its_node_variable_mount_and_hook() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("fuse.json"), FUSE).unwrap();
    fs::write(dir.path().join("camera.yaml"), CAMERA).unwrap();
    let config = config(&[dir.path()], "");
    let mut devices = Devices::look(&config, dir.path());
    assert_eq!(devices.broken(), [""; 0]);
    let there: Vec<_> = devices.extended().collect();
    assert_eq!(
        there,
        [("skiff.io/fuse".into(), 2), ("vendor.com/camera".into(), 1)],
        "`all` counts only where it is alone"
    );
    let mut asking = pod(1);
    asking
        .annotations
        .insert("cdi.k8s.io/x".into(), "vendor.com/camera=all".into());
    let edits = devices
        .edits(&asking, &wanting("c", "skiff.io/fuse", 1), &nobody)
        .unwrap();
    let mut container = ContainerConfig {
        env: vec!["FUSE=image".into(), "PATH=/bin".into()],
        ..Default::default()
    };
    edits.apply(&mut container);
    assert_eq!(container.env, ["PATH=/bin", "VENDOR=skiff", "FUSE=one"]);
    let node = |path: &str, host: &str, access: &str, mode, owner| Device {
        path: path.into(),
        host_path: host.into(),
        access: access.into(),
        mode,
        owner,
    };
    assert_eq!(
        container.devices,
        [
            node("/dev/fuse", "/dev/fuse", "rw", None, None),
            node("/dev/null", "/dev/zero", "rwm", Some(0o640), Some((7, 0))),
        ]
    );
    let mount = &container.mounts[0];
    assert_eq!(
        (
            mount.source.as_path(),
            mount.destination.as_path(),
            mount.read_only
        ),
        (Path::new("/usr/share"), Path::new("/fuse"), true)
    );
    assert_eq!(mount.options, ["nosuid"]);
    let hook = &container.hooks[0];
    assert_eq!((hook.stage.as_str(), hook.timeout), ("createRuntime", Some(3)));
}

#[test]
fn a_broken_specification_is_named_and_the_others_are_used() {
    for (name, text, expected) in [
        ("a.json", "{", "EOF while parsing"),
        ("a.json", &FUSE.replace("0.6.0", "2.0.0"), "cdiVersion: \"2.0.0\""),
        ("a.json", &FUSE.replace("skiff.io/fuse", "fuse"), "kind: \"fuse\""),
        (
            "a.json",
            &FUSE.replace("\"name\": \"two\"", "\"name\": \"one\""),
            "devices[1].name: \"one\" is given twice",
        ),
        (
            "a.json",
            &FUSE.replace("/dev/fuse", "dev/fuse"),
            "devices[0].containerEdits.deviceNodes[0].path: dev/fuse",
        ),
        (
            "a.json",
            &FUSE.replace("\"rw\"", "\"x\""),
            "devices[0].containerEdits.deviceNodes[0].permissions: \"x\"",
        ),
        (
            "a.json",
            &FUSE.replace("FUSE=two", "FUSE"),
            "devices[1].containerEdits.env[0]: \"FUSE\"",
        ),
        (
            "a.json",
            &FUSE.replace("prestart", "before"),
            "containerEdits.hooks[0].hookName: \"before\"",
        ),
        (
            "a.json",
            &FUSE.replace("additionalGids", "intelRdt"),
            "unknown field `intelRdt`",
        ),
        ("a.yaml", "kind: &a b\n", "line 1: "),
        (
            "a.yaml",
            "cdiVersion: 0.5.0\nkind: a/b\n",
            "missing field `devices`",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(name), text).unwrap();
        fs::write(dir.path().join("camera.yaml"), CAMERA).unwrap();
        let cdi = Cdi::load(&[dir.path().to_owned()]);
        let [why] = &cdi.broken[..] else {
            panic!("{text}: {:?}", cdi.broken);
        };
        let path = dir.path().join(name);
        let said = why.strip_prefix(&format!("{}: ", path.display())).unwrap();
        assert!(said.starts_with(expected), "{said}");
        assert!(cdi.kinds().contains_key("vendor.com/camera"), "{why}");
    }
}

#[test]
fn a_later_directory_hides_an_earlier_one_and_two_files_of_one_clash() {
    let dir = tempfile::tempdir().unwrap();
    let (etc, run) = (dir.path().join("etc"), dir.path().join("run"));
    for (dir, name, value) in [(&etc, "a", "etc"), (&run, "a", "run")] {
        fs::create_dir_all(dir).unwrap();
        let text = FUSE.replace("FUSE=one", &format!("FUSE={value}"));
        fs::write(dir.join(format!("{name}.json")), text).unwrap();
    }
    let dirs = [etc, run.clone(), dir.path().join("missing")];
    let one = [("skiff.io/fuse".to_owned(), "one".to_owned())];
    let cdi = Cdi::load(&dirs);
    assert!(cdi.edits(&one).unwrap().env.contains(&"FUSE=run".to_owned()));
    fs::write(run.join("b.json"), FUSE).unwrap();
    let cdi = Cdi::load(&dirs);
    assert_eq!(cdi.broken.len(), 3, "{:?}", cdi.broken);
    assert_eq!(
        cdi.edits(&one).unwrap_err(),
        "unresolvable CDI devices skiff.io/fuse=one"
    );
}

#[test]
fn a_device_is_held_by_one_pod_over_restarts_until_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let text = "devices = [{name = \"skiff.io/port\", paths = [\"/dev/null\", \"/dev/zero\"]}]";
    let config = config(&[], text);
    let paths = |edits: Edits| -> Vec<PathBuf> { edits.devices.into_iter().map(|it| it.path).collect() };
    let one = wanting("c", "skiff.io/port", 1);
    let mut devices = Devices::look(&config, dir.path());
    let take = |devices: &mut Devices, id| devices.edits(&pod(id), &one, &nobody).map(paths);
    assert_eq!(take(&mut devices, 1).unwrap(), [Path::new("/dev/null")]);
    assert_eq!(take(&mut devices, 2).unwrap(), [Path::new("/dev/zero")]);
    // A restart of the container, and one of the agent.
    let mut devices = Devices::look(&config, dir.path());
    assert_eq!(take(&mut devices, 2).unwrap(), [Path::new("/dev/zero")]);
    assert_eq!(
        take(&mut devices, 3).unwrap_err(),
        "requested number of devices unavailable for skiff.io/port. Requested: 1, Available: 0"
    );
    let edits = devices.edits(&pod(3), &one, &|uid| uid == Uid([2; 16])).unwrap();
    assert_eq!(paths(edits), [Path::new("/dev/zero")]);
    devices.release(Uid([1; 16]));
    assert_eq!(take(&mut devices, 4).unwrap(), [Path::new("/dev/null")]);
    assert_eq!(
        devices
            .edits(&pod(5), &wanting("c", "skiff.io/none", 1), &nobody)
            .unwrap_err(),
        "the node has no device of skiff.io/none"
    );
}

#[test]
fn containers_take_over_what_init_containers_held_and_share_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(
        &[],
        "devices = [{name = \"skiff.io/port\", paths = [\"/dev/null\"]}]",
    );
    let mut devices = Devices::look(&config, dir.path());
    let mut it = pod(1);
    it.init_containers = vec![wanting("init", "skiff.io/port", 1)];
    it.containers = vec![wanting("a", "skiff.io/port", 1), wanting("b", "skiff.io/port", 1)];
    let mut take = |spec: &Container| devices.edits(&it, spec, &nobody).map(|it| it.devices.len());
    assert_eq!(take(&it.init_containers[0]), Ok(1));
    assert_eq!(take(&it.containers[0]), Ok(1));
    assert!(take(&it.containers[1]).is_err());
}

#[test]
fn shared_devices_come_together_and_missing_ones_are_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(
        &[],
        "devices = [{name = \"skiff.io/cam\", paths = [\"/dev/null\", \"/dev/zero\"], count = 2, access = \"r\"},\
         {name = \"skiff.io/usb\", paths = [\"/dev/no-such\"]}, {name = \"skiff.io/file\", paths = [\"/etc/passwd\"]}]",
    );
    let mut devices = Devices::look(&config, dir.path());
    let cam = wanting("c", "skiff.io/cam", 1);
    for id in [1, 2] {
        let edits = devices.edits(&pod(id), &cam, &nobody).unwrap();
        assert_eq!(edits.devices.len(), 2);
        assert!(edits.devices.iter().all(|it| it.access == "r"));
    }
    assert!(devices.edits(&pod(3), &cam, &nobody).is_err());
    for (resource, expected) in [
        (
            "skiff.io/usb",
            "device /dev/no-such: No such file or directory (os error 2)",
        ),
        ("skiff.io/file", "device /etc/passwd: not a device"),
    ] {
        let error = devices
            .edits(&pod(4), &wanting("c", resource, 1), &nobody)
            .unwrap_err();
        assert_eq!(error, expected);
    }
    assert_eq!(numbers(Path::new("/dev/null"), false), Ok((1, 3)));
    assert!(numbers(Path::new("/dev/null"), true).is_err());
}

#[test]
fn annotations_name_whole_devices() {
    for (value, good) in [
        ("a.b/c=d", true),
        ("a.b/c=d, a.b/c=e:1", true),
        ("c=d", false),
        ("a.b/c", false),
        ("a.b/c=", false),
        ("", false),
    ] {
        let mut it = pod(1);
        it.annotations.insert("cdi.k8s.io/x".into(), value.into());
        it.annotations.insert("other".into(), "x".into());
        let found = by_annotation(&it);
        assert_eq!(found.is_ok(), good, "{value:?}: {found:?}");
    }
}
