//! Credentials for registries, from Secrets as `kubectl create secret docker-registry` makes them.
//!
//! Always holds: matched as a kubelet does, most specific first; what a Secret holds is never shown. Nothing is remembered:
//! each pull looks at the Secrets as they are.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use skiff_protocol::image_ref::ImageRef;
use skiff_protocol::wire::spec::ConfigData;

/// Credentials of one Pod that are tried for one image.
const MOST: usize = 8;

/// Docker's own registry, by its names in such files.
const HUB: [&str; 3] = ["index.docker.io", "registry-1.docker.io", "docker.io"];

/// A user name and its password.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Login {
    pub(crate) username: String,
    pub(crate) password: String,
}

/// The password is left out.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// `~/.docker/config.json`, as far as it has credentials.
#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    username: String,
    password: String,
    /// Base64 of `username:password`; it counts before the two.
    auth: String,
}

impl Entry {
    fn into_login(self) -> Option<Login> {
        let (username, password) = if self.auth.is_empty() {
            (self.username, self.password)
        } else {
            let decoded = STANDARD.decode(self.auth.trim()).ok()?;
            let text = String::from_utf8(decoded).ok()?;
            let (username, password) = text.split_once(':')?;
            (username.to_owned(), password.to_owned())
        };
        (!username.is_empty()).then_some(Login { username, password })
    }
}

/// What of these Secrets may open the registry of an image, in the order in which it is tried; and what is wrong with those
/// that cannot be read, by name.
pub(crate) fn logins(secrets: &[ConfigData], image: &ImageRef) -> (Vec<Login>, Vec<String>) {
    let (mut logins, mut wrong) = (Vec::new(), Vec::new());
    for secret in secrets {
        let entries = match entries(secret) {
            Ok(entries) => entries,
            Err(why) => {
                wrong.push(format!("Secret {:?}: {why}", secret.name));
                continue;
            }
        };
        // Backwards in the order of their names a longer path comes before a shorter one.
        for (place, entry) in entries.into_iter().rev().filter(|it| matches(&it.0, image)) {
            match entry.into_login() {
                Some(login) if !logins.contains(&login) && logins.len() < MOST => logins.push(login),
                Some(_) => {}
                None => wrong.push(format!(
                    "Secret {:?}: the entry of {place:?} has neither username and password nor auth, which is base64 of \
                     both with ':' between",
                    secret.name
                )),
            }
        }
    }
    (logins, wrong)
}

fn entries(secret: &ConfigData) -> Result<BTreeMap<String, Entry>, String> {
    // What a parser says of a line may quote it.
    let malformed = |key: &str| format!("{key} is not the JSON of a Docker configuration");
    if let Some(bytes) = secret.data.get(".dockerconfigjson") {
        let config: DockerConfig =
            serde_json::from_slice(bytes).map_err(|_| malformed(".dockerconfigjson"))?;
        return Ok(config.auths);
    }
    match secret.data.get(".dockercfg") {
        Some(bytes) => serde_json::from_slice(bytes).map_err(|_| malformed(".dockercfg")),
        None => Err("it has no key .dockerconfigjson".to_owned()),
    }
}

/// Whether credentials that are kept for `place` are for this image: the same registry, where `*` stands for any part of a
/// label, and a path that the image's begins with.
fn matches(place: &str, image: &ImageRef) -> bool {
    let place = place
        .strip_prefix("https://")
        .or_else(|| place.strip_prefix("http://"))
        .unwrap_or(place);
    let (host, path) = place.split_once('/').unwrap_or((place, ""));
    // The API's own path, which Docker writes to the file.
    let path = match path.split_once('/') {
        Some(("v1" | "v2", rest)) => rest,
        _ if path == "v1" || path == "v2" => "",
        _ => path,
    };
    let is_host = if HUB.contains(&host) {
        image.registry() == "docker.io"
    } else {
        same_host(host, image.registry())
    };
    is_host && image.repository().starts_with(path.trim_end_matches('/'))
}

