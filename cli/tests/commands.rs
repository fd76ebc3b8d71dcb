//! What `skiff` says when there is no server to ask: help, mistakes in files, mistakes on the command line.

#![allow(clippy::unwrap_used, reason = "a test says by its line what failed")]

mod skiff;

use skiff::{Told, skiff};

/// A command line, its exit status, and a part of what it must say on standard output and standard error.
fn check(arguments: &[&str], status: i32, out: &str, err: &str) {
    let told: Told = skiff(arguments, "");
    assert_eq!(told.status, status, "{arguments:?}\n{told:?}");
    assert!(told.out.contains(out), "{arguments:?} lacks {out:?}\n{told:?}");
    assert!(told.err.contains(err), "{arguments:?} lacks {err:?}\n{told:?}");
    assert!(
        !told.err.contains("panicked") && !told.err.contains('\x1b'),
        "{told:?}"
    );
}

#[test]
fn command_lines() {
    let version = concat!("skiff ", env!("CARGO_PKG_VERSION"));
    check(&["--version"], 0, version, "");
    check(&["--help"], 0, "skiff up  ", "");
    check(&[], 2, "", "Usage: skiff");
    for command in [
        "server",
        "up",
        "node",
        "image",
        "apply",
        "get",
        "logs",
        "delete",
        "completion",
    ] {
        check(&[command, "--help"], 0, &format!("Usage: skiff {command}"), "");
    }
    for command in ["server", "up", "apply", "get", "logs", "delete", "completion"] {
        check(&[command, "--help"], 0, "Example", "");
    }
    for shell in ["bash", "zsh", "fish"] {
        check(&["completion", shell], 0, "enrol", "");
    }
    check(&["completion", "cmd"], 2, "", "invalid value 'cmd'");
    check(&["appply"], 2, "", "apply");
    check(&["apply"], 2, "", "--filename");
    check(&["delete"], 2, "", "KIND NAME");
    check(
        &["delete", "pod", "a", "--now", "--force"],
        2,
        "",
        "cannot be used with",
    );
    check(
        &["logs", "a", "--since", "soon"],
        2,
        "",
        "\"soon\" is no duration: write it as 90s, 5m or 1h30m",
    );
    check(
        &["server", "--data", "d", "--listen", "here"],
        2,
        "",
        "invalid socket address",
    );
    check(
        &["server", "--data", "d", "--broker-password-file", "x"],
        2,
        "",
        "--broker",
    );
    check(
        &["get", "pods", "-o", "xml"],
        2,
        "",
        "[possible values: wide, yaml, json, name]",
    );
}

/// What an example shows can be typed.
#[test]
fn examples_use_options_that_there_are() {
    for command in [
        &["server"][..],
        &["up"],
        &["apply"],
        &["get"],
        &["logs"],
        &["delete"],
        &["node", "enrol"],
        &["node", "remove"],
        &["image", "import"],
    ] {
        let help = skiff(&[command, &["--help"]].concat(), "").out;
        let (options, examples) = help.split_once("Example").unwrap();
        let words = examples.split_whitespace();
        let shown: Vec<&str> = words.filter(|word| word.starts_with("--")).collect();
        for word in shown {
            let known = options.split([' ', ',', '\n']).any(|option| option == word);
            assert!(known, "{command:?}: no option {word}");
        }
    }
}

#[test]
fn mistakes_that_need_no_server() {
    check(
        &["get", "podds"],
        1,
        "",
        "no kind of object is named \"podds\" (did you mean \"pods\"?)",
    );
    check(
        &["get", "pod/a", "b"],
        1,
        "",
        "either kind/name, or a kind and a name",
    );
    check(
        &["get", "pod", "a", "-l", "x=y"],
        1,
        "",
        "a name leaves nothing to select",
    );
    check(&["delete", "pod"], 1, "", "which one? Write KIND NAME");
    check(&["logs", "configmap/a"], 1, "", "only a Pod has logs");
    check(
        &["node", "enrol", "Rover 7"],
        1,
        "",
        "node name \"Rover 7\": must be 1 to 23 characters",
    );
    check(
        &["node", "remove", "Rover 7"],
        1,
        "",
        "node name \"Rover 7\": must be 1 to 23 characters",
    );
    check(
        &["image", "import", "/nowhere.tar"],
        1,
        "",
        "/nowhere.tar: No such file",
    );
    check(&["image", "import", "/etc", "--name", "a:b:c"], 1, "", "--name: ");
    check(&["image", "import", "/etc"], 1, "", "/etc: no OCI layout");
    check(
        &["apply", "-f", "/nowhere.yaml"],
        1,
        "",
        "error: /nowhere.yaml: No such file",
    );
    check(
        &["up", "--agent", "/nowhere"],
        1,
        "",
        "--agent /nowhere: no such file",
    );
    check(&["up", "--node", "A"], 1, "", "node name \"A\"");
}

