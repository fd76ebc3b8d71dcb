//! Files that follow their objects, and PersistentVolumes that go.

use skiff_protocol::wire::spec::{
    DownwardFile, DownwardValue, FieldPath, Object, PersistentVolume, PodSpec, Projection, Volume,
    VolumeSource,
};

use crate::bench::{check, config_map, config_map_with, pod_with};

fn mounts(name: &str, source: VolumeSource) -> PodSpec {
    pod_with(name, |it| {
        it.volumes = vec![Volume {
            name: "files".to_owned(),
            source,
        }];
    })
}

fn reads_config(name: &str) -> PodSpec {
    mounts(
        name,
        VolumeSource::Config {
            secret: false,
            name: "settings".to_owned(),
            items: Vec::new(),
            default_mode: 0o644,
            optional: false,
        },
    )
}

fn reads_labels(label: &str) -> PodSpec {
    let file = DownwardFile {
        path: "labels".to_owned(),
        mode: None,
        value: DownwardValue::Field(FieldPath::Labels),
    };
    let source = VolumeSource::Projected {
        sources: vec![Projection::Downward(vec![file])],
        default_mode: 0o644,
    };
    let mut pod = mounts("down", source);
    pod.labels.insert("a".to_owned(), label.to_owned());
    pod
}

fn claims(name: &str) -> PodSpec {
    mounts(
        name,
        VolumeSource::Claim {
            name: "data".to_owned(),
            read_only: false,
        },
    )
}

fn volume(drop: bool) -> Object {
    Object::Volume(PersistentVolume {
        name: "pv-1".to_owned(),
        claim: ("default".to_owned(), "data".to_owned()),
        capacity: 1 << 30,
        drop,
    })
}

#[test]
fn mounted_files_follow_their_objects() {
    check("volumes-refresh", |b| {
        let pods = |label: &str| {
            [
                reads_config("conf"),
                reads_labels(label),
                pod_with("plain", |_| {}),
            ]
            .map(Object::Pod)
        };
        let with =
            |label: &str, map: Object| -> Vec<Object> { pods(label).into_iter().chain([map]).collect() };
        b.desired(&with("1", config_map("settings")));
        for name in ["conf", "down", "plain"] {
            b.run(name);
        }
        b.note("the ConfigMap changes");
        b.desired(&with("1", config_map_with("settings", "new")));
        b.note("a label changes");
        b.desired(&with("2", config_map_with("settings", "new")));
        b.note("another ConfigMap");
        b.desired(&with("2", config_map("other")));
    });
}

#[test]
fn a_volume_goes_when_nobody_uses_it_any_more() {
    check("volumes-drop", |b| {
        b.desired(&[Object::Pod(claims("web")), volume(false)]);
        b.run("web");
        b.note("not spoken of any more, which says nothing about its files");
        b.desired(&[Object::Pod(claims("web"))]);
        b.note("to go, but the Pod is still there");
        b.desired(&[Object::Pod(claims("web")), volume(true)]);
        b.desired(&[volume(true)]);
        b.wait(1);
        b.exited("web/app#0", 137);
        b.removed("web");
        b.note("gone from the index as well");
        b.desired(&[]);
        b.note("to go, and then not, before it went");
        b.desired(&[Object::Pod(claims("next")), volume(false)]);
        b.run("next");
        b.desired(&[Object::Pod(claims("next")), volume(true)]);
        b.desired(&[Object::Pod(claims("next")), volume(false)]);
        b.desired(&[volume(false)]);
        b.wait(1);
        b.exited("next/app#0", 137);
        b.removed("next");
        b.hold = true;
        b.desired(&[volume(true)]);
        b.note("nothing goes before the journal has it");
        b.answer(true);
    });
}
