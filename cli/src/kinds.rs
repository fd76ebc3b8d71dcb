//! The kinds that the commands know: how people name them, and where the API keeps them.

use skiff_protocol::manifest;

use crate::failure::{Outcome, failed};

/// A kind of the API.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    /// The API's group, empty for the core.
    pub(crate) group: &'static str,
    /// As manifests name it.
    pub(crate) kind: &'static str,
    /// As the API's paths name it.
    pub(crate) plural: &'static str,
    /// As results name it: `pod/nginx`.
    pub(crate) singular: &'static str,
    /// As people who type much name it.
    pub(crate) short: &'static str,
    /// Whether it lives in a namespace.
    pub(crate) namespaced: bool,
}

/// Every kind, in the order in which objects must be made.
pub(crate) static KINDS: [Kind; 9] = [
    Kind {
        group: "",
        kind: "Namespace",
        plural: "namespaces",
        singular: "namespace",
        short: "ns",
        namespaced: false,
    },
    Kind {
        group: "",
        kind: "ConfigMap",
        plural: "configmaps",
        singular: "configmap",
        short: "cm",
        namespaced: true,
    },
    Kind {
        group: "",
        kind: "Secret",
        plural: "secrets",
        singular: "secret",
        short: "",
        namespaced: true,
    },
    Kind {
        group: "storage.k8s.io",
        kind: "StorageClass",
        plural: "storageclasses",
        singular: "storageclass",
        short: "sc",
        namespaced: false,
    },
    Kind {
        group: "",
        kind: "PersistentVolume",
        plural: "persistentvolumes",
        singular: "persistentvolume",
        short: "pv",
        namespaced: false,
    },
    Kind {
        group: "",
        kind: "PersistentVolumeClaim",
        plural: "persistentvolumeclaims",
        singular: "persistentvolumeclaim",
        short: "pvc",
        namespaced: true,
    },
    Kind {
        group: "",
        kind: "Pod",
        plural: "pods",
        singular: "pod",
        short: "po",
        namespaced: true,
    },
    Kind {
        group: "",
        kind: "Node",
        plural: "nodes",
        singular: "node",
        short: "no",
        namespaced: false,
    },
    Kind {
        group: "",
        kind: "Event",
        plural: "events",
        singular: "event",
        short: "ev",
        namespaced: true,
    },
];

/// The kind of this name in manifests.
pub(crate) fn by_kind(kind: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|it| it.kind == kind)
}

/// The kind of this name on a command line: plural, singular or short, in any case.
pub(crate) fn by_word(word: &str) -> Outcome<&'static Kind> {
    let lower = word.to_lowercase();
    let names = |kind: &'static Kind| [kind.plural, kind.singular, kind.short];
    let found = KINDS
        .iter()
        .find(|kind| !lower.is_empty() && names(kind).contains(&lower.as_str()));
    if let Some(kind) = found {
        return Ok(kind);
    }
    let near = manifest::nearest(&lower, KINDS.iter().map(|kind| kind.plural));
    let hint = near.map_or_else(
        || {
            format!(
                "; there are {}",
                KINDS
                    .iter()
                    .map(|kind| kind.plural)
                    .collect::<Vec<_>>()
                    .join(", ")
            )
        },
        |near| format!(" (did you mean {near:?}?)"),
    );
    failed(format!("no kind of object is named {word:?}{hint}"))
}

impl Kind {
    /// The path of the kind's objects in a namespace, or in all.
    pub(crate) fn path(&self, namespace: Option<&str>) -> String {
        let root = if self.group.is_empty() {
            "/api/v1".to_owned()
        } else {
            format!("/apis/{}/v1", self.group)
        };
        match namespace {
            Some(namespace) if self.namespaced => {
                format!("{root}/namespaces/{}/{}", escape(namespace), self.plural)
            }
            _ => format!("{root}/{}", self.plural),
        }
    }

    /// As manifests name its version: `v1`, `storage.k8s.io/v1`.
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() {
            "v1".to_owned()
        } else {
            format!("{}/v1", self.group)
        }
    }

    /// The path of one object.
    pub(crate) fn object(&self, namespace: &str, name: &str) -> String {
        format!("{}/{}", self.path(Some(namespace)), escape(name))
    }
}

/// Percent-encodes what may not stand in a segment or a query's value as it is (RFC 3986).
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
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

    #[test]
    fn words_and_paths() {
        for (word, kind) in [
            ("pods", "Pod"),
            ("PO", "Pod"),
            ("cm", "ConfigMap"),
            ("Secret", "Secret"),
            ("ns", "Namespace"),
            ("pvc", "PersistentVolumeClaim"),
        ] {
            assert_eq!(by_word(word).ok().map(|it| it.kind), Some(kind), "{word}");
        }
        assert!(by_word("").is_err() && by_word("widgets").is_err());
        let pod = by_word("pod").unwrap_or(&KINDS[0]);
        assert_eq!(pod.object("a", "b/../c"), "/api/v1/namespaces/a/pods/b%2F..%2Fc");
        assert_eq!(pod.path(None), "/api/v1/pods");
        assert_eq!(KINDS[0].path(Some("a")), "/api/v1/namespaces");
        let class = by_word("sc").unwrap_or(&KINDS[0]);
        assert_eq!(class.object("a", "b"), "/apis/storage.k8s.io/v1/storageclasses/b");
    }
}
