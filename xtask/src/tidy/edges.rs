//! Which of our crates may name which, as ARCHITECTURE.md says. A new edge is a decision, so it fails until written here.

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::command;
use crate::workspace::Workspace;

use super::Finding;

/// Every crate of the workspace with the crates of ours that it may depend on. `*`: any.
const ALLOWED: [(&str, &[&str]); 16] = [
    ("skiff-protocol", &[]),
    ("skiff-transport", &[]),
    ("skiff-yaml", &[]),
    ("skiff-core", &["skiff-protocol"]),
    ("skiff-journal", &[]),
    ("skiff-sys", &[]),
    ("skiff-shim", &["skiff-sys"]),
    ("skiff-images", &["skiff-protocol", "skiff-sys"]),
    (
        "skiff-agent",
        &[
            "skiff-core",
            "skiff-images",
            "skiff-journal",
            "skiff-protocol",
            "skiff-shim",
            "skiff-sys",
            "skiff-transport",
            "skiff-yaml",
        ],
    ),
    // The enrolment messages are the wire's.
    ("skiff-pki", &["skiff-protocol"]),
    ("skiff-broker", &["skiff-protocol"]),
    ("skiff-image-store", &["skiff-protocol"]),
    (
        "skiff-server",
        &[
            "skiff-broker",
            "skiff-image-store",
            "skiff-pki",
            "skiff-protocol",
            "skiff-transport",
        ],
    ),
    ("skiff", &["skiff-protocol", "skiff-server", "skiff-yaml"]),
    ("skiff-tests", &["*"]),
    ("xtask", &[]),
];

/// What the tests of a crate may use beside that: the real other end, which is better than a double, and what suites share.
const IN_TESTS: [(&str, &[&str]); 5] = [
    (
        "skiff-transport",
        &["skiff-broker", "skiff-pki", "skiff-protocol", "skiff-tests"],
    ),
    ("skiff-broker", &["skiff-pki", "skiff-transport"]),
    ("skiff-pki", &["skiff-transport"]),
    ("skiff-images", &["skiff-tests"]),
    ("skiff-server", &["skiff-tests"]),
];

/// Asks cargo for the edges there are and compares.
pub(super) fn check(workspace: &Workspace) -> Result<Vec<Finding>> {
    let mut cargo = command::at(workspace.root(), "cargo");
    cargo.args(["metadata", "--locked", "--no-deps", "--format-version", "1"]);
    let text = command::output(&mut cargo)?;
    let metadata: Value = serde_json::from_str(&text).context("cannot read what `cargo metadata` printed")?;
    let root = format!("{}/", workspace.root().display());
    Ok(compare(&metadata, &root))
}

/// Dependencies of every kind count; those for tests have a table of their own.
fn compare(metadata: &Value, root: &str) -> Vec<Finding> {
    let packages = metadata["packages"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let names: Vec<&str> = packages
        .iter()
        .filter_map(|package| package["name"].as_str())
        .collect();
    let mut found = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let manifest = package["manifest_path"].as_str().unwrap_or_default();
        let manifest = manifest.strip_prefix(root).unwrap_or(manifest);
        let Some((_, allowed)) = ALLOWED.iter().find(|(known, _)| *known == name) else {
            found.push(Finding::new(
                manifest,
                1,
                format!("the crate {name} is not in tidy's table of edges"),
            ));
            continue;
        };
        let in_tests = IN_TESTS
            .iter()
            .find(|(known, _)| *known == name)
            .map_or(&[][..], |(_, extra)| extra);
        let dependencies = package["dependencies"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        for dependency in dependencies {
            let other = dependency["name"].as_str().unwrap_or_default();
            let permitted = allowed.contains(&other)
                || allowed.contains(&"*")
                || (dependency["kind"] == "dev" && in_tests.contains(&other));
            if names.contains(&other) && !permitted {
                found.push(Finding::new(
                    manifest,
                    1,
                    format!("{name} must not depend on {other} (ARCHITECTURE.md)"),
                ));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(packages: &Value, expected: &[&str]) {
        let found = compare(&json!({ "packages": packages }), "/tree/");
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (finding, word) in found.iter().zip(expected) {
            assert!(finding.contains(word), "{finding}");
        }
    }

    fn package(name: &str, dependencies: &[&str]) -> Value {
        let dependencies: Vec<Value> = dependencies
            .iter()
            .map(|name| match name.strip_prefix("dev:") {
                Some(name) => json!({"name": name, "kind": "dev"}),
                None => json!({"name": name, "kind": null}),
            })
            .collect();
        json!({"name": name, "manifest_path": format!("/tree/{name}/Cargo.toml"), "dependencies": dependencies})
    }

    #[test]
    fn edges_of_the_table_pass() {
        check(
            &json!([
                package("skiff-core", &["skiff-protocol", "serde"]),
                package("skiff-protocol", &["serde"])
            ]),
            &[],
        );
        check(
            &json!([
                package("skiff-tests", &["skiff-core"]),
                package("skiff-core", &[])
            ]),
            &[],
        );
    }

    #[test]
    fn tests_may_use_the_real_other_end() {
        let others = [package("skiff-broker", &[]), package("skiff-core", &[])];
        let tree = |own: Value| json!([own, others[0].clone(), others[1].clone()]);
        check(&tree(package("skiff-transport", &["dev:skiff-broker"])), &[]);
        check(
            &tree(package("skiff-transport", &["skiff-broker"])),
            &["must not depend on skiff-broker"],
        );
        check(
            &tree(package("skiff-transport", &["dev:skiff-core"])),
            &["must not depend on skiff-core"],
        );
    }

    #[test]
    fn new_edges_and_new_crates_fail() {
        check(
            &json!([
                package("skiff-protocol", &[]),
                package("skiff-journal", &["skiff-protocol"])
            ]),
            &["skiff-journal/Cargo.toml:1: skiff-journal must not depend on skiff-protocol"],
        );
        check(&json!([package("skiff-extra", &[])]), &["table of edges"]);
    }
}