fn same_host(pattern: &str, host: &str) -> bool {
    fn parts(text: &str) -> (Vec<&str>, Option<&str>) {
        let (name, port) = text
            .rsplit_once(':')
            .map_or((text, None), |(name, port)| (name, Some(port)));
        (name.split('.').collect(), port)
    }
    let ((patterns, pattern_port), (labels, port)) = (parts(pattern), parts(host));
    pattern_port == port
        && patterns.len() == labels.len()
        && patterns
            .iter()
            .zip(labels)
            .all(|(pattern, label)| is_like(pattern, label))
}

/// Whether a label is what a pattern with `*` says.
fn is_like(pattern: &str, label: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else {
        return pattern.eq_ignore_ascii_case(label);
    };
    let begins = |text: &str| text.len() >= before.len() && text.is_char_boundary(before.len());
    begins(label)
        && label[..before.len()].eq_ignore_ascii_case(before)
        && (before.len()..=label.len())
            .filter(|at| label.is_char_boundary(*at))
            .any(|at| is_like(after, &label[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(name: &str, key: &str, text: &str) -> ConfigData {
        ConfigData {
            namespace: "default".into(),
            name: name.into(),
            data: [(key.to_owned(), text.as_bytes().to_vec())].into(),
        }
    }

    #[test]
    fn places_match_as_for_a_kubelet() {
        let check = |place: &str, image: &str, expected: bool| {
            let image = ImageRef::parse(image).unwrap();
            assert_eq!(matches(place, &image), expected, "{place} for {image}");
        };
        for place in [
            "https://index.docker.io/v1/",
            "index.docker.io",
            "docker.io",
            "https://registry-1.docker.io/v2/",
        ] {
            check(place, "busybox", true);
            check(place, "team/app:1", true);
            check(place, "registry.example/app", false);
        }
        for place in [
            "registry.example",
            "https://registry.example",
            "http://registry.example/",
            "https://registry.example/v2/",
            "registry.example/v1",
            "*.example",
            "reg*.example",
            "*g*s*.ex*e",
            "registry.example/team",
            "registry.example/team/app",
        ] {
            check(place, "registry.example/team/app:1", true);
            check(place, "registry.example:5000/team/app:1", false);
            check(place, "busybox", false);
        }
        check("registry.example:5000", "registry.example:5000/a", true);
        check("registry.example:5000", "registry.example:5001/a", false);
        check("registry.example/other", "registry.example/team/app", false);
        check("*.example", "a.b.example/app", false);
        check("*", "localhost/app", true);
        check("reg*z.example", "registry.example/app", false);
        check("", "busybox", false);
    }

    #[test]
    fn the_most_specific_comes_first_and_what_is_wrong_is_named_without_its_content() {
        let image = ImageRef::parse("r.example/team/app").unwrap();
        let config = r#"{"auths": {
            "r.example": {"username": "wide", "password": "w"},
            "r.example/team": {"auth": "bmFycm93Om46OnA="},
            "other.example": {"username": "no", "password": "n"}
        }, "credsStore": "x"}"#;
        let secrets = [
            secret("one", ".dockerconfigjson", config),
            secret(
                "old",
                ".dockercfg",
                r#"{"r.example": {"username": "old", "password": "o", "email": "e"}}"#,
            ),
            secret("again", ".dockerconfigjson", config),
            secret("broken", ".dockerconfigjson", "hunter2"),
            secret(
                "half",
                ".dockerconfigjson",
                r#"{"auths": {"r.example": {"auth": "aHVudGVyMg=="}}}"#,
            ),
            secret("opaque", "password", "hunter2"),
        ];
        let (found, wrong) = logins(&secrets, &image);
        let shown: Vec<(&str, &str)> = found
            .iter()
            .map(|it| (it.username.as_str(), it.password.as_str()))
            .collect();
        assert_eq!(shown, [("narrow", "n::p"), ("wide", "w"), ("old", "o")]);
        let wrong = wrong.join("\n");
        for part in [
            "\"broken\"",
            "\"half\"",
            "\"opaque\"",
            "has no key .dockerconfigjson",
        ] {
            assert!(wrong.contains(part), "{wrong}");
        }
        assert!(!wrong.contains("hunter2") && !format!("{found:?}").contains("n::p"));
    }
}
