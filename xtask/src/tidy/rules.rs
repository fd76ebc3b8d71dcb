//! The rules about one file. None reads anything but the text it is given.

use super::Finding;

/// Lines a Rust file may have; longer ones stand in [`LONG_FILES`] with a reason.
const MAX_LINES: usize = 700;

/// Files that are longer on purpose.
const LONG_FILES: [(&str, &str); 2] = [
    (
        "protocol/tests/invalid_pods.rs",
        "a table, a row for each way a Pod can be invalid",
    ),
    ("server/tests/api/requests.rs", "a table, a row for each request"),
];

/// The one crate that may hold `unsafe`.
const UNSAFE_HOME: &str = "agent/sys/";

/// Written in two halves, so that this file passes its own rule.
const UNFINISHED: [&str; 5] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X:"),
    concat!("to", "do!("),
    concat!("unimple", "mented!("),
];

/// Directories of one person's or one machine's, which mean nothing to a reader.
const MACHINE_PATHS: [&str; 3] = [
    concat!("/wo", "rk/"),
    concat!("/ho", "me/"),
    concat!("/Use", "rs/"),
];

/// Where packages come from is the configuration of the machine, never of the tree.
const REGISTRIES: [&str; 9] = [
    concat!("crates", ".io"),
    concat!("static.rust-lang", ".org"),
    concat!("pypi", ".org"),
    concat!("pythonhosted", ".org"),
    concat!("deb.debian", ".org"),
    concat!("security.debian", ".org"),
    concat!("snapshot.debian", ".org"),
    concat!("registry.npmjs", ".org"),
    concat!("proxy.golang", ".org"),
];

/// All rules on one file; `exists` answers whether a path from the root is there.
pub(super) fn check_file(path: &str, text: &str, exists: &dyn Fn(&str) -> bool) -> Vec<Finding> {
    let mut found = Vec::new();
    if path == "Cargo.lock" {
        return found;
    }
    found.extend(words(path, text));
    if path.ends_with(".rs") {
        found.extend(opening(path, text));
        found.extend(length(path, text));
        found.extend(no_unsafe(path, text));
    }
    if path.ends_with("limits.rs") {
        found.extend(commented_bounds(path, text));
    }
    if path.ends_with(".md") {
        found.extend(links(path, text, exists));
    }
    found
}

fn opening(path: &str, text: &str) -> Option<Finding> {
    let opens = text
        .lines()
        .next()
        .is_some_and(|line| line.starts_with("//! ") && line.len() > 8);
    (!opens).then(|| {
        Finding::new(
            path,
            1,
            "opens without `//!`: say what the file is for and what always holds in it",
        )
    })
}

fn length(path: &str, text: &str) -> Option<Finding> {
    let lines = text.lines().count();
    let listed = LONG_FILES.iter().any(|(long, _)| *long == path);
    (lines > MAX_LINES && !listed).then(|| {
        Finding::new(
            path,
            lines,
            format!("{lines} lines, more than {MAX_LINES}: split it, or list it in tidy with a reason"),
        )
    })
}

fn words(path: &str, text: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let mut say = |message: String| found.push(Finding::new(path, index + 1, message));
        for word in UNFINISHED {
            if line.contains(word) {
                say(format!("`{word}`: finish it, or open an issue"));
            }
        }
        for start in MACHINE_PATHS {
            if names_path(line, start) {
                say(format!("a path under {start} exists on one machine only"));
            }
        }
        for host in REGISTRIES {
            if line.contains(host) {
                say(format!(
                    "the package registry {host} is named: leave it to the machine's configuration"
                ));
            }
        }
    }
    found
}

/// Whether an absolute path that begins with `start` stands in `line`; `x/home/` is another path's middle.
fn names_path(line: &str, start: &str) -> bool {
    line.match_indices(start).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        // `name:x:1000:1000::/…` is a line of an image's passwd, not of this machine's.
        let in_passwd = line[..at].ends_with("::");
        !in_passwd
            && !before
                .is_some_and(|c| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | '}' | '>' | '~'))
    })
}

fn no_unsafe(path: &str, text: &str) -> Vec<Finding> {
    if path.starts_with(UNSAFE_HOME) {
        return Vec::new();
    }
    let marks = ["{", "fn ", "impl ", "extern ", "trait "]
        .map(|next| format!("unsafe {next}"))
        .into_iter()
        .chain(["#[unsafe(".into()]);
    let marks: Vec<String> = marks.collect();
    text.lines()
        .enumerate()
        .filter(|(_, line)| {
            let code = line.split("//").next().unwrap_or_default();
            marks
                .iter()
                .any(|mark| code.contains(mark.as_str()) && !code.contains('"'))
        })
        .map(|(index, _)| {
            Finding::new(
                path,
                index + 1,
                format!("`unsafe` belongs in {UNSAFE_HOME} alone"),
            )
        })
        .collect()
}

