//! The fields that say where a Pod wants to be: `affinity` and `topologySpreadConstraints`.
//!
//! Source: the Kubernetes API reference, core/v1. Always holds: what is listed as honoured here is decided by the server's
//! placement alone; a node never sees it.

use super::super::schema::Shape::{Int, List, Object, Str, Strings};
use super::super::schema::{Field, yes};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

pub(super) static AFFINITY: [Field; 3] = [
    yes("nodeAffinity", Object(&NODE_AFFINITY)),
    yes("podAffinity", Object(&POD_AFFINITY)),
    yes("podAntiAffinity", Object(&POD_AFFINITY)),
];

static NODE_AFFINITY: [Field; 2] = [
    yes(REQUIRED, Object(&NODE_SELECTOR)),
    yes(PREFERRED, List(&Object(&PREFERRED_NODE))),
];

static NODE_SELECTOR: [Field; 1] = [yes("nodeSelectorTerms", List(&Object(&NODE_TERM)))];

static PREFERRED_NODE: [Field; 2] = [yes("weight", Int), yes("preference", Object(&NODE_TERM))];

static NODE_TERM: [Field; 2] = [
    yes("matchExpressions", List(&Object(&REQUIREMENT))),
    yes("matchFields", List(&Object(&REQUIREMENT))).noted("`metadata.name`"),
];

static REQUIREMENT: [Field; 3] = [yes("key", Str), yes("operator", Str), yes("values", List(&Str))];

static POD_AFFINITY: [Field; 2] = [
    yes(REQUIRED, List(&Object(&POD_TERM))),
    yes(PREFERRED, List(&Object(&PREFERRED_POD))),
];

static PREFERRED_POD: [Field; 2] = [yes("weight", Int), yes("podAffinityTerm", Object(&POD_TERM))];

static POD_TERM: [Field; 6] = [
    yes("labelSelector", Object(&LABEL_SELECTOR)),
    yes("topologyKey", Str),
    yes("namespaces", List(&Str)),
    yes("namespaceSelector", Object(&LABEL_SELECTOR)),
    yes("matchLabelKeys", List(&Str)),
    yes("mismatchLabelKeys", List(&Str)),
];

static LABEL_SELECTOR: [Field; 2] = [
    yes("matchLabels", Strings),
    yes("matchExpressions", List(&Object(&REQUIREMENT))),
];

pub(super) static SPREAD: [Field; 8] = [
    yes("maxSkew", Int),
    yes("topologyKey", Str),
    yes("whenUnsatisfiable", Str),
    yes("labelSelector", Object(&LABEL_SELECTOR)),
    yes("minDomains", Int),
    yes("nodeAffinityPolicy", Str),
    yes("nodeTaintsPolicy", Str),
    yes("matchLabelKeys", List(&Str)),
];
