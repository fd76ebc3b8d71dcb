//! Mistakes in files, each with the whole text that the user sees.

use super::*;

/// The text that `file.yaml` leads to: every complaint with its line and caret, then every warning.
fn shown(text: &str) -> String {
    let source = Source {
        name: "file.yaml".to_owned(),
        bytes: text.as_bytes().to_vec(),
    };
    let checked = check_all(vec![source]);
    let errors = checked.errors.iter().map(|it| it.render(Colours::none()));
    let warnings = checked
        .warnings
        .iter()
        .map(|it| format!("warning: {}", it.line()));
    errors.chain(warnings).map(|it| it + "\n").collect()
}

#[track_caller]
fn check(text: &str, expected: &str) {
    assert_eq!(shown(text), expected.trim_start_matches('\n'), "{text}");
}

#[test]
fn a_good_file_has_nothing_to_show() {
    check(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  containers:\n  - name: a\n    image: nginx\n",
        "",
    );
}

#[test]
fn a_number_where_text_belongs() {
    check(
        "apiVersion: v1
kind: Pod
metadata:
  name: database
spec:
  containers:
    - name: server
      image: mysql:5.7
      env:
        - name: MYSQL_ROOT_PASSWORD
          value: 123456
",
        r#"
file.yaml:11:18: spec.containers[0].env[0].value: expected a string, found the number 123456; write it in quotes: "123456"
  11 |           value: 123456
     |                  ^^^^^^
"#,
    );
}

#[test]
fn a_kind_in_lower_case_and_a_field_with_one_letter_too_many() {
    check(
        "apiVersion: v1
kind: pod
metadata:
  name: by-hand
spec:
  containers:
  - images: team/app
    name: app
    ports:
    - containerPort: 8080
      protocol: TCP
",
        r#"
file.yaml:2:7: kind: Unsupported value: "pod": supported values: "Pod" (did you mean "Pod"?)
  2 | kind: pod
    |       ^^^
file.yaml:7:5: spec.containers[0].images: unknown field (did you mean "image"?)
  7 |   - images: team/app
    |     ^^^^^^
"#,
    );
}

#[test]
fn one_port_of_the_node_for_two_containers() {
    check(
        "apiVersion: v1
kind: Pod
metadata:
  name: two
spec:
  containers:
  - name: a
    image: nginx
    ports:
    - containerPort: 8080
      hostPort: 8080
  - name: b
    image: nginx
    ports:
    - containerPort: 8080
      hostPort: 8080
",
        r#"
file.yaml:16:17: spec.containers[1].ports[0].hostPort: Duplicate value: "TCP//8080": another container of this Pod already has this port of the node
  16 |       hostPort: 8080
     |                 ^^^^
"#,
    );
}

#[test]
fn an_api_version_under_a_wrong_key() {
    check(
        "apiVersion1: v1
kind: Pod
metadata:
  name: web
spec:
  containers:
  - name: web
    image: nginx:1.14.2
",
        r#"
file.yaml:1:1: apiVersion1: unknown field (did you mean "apiVersion"?)
  1 | apiVersion1: v1
    | ^^^^^^^^^^^
"#,
    );
}

#[test]
fn a_field_that_is_missing_is_shown_where_it_should_be() {
    check(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  containers:\n  - name: a\n",
        "
file.yaml:7:5: spec.containers[0].image: Required value
  7 |   - name: a
    |     ^
",
    );
    check(
        "apiVersion: v1\nkind: Pod\nmetadata: {}\n",
        r"
file.yaml:1:1: spec.containers: Required value: a Pod runs at least one container
  1 | apiVersion: v1
    | ^
file.yaml:3:1: metadata.name: Required value: name or generateName is required
  3 | metadata: {}
    | ^^^^^^^^
",
    );
}

