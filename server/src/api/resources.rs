//! The table of resources: everything that the verbs, discovery, OpenAPI and the tables need to know of a kind.
//!
//! What always holds: a kind is served if and only if it stands in [`RESOURCES`]; what it does differently from a plain
//! document is its [`Strategy`], what `kubectl get` shows of it its columns.

use async_trait::async_trait;
use serde_json::Value;
use skiff_protocol::manifest::Cause;

use super::kinds;
use super::status::ApiResult;
use super::table::{self, Column};
use crate::store::{Key, Store};

/// What can be done with a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// GET of one object.
    Get,
    /// GET of the collection.
    List,
    /// GET of the collection with `watch=true`.
    Watch,
    /// POST.
    Create,
    /// PUT.
    Update,
    /// PATCH.
    Patch,
    /// DELETE of one object.
    Delete,
    /// DELETE of the collection.
    DeleteCollection,
}

impl Verb {
    /// Kubernetes' word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }
}

/// The verbs of a resource that clients may write.
const ALL: &[Verb] = &[
    Verb::Create,
    Verb::Delete,
    Verb::DeleteCollection,
    Verb::Get,
    Verb::List,
    Verb::Patch,
    Verb::Update,
    Verb::Watch,
];

/// The verbs of a resource that clients may only look at.
const READ: &[Verb] = &[Verb::Get, Verb::List, Verb::Watch];

/// A subresource, for discovery and for routing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subresource {
    /// The last part of the path.
    pub name: &'static str,
    /// The kind it answers with.
    pub kind: &'static str,
    /// What can be done with it.
    pub verbs: &'static [Verb],
}

const STATUS: &[Verb] = &[Verb::Get, Verb::Patch, Verb::Update];

/// Which names an object of a kind may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// RFC 1123 subdomain, at most 253 bytes.
    Subdomain,
    /// RFC 1123 label, at most 63 bytes.
    Label,
}

/// What a kind does differently from a plain document. Every method has the plain document's answer as its default.
#[async_trait]
pub trait Strategy: Sync {
    /// Fills in what Kubernetes fills in when a field is left out. Runs on every write.
    fn default(&self, _object: &mut Value) {}

    /// Sets what a new object must begin with, whatever the client sent.
    fn prepare_create(&self, _object: &mut Value) {}

    /// What is wrong with the object as a whole, beyond its schema.
    fn check(&self, _object: &Value) -> Vec<Cause> {
        Vec::new()
    }

    /// What of a change is not allowed.
    fn check_update(&self, _old: &Value, _new: &Value) -> Vec<Cause> {
        Vec::new()
    }

    /// What a write to `resize` makes of the object: the stored one with the resources of the one that was sent.
    ///
    /// # Errors
    /// What of the change is not allowed.
    fn resize(&self, old: &Value, _sent: &Value) -> Result<Value, Vec<Cause>> {
        Ok(old.clone())
    }

    /// What depends on other objects: may fill in what they decide, refuse, and warn. Runs on every write, after the
    /// checks above; `old` is nothing for a new object.
    async fn admit(
        &self,
        _store: &dyn Store,
        _old: Option<&Value>,
        _object: &mut Value,
    ) -> ApiResult<Vec<String>> {
        Ok(Vec::new())
    }

    /// How many seconds the object stays after its deletion was asked for; 0 removes it at once.
    fn grace_seconds(&self, _object: &Value, _requested: Option<i64>) -> i64 {
        0
    }

    /// Whether the object stays until a controller has cleared what belongs to it.
    fn outlives_deletion(&self, _object: &Value) -> bool {
        false
    }

    /// Changes the object as its deletion begins.
    fn begin_deletion(&self, _object: &mut Value) {}

    /// Why this very object may not be deleted.
    fn undeletable(&self, _name: &str) -> Option<String> {
        None
    }
}

/// A document without rules of its own.
pub struct Plain;

impl Strategy for Plain {}

/// One row of the table.
pub struct Resource {
    /// Empty for the core group.
    pub group: &'static str,
    /// `v1`.
    pub version: &'static str,
    /// `pods`: the word in the path.
    pub plural: &'static str,
    /// `pod`.
    pub singular: &'static str,
    /// `Pod`.
    pub kind: &'static str,
    /// `po`.
    pub short: &'static [&'static str],
    /// `all`.
    pub categories: &'static [&'static str],
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// What can be done with it.
    pub verbs: &'static [Verb],
    /// What stands under an object's path.
    pub subresources: &'static [Subresource],
    /// Which names are allowed.
    pub names: NameRule,
    /// Field selectors beyond metadata.name and metadata.namespace, each with the value that an absent field has.
    pub fields: &'static [(&'static str, &'static str)],
    /// What the kind does differently.
    pub strategy: &'static dyn Strategy,
    /// What `kubectl get` shows.
    pub(crate) columns: &'static [Column],
}