/// Each `const` of a `limits.rs` says why it is that number, in the line above.
fn commented_bounds(path: &str, text: &str) -> Vec<Finding> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let Some(name) = line
            .strip_prefix("pub const ")
            .or_else(|| line.strip_prefix("pub(crate) const "))
        else {
            continue;
        };
        let name = name.split(':').next().unwrap_or_default();
        let above = lines[..index].iter().rev().find(|line| !line.starts_with("#["));
        if name != "_" && !above.is_some_and(|line| line.starts_with("//")) {
            found.push(Finding::new(
                path,
                index + 1,
                format!("the bound {name} has no comment that says why this number"),
            ));
        }
    }
    found
}

/// Links to files of this tree lead somewhere.
fn links(path: &str, text: &str, exists: &dyn Fn(&str) -> bool) -> Vec<Finding> {
    let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
    let mut found = Vec::new();
    let mut in_code = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        for target in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split(['#', ' ']).next().unwrap_or_default();
            if file.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            if !join(dir, file).is_some_and(|full| exists(&full)) {
                found.push(Finding::new(
                    path,
                    index + 1,
                    format!("the link to {file} leads nowhere"),
                ));
            }
        }
    }
    found
}

/// `file` as seen from the root; `None` when it leaves the tree.
fn join(dir: &str, file: &str) -> Option<String> {
    let mut parts: Vec<&str> = if file.starts_with('/') {
        Vec::new()
    } else {
        dir.split('/').collect()
    };
    for part in file.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop().filter(|part| !part.is_empty())?),
            other => parts.push(other),
        }
    }
    parts.retain(|part| !part.is_empty());
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines and a word of each finding's message.
    fn check(path: &str, text: &str, expected: &[(usize, &str)]) {
        let found = check_file(path, text, &|link| {
            link == "README.md" || link == "protocol/SPEC.md"
        });
        assert_eq!(found.len(), expected.len(), "{path}: {found:?}");
        for (finding, (line, word)) in found.iter().zip(expected) {
            assert_eq!(finding.line, *line, "{finding}");
            assert!(finding.message.contains(word), "{finding}");
        }
    }

    #[test]
    fn rust_files_open_with_their_purpose() {
        check("a/src/lib.rs", "//! What this is for.\n", &[]);
        check("a/src/lib.rs", "use std::fs;\n", &[(1, "//!")]);
        check("a/src/lib.rs", "//!\n", &[(1, "//!")]);
        check("a/src/lib.rs", "", &[(1, "//!")]);
    }

    #[test]
    fn files_stay_short() {
        let long = format!("//! What this is for.\n{}", "fn f() {}\n".repeat(MAX_LINES));
        check("a/src/lib.rs", &long, &[(701, "701 lines")]);
        check("a/src/lib.rs", &long[..long.len() - 10], &[]);
    }

    #[test]
    fn nothing_is_left_unfinished() {
        for word in UNFINISHED {
            check("notes.md", &format!("fine\nsee {word}\n"), &[(2, word)]);
        }
    }

    #[test]
    fn machine_paths_and_registries_are_found() {
        let [ours, home, _] = MACHINE_PATHS;
        check("a.md", &format!("see {ours}main/x"), &[(1, "one machine")]);
        check("a.sh", &format!("cd \"{home}me\""), &[(1, "one machine")]);
        check("a.sh", &format!("cd target{ours}x"), &[]);
        check("a.sh", &format!("app:x:1000:1000::{home}app:/bin/sh"), &[]);
        for host in REGISTRIES {
            check("a.toml", &format!("\nx = \"https://{host}/\""), &[(2, host)]);
            check("Cargo.lock", host, &[]);
        }
    }

    #[test]
    fn unsafe_stays_at_home() {
        let text = format!(
            "//! What this is for.\nfn f() {{ {} {{ g() }} }}\n// {0} {{ in words }}\n",
            "unsafe"
        );
        check("agent/core/src/lib.rs", &text, &[(2, "agent/sys/")]);
        check("agent/sys/src/lib.rs", &text, &[]);
    }

    #[test]
    fn bounds_say_why() {
        let text = "//! What this is for.\n/// As in Kubernetes.\npub const A: usize = 1;\npub const B: usize = 2;\n\n\
                    pub const C: usize = 3;\nconst _: () = assert!(A < B);\n";
        check("protocol/src/limits.rs", text, &[(4, "bound B"), (6, "bound C")]);
        check("protocol/src/other.rs", text, &[]);
    }

    #[test]
    fn links_lead_somewhere() {
        check(
            "README.md",
            "[a](protocol/SPEC.md#frames) [b](https://example.com) [c](#here)",
            &[],
        );
        check(
            "protocol/SPEC.md",
            "[up](../README.md)\n[gone](x.md)",
            &[(2, "x.md")],
        );
        check(
            "protocol/SPEC.md",
            "[out](../../README.md)",
            &[(1, "leads nowhere")],
        );
        check("README.md", "```\n[a](gone.md)\n```\n", &[]);
    }
}
