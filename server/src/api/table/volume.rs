//! The rows of PersistentVolumes, PersistentVolumeClaims and StorageClasses.

use serde_json::Value;

use super::{AGE, Column, NAME, column, text, text_or, wide};
use crate::api::metadata;

const MODE: Column = wide(
    "VolumeMode",
    "string",
    "Whether the volume is a file system.",
    |object, _| text_or(object, "/spec/volumeMode", "<unset>").into(),
);

/// Columns of PersistentVolumes.
pub(crate) const VOLUME: &[Column] = &[
    NAME,
    column("Capacity", "string", "How much it counts as.", |volume, _| {
        text(volume, "/spec/capacity/storage").into()
    }),
    column("Access Modes", "string", "Who may use it.", |volume, _| {
        modes(volume, "/spec/accessModes").into()
    }),
    column(
        "Reclaim Policy",
        "string",
        "What becomes of it once its claim is gone.",
        |volume, _| text(volume, "/spec/persistentVolumeReclaimPolicy").into(),
    ),
    column("Status", "string", "The phase of the volume.", |volume, _| {
        phase(volume).into()
    }),
    column(
        "Claim",
        "string",
        "The claim that it is bound to.",
        |volume, _| {
            let (namespace, name) = (
                text(volume, "/spec/claimRef/namespace"),
                text(volume, "/spec/claimRef/name"),
            );
            if name.is_empty() {
                "".into()
            } else {
                format!("{namespace}/{name}").into()
            }
        },
    ),
    column(
        "StorageClass",
        "string",
        "The class of the volume.",
        |volume, _| text(volume, "/spec/storageClassName").into(),
    ),
    column(
        "VolumeAttributesClass",
        "string",
        "There are none here.",
        |_, _| "<unset>".into(),
    ),
    column("Reason", "string", "Why it is in its phase.", |volume, _| {
        text(volume, "/status/reason").into()
    }),
    AGE,
    MODE,
];

/// Columns of PersistentVolumeClaims.
pub(crate) const CLAIM: &[Column] = &[
    NAME,
    column("Status", "string", "The phase of the claim.", |claim, _| {
        phase(claim).into()
    }),
    column(
        "Volume",
        "string",
        "The volume that it is bound to.",
        |claim, _| text(claim, "/spec/volumeName").into(),
    ),
    column("Capacity", "string", "How much it has.", |claim, _| {
        bound(claim, text(claim, "/status/capacity/storage").to_owned()).into()
    }),
    column("Access Modes", "string", "Who may use it.", |claim, _| {
        bound(claim, modes(claim, "/status/accessModes")).into()
    }),
    column("StorageClass", "string", "The class of the claim.", |claim, _| {
        text(claim, "/spec/storageClassName").into()
    }),
    column(
        "VolumeAttributesClass",
        "string",
        "There are none here.",
        |_, _| "<unset>".into(),
    ),
    AGE,
    MODE,
];

/// Columns of StorageClasses.
pub(crate) const CLASS: &[Column] = &[
    Column {
        cell: |class, _| {
            let marked = &class["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"];
            let default = if marked == "true" { " (default)" } else { "" };
            format!("{}{default}", metadata::text(class, "name")).into()
        },
        ..NAME
    },
    column("Provisioner", "string", "Who makes its volumes.", |class, _| {
        text(class, "/provisioner").into()
    }),
    column(
        "ReclaimPolicy",
        "string",
        "What becomes of its volumes once their claims are gone.",
        |class, _| text_or(class, "/reclaimPolicy", "Delete").into(),
    ),
    column(
        "VolumeBindingMode",
        "string",
        "When its claims are bound.",
        |class, _| text(class, "/volumeBindingMode").into(),
    ),
    column(
        "AllowVolumeExpansion",
        "string",
        "Whether its claims may grow.",
        |class, _| (class["allowVolumeExpansion"] == true).to_string().into(),
    ),
    AGE,
];

fn phase(object: &Value) -> String {
    if metadata::is_deleting(object) {
        return "Terminating".into();
    }
    text(object, "/status/phase").to_owned()
}

fn bound(claim: &Value, shown: String) -> String {
    if text(claim, "/spec/volumeName").is_empty() {
        String::new()
    } else {
        shown
    }
}

/// Kubernetes' abbreviations, in its order.
fn modes(object: &Value, pointer: &str) -> String {
    const SHORT: [(&str, &str); 4] = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let modes = object.pointer(pointer).and_then(Value::as_array);
    let has = |mode: &str| modes.is_some_and(|modes| modes.iter().any(|it| it == mode));
    let short = SHORT
        .iter()
        .filter(|(mode, _)| has(mode))
        .map(|(_, short)| *short);
    short.collect::<Vec<_>>().join(",")
}