#[test]
fn no_server_to_be_found() {
    check(
        &["get", "pods"],
        1,
        "",
        "which server? There is no --kubeconfig, no KUBECONFIG and no ~/.kube/config",
    );
    check(
        &["get", "pods", "--kubeconfig", "/nowhere"],
        1,
        "",
        "--kubeconfig /nowhere",
    );

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config");
    // A port that was free a moment ago: nothing listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: here\n\
         clusters: [{{name: c, cluster: {{server: \"https://127.0.0.1:{port}\"}}}}]\n\
         users: [{{name: u, user: {{token: t}}}}]\ncontexts: [{{name: here, context: {{cluster: c, user: u}}}}]\n"
    );
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    let url =
        format!("cannot reach https://127.0.0.1:{port} (context \"here\" of {file}): Connection refused");
    check(&["--kubeconfig", file, "get", "pods"], 1, "", &url);
    check(
        &["--kubeconfig", file, "get", "pods"],
        1,
        "",
        "is `skiff server` running?",
    );
    check(
        &["--kubeconfig", file, "get", "pods", "-w"],
        1,
        "",
        "is `skiff server` running?",
    );
    check(
        &["--kubeconfig", file, "logs", "a"],
        1,
        "",
        "is `skiff server` running?",
    );
    check(
        &["--kubeconfig", file, "--context", "there", "get", "pods"],
        1,
        "",
        "there",
    );
    let archive = dir.path().join("a.tar");
    std::fs::write(&archive, "x").unwrap();
    check(
        &["--kubeconfig", file, "image", "import", archive.to_str().unwrap()],
        1,
        "",
        &url,
    );
}

/// Every file is read and checked, every mistake is shown, and the good ones are not sent: there is no server, and
/// none is missed.
#[test]
fn mistakes_in_files_are_shown_before_anything_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let good = write("a.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n");
    let typo = write(
        "b.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: b}\nspec:\n  containers:\n  - {name: b, images: b}\n",
    );
    let number = write(
        "c.yml",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {port: 80}\n",
    );
    write("not-a-manifest.txt", "kind: [");
    let directory = dir.path().to_str().unwrap();
    let expected = format!(
        "{typo}:6:15: spec.containers[0].images: unknown field (did you mean \"image\"?)\n  \
         6 |   - {{name: b, images: b}}\n    |               ^^^^^^\n\
         {number}:4:14: data.port: expected a string, found the number 80; write it in quotes: \"80\"\n  \
         4 | data: {{port: 80}}\n    |              ^^\n\
         error: 2 mistakes; nothing was sent\n"
    );
    for arguments in [
        vec!["apply", "-f", directory],
        vec!["apply", "-f", &good, "-f", &typo, "-f", &number],
    ] {
        let told = skiff(&arguments, "");
        assert_eq!(
            (told.status, told.out.as_str(), told.err.as_str()),
            (1, "", expected.as_str())
        );
    }
    let told = skiff(&["apply", "-f", "-"], "kind: Pod\nkind: Pod\n");
    assert_eq!(
        told.err,
        "standard input:2:1: key \"kind\" stands twice in one object; the first is in line 1\n  2 | kind: Pod\n    | ^^^^\n\
         error: 1 mistake; nothing was sent\n"
    );
    let told = skiff(&["apply", "-f", "-"], "# nothing\n---\n");
    assert_eq!(
        (told.status, told.err.as_str()),
        (1, "error: no objects in the files given\n")
    );
    let told = skiff(
        &["apply", "-f", "-"],
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {generateName: a-}\n",
    );
    assert!(told.err.contains("metadata.name: Required value"), "{told:?}");
}
