//! Reads the system's apt configuration, one-line and deb822 form, as far as finding the mirrors needs.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::files;

/// One repository that the system uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    /// `http://…/debian`.
    pub(crate) uri: String,
    /// `bookworm`, `bookworm-security`, …
    pub(crate) suite: String,
    /// The keyring that the system's configuration names.
    pub(crate) signed_by: Option<String>,
}

/// Where apt looks when the configuration names no keyring.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

impl Source {
    /// The line for a `sources.list`.
    pub(crate) fn line(&self, suite: &str) -> String {
        let keyring = self.signed_by.as_deref().unwrap_or(KEYRING);
        format!("deb [signed-by={keyring}] {} {suite} main\n", self.uri)
    }
}

/// The system's codename (`bookworm`), and the Debian repositories that serve it: the suite itself first.
pub(crate) fn of_system() -> Result<(String, Vec<Source>)> {
    let release = files::read(Path::new("/etc/os-release"))?;
    let codename = codename(&release)?;
    let mut found = Vec::new();
    for file in configuration_files() {
        let text = files::read(&file)?;
        found.extend(
            parse(&text)
                .into_iter()
                .filter(|source| serves(source, &codename)),
        );
    }
    found.sort_by_key(|source| source.suite.len());
    match found.first() {
        Some(first) if first.suite == codename => Ok((codename, found)),
        _ => {
            bail!("no Debian repository for `{codename}` in /etc/apt/sources.list or /etc/apt/sources.list.d")
        }
    }
}

fn codename(release: &str) -> Result<String> {
    let field = |name: &str| {
        release.lines().find_map(|line| {
            Some(
                line.strip_prefix(name)?
                    .strip_prefix('=')?
                    .trim_matches('"')
                    .to_owned(),
            )
        })
    };
    match field("ID").as_deref() {
        Some("debian") => field("VERSION_CODENAME").context("/etc/os-release has no VERSION_CODENAME"),
        other => bail!(
            "this needs Debian 12 or later; /etc/os-release says ID={}",
            other.unwrap_or("(nothing)")
        ),
    }
}

fn configuration_files() -> Vec<PathBuf> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = std::fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.filter_map(Result::ok).map(|entry| entry.path()));
    }
    files.retain(|file| {
        file.is_file()
            && file
                .extension()
                .is_some_and(|end| end == "list" || end == "sources")
    });
    files.sort();
    files
}

fn serves(source: &Source, codename: &str) -> bool {
    source.suite == codename
        || [format!("{codename}-updates"), format!("{codename}-security")].contains(&source.suite)
}

/// Every binary repository of `text`, whichever of the two forms it is in.
fn parse(text: &str) -> Vec<Source> {
    let deb822 = text
        .lines()
        .any(|line| line.to_ascii_lowercase().starts_with("uris:"));
    if deb822 {
        text.split("\n\n").flat_map(parse_stanza).collect()
    } else {
        text.lines().filter_map(parse_line).collect()
    }
}

/// `deb [signed-by=KEYRING arch=…] URI SUITE COMPONENT…`
fn parse_line(line: &str) -> Option<Source> {
    let mut rest = line.trim().strip_prefix("deb ")?.trim_start();
    let mut signed_by = None;
    if let Some(after) = rest.strip_prefix('[') {
        let (options, behind) = after.split_once(']')?;
        signed_by = options
            .split_whitespace()
            .find_map(|option| option.strip_prefix("signed-by="))
            .map(str::to_owned);
        rest = behind;
    }
    let mut words = rest.split_whitespace();
    let uri = words.next()?.trim_end_matches('/').to_owned();
    let suite = words.next()?.to_owned();
    words.any(|component| component == "main").then_some(Source {
        uri,
        suite,
        signed_by,
    })
}

/// `Types:`, `URIs:`, `Suites:`, `Components:`, `Signed-By:`, each possibly with several words.
fn parse_stanza(stanza: &str) -> Vec<Source> {
    let field = |name: &str| -> Vec<String> {
        stanza
            .lines()
            .filter(|line| !line.starts_with('#'))
            .find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name)
                    .then(|| value.split_whitespace().map(str::to_owned).collect())
            })
            .unwrap_or_default()
    };
    let off = field("Enabled")
        .iter()
        .any(|value| value.eq_ignore_ascii_case("no"));
    if off || !field("Types").contains(&"deb".to_owned()) || !field("Components").contains(&"main".to_owned())
    {
        return Vec::new();
    }
    // A key written inline spans lines and has no path: the default keyring serves Debian's repositories.
    let signed_by = field("Signed-By")
        .into_iter()
        .find(|value| value.starts_with('/'));
    let suites = field("Suites");
    field("URIs")
        .iter()
        .flat_map(|uri| suites.iter().map(move |suite| (uri, suite)))
        .map(|(uri, suite)| Source {
            uri: uri.trim_end_matches('/').to_owned(),
            suite: suite.clone(),
            signed_by: signed_by.clone(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[(&str, &str, Option<&str>)]) {
        let found = parse(text);
        let found: Vec<_> = found
            .iter()
            .map(|s| (s.uri.as_str(), s.suite.as_str(), s.signed_by.as_deref()))
            .collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn both_forms_are_read() {
        check(
            "# deb http://m/debian x main\ndeb http://m/debian/ bookworm main contrib\n",
            &[("http://m/debian", "bookworm", None)],
        );
        check(
            "deb [arch=amd64 signed-by=/k.gpg] http://m/d bookworm main\ndeb-src http://m/d bookworm main",
            &[("http://m/d", "bookworm", Some("/k.gpg"))],
        );
        check("deb http://m/extra bookworm contrib\n", &[]);
        check(
            "Types: deb\n# a comment\nURIs: http://m/debian\nSuites: bookworm bookworm-updates\nComponents: main\n\
             Signed-By: /k.gpg\n\nTypes: deb-src\nURIs: http://m/s\nSuites: bookworm\nComponents: main\n",
            &[
                ("http://m/debian", "bookworm", Some("/k.gpg")),
                ("http://m/debian", "bookworm-updates", Some("/k.gpg")),
            ],
        );
        check(
            "Enabled: no\nTypes: deb\nURIs: http://m/debian\nSuites: bookworm\nComponents: main\n",
            &[],
        );
    }

    #[test]
    fn only_debians_own_suites_serve() {
        let source = |suite: &str| Source {
            uri: String::new(),
            suite: suite.into(),
            signed_by: None,
        };
        assert!(serves(&source("bookworm"), "bookworm"));
        assert!(serves(&source("bookworm-security"), "bookworm"));
        assert!(!serves(&source("cloud-sdk-bookworm"), "bookworm"));
        assert!(!serves(&source("bookworm-backports"), "bookworm"));
    }

    #[test]
    fn another_distribution_is_named() {
        assert_eq!(
            codename("ID=debian\nVERSION_CODENAME=bookworm\n").unwrap(),
            "bookworm"
        );
        let error = codename("NAME=\"Ubuntu\"\nID=ubuntu\n").unwrap_err();
        assert!(error.to_string().contains("ubuntu"), "{error}");
    }
}