impl std::fmt::Debug for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.qualified())
    }
}

impl PartialEq for Resource {
    fn eq(&self, other: &Self) -> bool {
        (self.group, self.plural) == (other.group, other.plural)
    }
}

impl Resource {
    /// `pods`, `leases.coordination.k8s.io`: the name in messages and in the store's keys.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.into()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// `v1`, `coordination.k8s.io/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.into()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `PodList`.
    pub fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    /// The store's key of an object.
    pub fn key(&self, namespace: &str, name: &str) -> Key {
        let namespace = if self.namespaced { namespace } else { "" };
        Key::new(&self.qualified(), namespace, name)
    }

    /// Whether clients write the status through a path of its own.
    pub fn has_status(&self) -> bool {
        self.subresources.iter().any(|sub| sub.name == "status")
    }
}

/// The resources, in the order of `kubectl api-resources`.
pub static RESOURCES: &[Resource] = &[
    Resource {
        group: "",
        version: "v1",
        plural: "configmaps",
        singular: "configmap",
        kind: "ConfigMap",
        short: &["cm"],
        categories: &[],
        namespaced: true,
        verbs: ALL,
        subresources: &[],
        names: NameRule::Subdomain,
        fields: &[],
        strategy: &kinds::data::ConfigMap,
        columns: table::CONFIG_MAP,
    },
    Resource {
        group: "",
        version: "v1",
        plural: "events",
        singular: "event",
        kind: "Event",
        short: &["ev"],
        categories: &[],
        namespaced: true,
        verbs: ALL,
        subresources: &[],
        names: NameRule::Subdomain,
        fields: &[
            ("involvedObject.kind", ""),
            ("involvedObject.namespace", ""),
            ("involvedObject.name", ""),
            ("involvedObject.uid", ""),
            ("involvedObject.apiVersion", ""),
            ("involvedObject.resourceVersion", ""),
            ("involvedObject.fieldPath", ""),
            ("reason", ""),
            ("reportingComponent", ""),
            ("source", ""),
            ("type", ""),
        ],
        strategy: &kinds::event::Event,
        columns: table::EVENT,
    },
    Resource {
        group: "",
        version: "v1",
        plural: "namespaces",
        singular: "namespace",
        kind: "Namespace",
        short: &["ns"],
        categories: &[],
        namespaced: false,
        verbs: &[
            Verb::Create,
            Verb::Delete,
            Verb::Get,
            Verb::List,
            Verb::Patch,
            Verb::Update,
            Verb::Watch,
        ],
        subresources: &[Subresource {
            name: "status",
            kind: "Namespace",
            verbs: STATUS,
        }],
        names: NameRule::Label,
        fields: &[("status.phase", "")],
        strategy: &kinds::namespace::Namespace,
        columns: table::NAMESPACE,
    },
    Resource {
        group: "",
        version: "v1",
        plural: "nodes",
        singular: "node",
        kind: "Node",
        short: &["no"],
        categories: &[],
        namespaced: false,
        verbs: ALL,
        subresources: &[Subresource {
            name: "status",
            kind: "Node",
            verbs: STATUS,
        }],
        names: NameRule::Subdomain,
        fields: &[("spec.unschedulable", "false")],
        strategy: &Plain,
        columns: table::NODE,
    },
    Resource {
        group: "",
        version: "v1",
        plural: "persistentvolumeclaims",
        singular: "persistentvolumeclaim",
        kind: "PersistentVolumeClaim",
        short: &["pvc"],
        categories: &[],
        namespaced: true,
        verbs: ALL,
        subresources: &[Subresource {
            name: "status",
            kind: "PersistentVolumeClaim",
            verbs: STATUS,
        }],
        names: NameRule::Subdomain,
        fields: &[],
        strategy: &kinds::volume::Claim,
        columns: table::CLAIM,
    },
    Resource {
        group: "",
        version: "v1",
        plural: "persistentvolumes",
        singular: "persistentvolume",
        kind: "PersistentVolume",
        short: &["pv"],
        categories: &[],
        namespaced: false,
        verbs: ALL,
        subresources: &[Subresource {
            name: "status",
            kind: "PersistentVolume",
            verbs: STATUS,
        }],
        names: NameRule::Subdomain,
        fields: &[],
        strategy: &kinds::volume::Volume,
        columns: table::VOLUME,
    },
    Resource {
        group: "",
        version: "v1",
        plural: "pods",
        singular: "pod",
        kind: "Pod",
        short: &["po"],
        categories: &["all"],
        namespaced: true,
        verbs: ALL,
        subresources: &[
            Subresource {
                name: "binding",
                kind: "Binding",
                verbs: &[Verb::Create],
            },
            Subresource {
                name: "log",
                kind: "Pod",
                verbs: &[Verb::Get],
            },
            Subresource {
                name: "resize",
                kind: "Pod",
                verbs: STATUS,
            },
            Subresource {
                name: "status",
                kind: "Pod",
                verbs: STATUS,
            },
        ],
        names: NameRule::Subdomain,
        fields: &[
            ("spec.nodeName", ""),
            ("spec.restartPolicy", ""),
            ("spec.schedulerName", ""),
            ("spec.serviceAccountName", ""),
            ("spec.hostNetwork", "false"),
            ("status.phase", ""),
            ("status.podIP", ""),
            ("status.nominatedNodeName", ""),
        ],
        strategy: &kinds::pod::Pod,
        columns: table::POD,
    },
    Resource {
        group: "",
        version: "v1",
        plural: "secrets",
        singular: "secret",
        kind: "Secret",
        short: &[],
        categories: &[],
        namespaced: true,
        verbs: ALL,
        subresources: &[],
        names: NameRule::Subdomain,
        fields: &[("type", "")],
        strategy: &kinds::data::Secret,
        columns: table::SECRET,
    },
    // Nothing answers to a Service yet, so none can be made; `kubectl cluster-info` and `get all` list them.
    Resource {
        group: "",
        version: "v1",
        plural: "services",
        singular: "service",
        kind: "Service",
        short: &["svc"],
        categories: &["all"],
        namespaced: true,
        verbs: READ,
        subresources: &[],
        names: NameRule::Label,
        fields: &[("spec.clusterIP", ""), ("spec.type", "")],
        strategy: &Plain,
        columns: table::SERVICE,
    },
    // There are none and none can be made; `kubectl` asks for them when it meets a kind that it does not know, and
    // needs the answer to go on to the server's own.
    Resource {
        group: "apiextensions.k8s.io",
        version: "v1",
        plural: "customresourcedefinitions",
        singular: "customresourcedefinition",
        kind: "CustomResourceDefinition",
        short: &["crd", "crds"],
        categories: &[],
        namespaced: false,
        verbs: READ,
        subresources: &[],
        names: NameRule::Subdomain,
        fields: &[],
        strategy: &Plain,
        columns: table::PLAIN,
    },
    Resource {
        group: "coordination.k8s.io",
        version: "v1",
        plural: "leases",
        singular: "lease",
        kind: "Lease",
        short: &[],
        categories: &[],
        namespaced: true,
        verbs: ALL,
        subresources: &[],
        names: NameRule::Subdomain,
        fields: &[],
        strategy: &Plain,
        columns: table::LEASE,
    },
    Resource {
        group: "storage.k8s.io",
        version: "v1",
        plural: "storageclasses",
        singular: "storageclass",
        kind: "StorageClass",
        short: &["sc"],
        categories: &[],
        namespaced: false,
        verbs: ALL,
        subresources: &[],
        names: NameRule::Subdomain,
        fields: &[],
        strategy: &kinds::volume::Class,
        columns: table::CLASS,
    },
];

/// The row of a resource by its path.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    RESOURCES
        .iter()
        .find(|row| row.group == group && row.version == version && row.plural == plural)
}

/// The row of a resource that this server always serves, by its name in the store's keys.
pub fn of_key(key: &Key) -> Option<&'static Resource> {
    RESOURCES.iter().find(|row| row.qualified() == key.resource)
}

macro_rules! rows {
    ($($(#[$meta:meta])* $name:ident = $group:literal $plural:literal;)*) => {$(
        $(#[$meta])*
        pub fn $name() -> &'static Resource {
            find($group, "v1", $plural).expect(concat!($plural, " stands in RESOURCES"))
        }
    )*};
}

rows! {
    /// The row of Pods.
    pods = "" "pods";
    /// The row of Namespaces.
    namespaces = "" "namespaces";
    /// The row of Nodes.
    nodes = "" "nodes";
    /// The row of Events.
    events = "" "events";
    /// The row of PersistentVolumeClaims.
    claims = "" "persistentvolumeclaims";
    /// The row of PersistentVolumes.
    volumes = "" "persistentvolumes";
    /// The row of StorageClasses.
    classes = "storage.k8s.io" "storageclasses";
}
