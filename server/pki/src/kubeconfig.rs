//! Writes a kubeconfig, everything embedded, so that one file is all that `kubectl` needs.
//!
//! Always holds: every value from outside is written as a double-quoted YAML scalar, which is JSON's escaping.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

/// How the user of a kubeconfig authenticates.
#[derive(Clone, Copy)]
pub enum User<'a> {
    /// By client certificate.
    Certificate {
        /// The chain, PEM.
        chain: &'a str,
        /// The key, PEM.
        key: &'a str,
    },
    /// By bearer token.
    Token(&'a str),
}

/// The text of a kubeconfig with one cluster, user and context, all called `name`.
#[must_use]
pub fn kubeconfig(name: &str, server_url: &str, ca_certificate: &str, user: User<'_>) -> String {
    let name = quoted(name);
    let credentials = match user {
        User::Certificate { chain, key } => format!(
            "    client-certificate-data: {}\n    client-key-data: {}\n",
            BASE64.encode(chain),
            BASE64.encode(key)
        ),
        User::Token(token) => format!("    token: {}\n", quoted(token)),
    };
    format!(
        "apiVersion: v1\n\
         kind: Config\n\
         clusters:\n\
         - name: {name}\n  \
           cluster:\n    \
             server: {}\n    \
             certificate-authority-data: {}\n\
         users:\n\
         - name: {name}\n  \
           user:\n\
         {credentials}\
         contexts:\n\
         - name: {name}\n  \
           context:\n    \
             cluster: {name}\n    \
             user: {name}\n    \
             namespace: default\n\
         current-context: {name}\n",
        quoted(server_url),
        BASE64.encode(ca_certificate),
    )
}

fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
