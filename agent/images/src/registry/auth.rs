//! What a registry asks for in `WWW-Authenticate`, and the tokens that answer it (RFC 9110 §11, RFC 6750; the
//! distribution project's token authentication).

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

/// A challenge that this client can answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// What a token service answers; either name was in use.
#[derive(Deserialize)]
pub(crate) struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

impl TokenAnswer {
    pub(crate) fn into_token(self) -> Option<String> {
        self.token.or(self.access_token).filter(|token| !token.is_empty())
    }
}

/// The `Authorization` value of basic authentication.
pub(crate) fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
}

/// The challenge to answer: a bearer token where one is offered, else basic authentication.
pub(crate) fn choose<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let all: Vec<Challenge> = headers.flat_map(parse).collect();
    let bearer = all
        .iter()
        .find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
    bearer.or(all.first()).cloned()
}

/// `Scheme key="value", key=value, Scheme …`: a word without `=` begins the next challenge.
fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    let mut current: Option<(String, BTreeMap<String, String>)> = None;
    let mut rest = header.trim_start();
    while !rest.is_empty() {
        let end = rest.find([' ', '=', ',']).unwrap_or(rest.len());
        let word = rest[..end].to_ascii_lowercase();
        rest = rest[end..].trim_start();
        if let Some(after) = rest.strip_prefix('=') {
            let (value, after) = value(after.trim_start());
            if let Some((_, parameters)) = &mut current {
                parameters.insert(word, value);
            }
            rest = after;
        } else if !word.is_empty() {
            challenges.extend(current.take().and_then(finish));
            current = Some((word, BTreeMap::new()));
        }
        rest = rest.trim_start_matches([',', ' ']);
    }
    challenges.extend(current.and_then(finish));
    challenges
}

fn value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[index + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

fn finish((scheme, mut parameters): (String, BTreeMap<String, String>)) -> Option<Challenge> {
    match scheme.as_str() {
        "basic" => Some(Challenge::Basic),
        "bearer" => Some(Challenge::Bearer {
            realm: parameters.remove("realm")?,
            service: parameters.remove("service"),
            scope: parameters.remove("scope"),
        }),
        _ => None,
    }
}

/// Percent-encodes a query value (RFC 3986: all but the unreserved characters).
pub(crate) fn encode(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(headers: &[&str], expected: &Option<Challenge>) {
        assert_eq!(&choose(headers.iter().copied()), expected, "{headers:?}");
    }

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        let (service, scope) = (service.map(str::to_owned), scope.map(str::to_owned));
        Some(Challenge::Bearer {
            realm: realm.to_owned(),
            service,
            scope,
        })
    }

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let hub = r#"Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull,push""#;
        let expected = bearer(
            "https://auth.example/token",
            Some("registry.example"),
            Some("repository:a/b:pull,push"),
        );
        check(&[hub], &expected);
        check(&["Basic realm=\"x\"", hub], &expected);
        check(
            &[r#"Basic realm="x", Bearer realm=https://t.example"#],
            &bearer("https://t.example", None, None),
        );
        check(
            &[r#"bearer realm="a\"b", error = "invalid_token""#],
            &bearer("a\"b", None, None),
        );
        check(&["BASIC"], &Some(Challenge::Basic));
        check(&["Negotiate"], &None);
        check(&["Bearer service=\"no realm\""], &None);
        check(
            &["Bearer realm=\"unterminated"],
            &bearer("unterminated", None, None),
        );
        check(&["=,=,", ""], &None);
        check(&[], &None);
    }

    #[test]
    fn query_values_are_encoded() {
        assert_eq!(
            encode("repository:a/b:pull x&y"),
            "repository%3Aa%2Fb%3Apull%20x%26y"
        );
        assert_eq!(basic("user", "p:w"), "Basic dXNlcjpwOnc=");
    }
}