#[test]
fn what_is_not_yet_honoured_is_a_warning() {
    check(
        "apiVersion: v1
kind: Pod
metadata:
  name: web
spec:
  runtimeClassName: kata
  containers:
  - name: a
    image: nginx
    stdinOnce: true
",
        "
warning: file.yaml:6:21: spec.runtimeClassName: not yet honoured by this version of Skiff; the Pod runs without it
warning: file.yaml:10:16: spec.containers[0].stdinOnce: not yet honoured by this version of Skiff; the Pod runs without it
",
    );
}

#[test]
fn files_that_are_no_manifest() {
    check(
        "apiVersion: v1\nkind: Pod\nkind: Pod\n",
        r#"
file.yaml:3:1: key "kind" stands twice in one object; the first is in line 2
  3 | kind: Pod
    | ^^^^
"#,
    );
    check(
        "just text\n",
        "
file.yaml:1:1: expected an object with apiVersion, kind and metadata
  1 | just text
    | ^^^^^^^^^
",
    );
    check(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n",
        r#"
file.yaml:2:7: kind: Unsupported value: "Deployment": supported values: "Pod", "ConfigMap", "Secret", "Namespace", "PersistentVolume", "PersistentVolumeClaim", "StorageClass"
  2 | kind: Deployment
    |       ^^^^^^^^^^
"#,
    );
    check(
        "kind:\n",
        "\nfile.yaml:1:5: kind: Required value: write kind: Pod, or another kind\n  1 | kind:\n    |     ^\n",
    );
}

#[test]
fn configuration_objects() {
    check(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  port: 80\n  on: yes\n  ok: 'yes'\n",
        r#"
file.yaml:5:9: data.port: expected a string, found the number 80; write it in quotes: "80"
  5 |   port: 80
    |         ^^
file.yaml:6:7: data.true: expected a string, found the boolean true; write it in quotes: "true"
  6 |   on: yes
    |       ^^^
"#,
    );
    check(
        "apiVersion: v1\nkind: Secret\nmetadata: {}\ndata: {password: hunter2}\n",
        r"
file.yaml:3:1: metadata.name: Required value: name is required
  3 | metadata: {}
    | ^^^^^^^^
file.yaml:4:18: data.password: expected base64; plain text goes under stringData
  4 | data: {password: hunter2}
    |                  ^^^^^^^
",
    );
    check(
        "apiVersion: v2\nkind: configmap\nmetadata: {name: a}\n",
        r#"
file.yaml:1:13: apiVersion: Unsupported value: "v2": supported values: "v1" (did you mean "v1"?)
  1 | apiVersion: v2
    |             ^^
file.yaml:2:7: kind: Unsupported value: "configmap": supported values: "Pod", "ConfigMap", "Secret", "Namespace", "PersistentVolume", "PersistentVolumeClaim", "StorageClass" (did you mean "ConfigMap"?)
  2 | kind: configmap
    |       ^^^^^^^^^
"#,
    );
}

/// Every document is checked: the second mistake is shown beside the first, and the good one between is not returned
/// alone.
#[test]
fn every_document_is_checked() {
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {nam: a}\n---\napiVersion: v1\nkind: ConfigMap\n\
                metadata: {name: b}\n---\nkind: List\napiVersion: v1\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: 7}}\n";
    check(
        text,
        r#"
file.yaml:3:12: metadata.nam: unknown field (did you mean "name"?)
  3 | metadata: {nam: a}
    |            ^^^
file.yaml:12:54: metadata.name: expected a string, found the number 7; write it in quotes: "7"
  12 | - {apiVersion: v1, kind: Namespace, metadata: {name: 7}}
     |                                                      ^
"#,
    );
}

#[test]
fn a_long_line_is_cut_around_the_place() {
    let text =
        r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"a": "b", "z": 1}}"#;
    let long = text.replace("\"b\"", &format!("\"{}\"", "b".repeat(500)));
    let shown = shown(&long);
    assert!(shown.lines().all(|line| line.chars().count() < 140), "{shown}");
    assert!(shown.contains("data.z: expected a string"), "{shown}");
    let lines: Vec<&str> = shown.lines().collect();
    let caret = lines[2].find('^').unwrap_or(0);
    assert_eq!(&lines[1][caret..=caret], "1", "{shown}");
}
