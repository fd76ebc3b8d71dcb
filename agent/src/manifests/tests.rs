//! From files to static Pods, and what is said of those that are none.

use super::*;

const WEB: &str = "apiVersion: v1
kind: Pod
metadata:
  name: web
  labels: {app: web}
spec:
  containers:
  - name: app
    image: nginx:1.27
    command: [\"sh\", \"-c\", |
      echo up
      exec sleep 60]
";

fn node() -> NodeName {
    NodeName::parse("rover-7").unwrap()
}

fn of(text: &str) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.yaml");
    fs::write(&path, text).unwrap();
    one(&path, &node())
}

fn web() -> String {
    WEB.replace(
        "[\"sh\", \"-c\", |\n      echo up\n      exec sleep 60]",
        "[\"sh\", \"-c\", \"sleep 60\"]",
    )
}

/// Kubernetes documentation, "Create static Pods": the node's name is added to the Pod's.
#[test]
fn a_manifest_becomes_a_pod_of_this_node() {
    let (pod, warnings) = of(&web()).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(pod.name, ("default".to_owned(), "web-rover-7".to_owned()));
    let parsed = pod.parse().unwrap();
    assert_eq!((parsed.uid, parsed.name.as_str()), (pod.uid, "web-rover-7"));
    assert_eq!(parsed.labels["app"], "web");
    let value: Value = serde_json::from_slice(&pod.manifest).unwrap();
    assert_eq!(value["spec"]["nodeName"], "rover-7");
    let annotations = &value["metadata"]["annotations"];
    assert_eq!(annotations["kubernetes.io/config.source"], "file");
    assert_eq!(annotations["kubernetes.io/config.hash"], pod.uid.to_string());
}

#[test]
fn the_same_is_the_same_pod_and_all_else_another() {
    let uid = |text: &str| of(text).unwrap().0.uid;
    let same = format!("# a comment\n{}", web().replace("{app: web}", "\n    app: 'web'"));
    assert_eq!(uid(&web()), uid(&same));
    assert_ne!(uid(&web()), uid(&web().replace("1.27", "1.28")));
    assert_ne!(uid(&web()), uid(&web().replace("app: web}", "app: api}")));
    let other = NodeName::parse("rover-8").unwrap();
    assert_ne!(uid(&web()), of_text(web().as_bytes(), &other).unwrap().0.uid);
}

#[test]
fn what_is_wrong_is_named() {
    let check = |text: &str, expected: &str| {
        let error = of(text).unwrap_err();
        assert!(error.starts_with(expected), "{expected}\n{error}");
    };
    check("", "the file is empty");
    check("a: [", "line ");
    check(
        &web().replace("kind: Pod", "kind: Deployment"),
        "apiVersion and kind: ",
    );
    check(
        &web().replace("  name: web\n", ""),
        "metadata.name: Required value",
    );
    check(
        &web().replace("image:", "imgae:"),
        "line 9: spec.containers[0].imgae: ",
    );
    check(
        &web().replace("name: app", "name: App"),
        "line 8: spec.containers[0].name: ",
    );
    check(
        &web().replace("spec:\n", "spec:\n  nodeName: rover-8\n"),
        "spec.nodeName: ",
    );
    let with = |more: &str| format!("{}{more}", web());
    check(
        &with("    envFrom: [{configMapRef: {name: c}}]\n"),
        "a static Pod cannot read the ConfigMap \"c\"",
    );
    check(
        &with("    env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: k}}}]\n"),
        "a static Pod cannot read the Secret \"s\"",
    );
    check(
        &with("  volumes: [{name: v, persistentVolumeClaim: {claimName: data}}]\n"),
        "a static Pod cannot use the PersistentVolumeClaim \"data\"",
    );
    let long = "x".repeat(limits::STATIC_MANIFEST);
    check(
        &with(&format!("    env: [{{name: A, value: {long}}}]\n")),
        "the manifest has ",
    );
    check(
        &"#".repeat(FILE_BYTES as usize + 1),
        "is longer than 131072 bytes",
    );
    check(&format!("{}---\n{}", web(), web()), "line ");
}

#[test]
fn a_directory_is_read_in_order_and_a_second_of_one_name_refused() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write("b.yaml", &web());
    let json = web().replace("name: web", "name: db");
    let json = skiff_yaml::read(json.as_bytes()).unwrap()[0].value.to_string();
    write("a.yml", &web().replace("1.27", "1.28"));
    write("c.json", &json);
    write("d.yaml", "nonsense");
    for ignored in [".a.yaml", "a.yaml~", "a.yaml.dpkg-new", "README"] {
        write(ignored, &web());
    }
    fs::create_dir(dir.path().join("e.yaml")).unwrap();
    std::os::unix::fs::symlink("/no/such", dir.path().join("f.yaml")).unwrap();
    let files = files(dir.path()).unwrap();
    let found = read(&files, &node());
    let names: Vec<&str> = found.iter().map(|it| it.0.as_str()).collect();
    assert_eq!(names, ["a.yml", "b.yaml", "c.json", "d.yaml"]);
    let good: Vec<bool> = found.iter().map(|it| it.1.is_ok()).collect();
    assert_eq!(good, [true, false, true, false]);
    let error = found[1].1.as_ref().unwrap_err();
    assert!(
        error.contains("another file of the directory already is \"web-rover-7\""),
        "{error}"
    );
    assert!(super::files(Path::new("/no/such")).unwrap().is_empty());
}

/// Whatever lies there, the reader says so and ends: cut anywhere, and with bytes that are not meant to be there.
#[test]
fn no_file_takes_the_reader_down() {
    let text = web();
    for at in 0..text.len() {
        let _ = of_text(&text.as_bytes()[..at], &node());
        for byte in [
            "\0", "\t", ":", "- ", "{", "[", "\"", "&a ", "*a", "|", "\u{feff}", "%", "!", "\u{85}",
        ] {
            let _ = of_text(
                format!("{}{byte}{}", &text[..at], &text[at..]).as_bytes(),
                &node(),
            );
        }
    }
}
