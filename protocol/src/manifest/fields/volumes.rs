//! The fields of PersistentVolumes, PersistentVolumeClaims and StorageClasses.
//!
//! Source: the Kubernetes API reference, core/v1 and storage.k8s.io/v1. Always holds: every source of a
//! PersistentVolume is listed, so that one that no node has is refused by name.

use super::super::schema::Shape::{Any, Bool, List, Object, Quantities, Str, Strings};
use super::super::schema::{Field, refused, yes};
use super::METADATA;

pub(super) static CLAIM: [Field; 5] = [
    yes("apiVersion", Str),
    yes("kind", Str),
    yes("metadata", Object(&METADATA)),
    yes("spec", Object(&CLAIM_SPEC)),
    yes("status", Any),
];

static CLAIM_SPEC: [Field; 9] = [
    yes("accessModes", List(&Str))
        .noted("a directory of one node takes any of them; who writes is not checked"),
    yes("resources", Object(&CLAIM_RESOURCES)),
    yes("storageClassName", Str),
    yes("volumeName", Str),
    yes("volumeMode", Str).noted("`Filesystem` only"),
    refused("selector", Any, &[]),
    refused("dataSource", Any, &[]),
    refused("dataSourceRef", Any, &[]),
    refused("volumeAttributesClassName", Str, &["\"\""]),
];

static CLAIM_RESOURCES: [Field; 2] = [
    yes("requests", Quantities).noted("`storage` is what the claim counts as; it is not enforced as a bound"),
    refused("limits", Quantities, &[]),
];

pub(super) static VOLUME: [Field; 5] = [
    yes("apiVersion", Str),
    yes("kind", Str),
    yes("metadata", Object(&METADATA)),
    yes("spec", Object(&VOLUME_SPEC)),
    yes("status", Any),
];

static VOLUME_SPEC: [Field; 31] = [
    yes("accessModes", List(&Str)),
    yes("capacity", Quantities),
    yes("claimRef", Object(&REFERENCE)),
    yes("nodeAffinity", Any).noted("one term: `kubernetes.io/hostname` `In` one node's name"),
    yes("persistentVolumeReclaimPolicy", Str).noted("`Delete` and `Retain`"),
    yes("storageClassName", Str),
    yes("volumeMode", Str).noted("`Filesystem` only"),
    yes("csi", Object(&CSI)).noted("driver `skiff.io/node-local` only: a directory that the node keeps"),
    refused("local", Any, &[]),
    refused("hostPath", Any, &[]),
    refused("mountOptions", List(&Str), &[]),
    refused("volumeAttributesClassName", Str, &["\"\""]),
    refused("nfs", Any, &[]),
    refused("iscsi", Any, &[]),
    refused("fc", Any, &[]),
    refused("awsElasticBlockStore", Any, &[]),
    refused("azureDisk", Any, &[]),
    refused("azureFile", Any, &[]),
    refused("cephfs", Any, &[]),
    refused("cinder", Any, &[]),
    refused("flexVolume", Any, &[]),
    refused("flocker", Any, &[]),
    refused("gcePersistentDisk", Any, &[]),
    refused("glusterfs", Any, &[]),
    refused("photonPersistentDisk", Any, &[]),
    refused("portworxVolume", Any, &[]),
    refused("quobyte", Any, &[]),
    refused("rbd", Any, &[]),
    refused("scaleIO", Any, &[]),
    refused("storageos", Any, &[]),
    refused("vsphereVolume", Any, &[]),
];

static REFERENCE: [Field; 7] = [
    yes("apiVersion", Str),
    yes("kind", Str),
    yes("namespace", Str),
    yes("name", Str),
    yes("uid", Str),
    yes("resourceVersion", Str),
    yes("fieldPath", Str),
];

static CSI: [Field; 10] = [
    yes("driver", Str),
    yes("volumeHandle", Str).noted("the PersistentVolume's name, which is also the directory's"),
    // A directory has no file system of its own, and no driver reads attributes.
    refused("fsType", Str, &["\"\""]),
    refused("readOnly", Bool, &["false"]),
    refused("volumeAttributes", Strings, &["{}"]),
    refused("controllerExpandSecretRef", Any, &[]),
    refused("controllerPublishSecretRef", Any, &[]),
    refused("nodeExpandSecretRef", Any, &[]),
    refused("nodePublishSecretRef", Any, &[]),
    refused("nodeStageSecretRef", Any, &[]),
];

pub(super) static CLASS: [Field; 10] = [
    yes("apiVersion", Str),
    yes("kind", Str),
    yes("metadata", Object(&METADATA)),
    yes("provisioner", Str).noted("`skiff.io/node-local`"),
    yes("reclaimPolicy", Str).noted("`Delete` and `Retain`"),
    yes("volumeBindingMode", Str).noted("`WaitForFirstConsumer`, which is also the default"),
    yes("allowVolumeExpansion", Bool),
    refused("parameters", Strings, &[]),
    refused("mountOptions", List(&Str), &[]),
    refused("allowedTopologies", List(&Any), &[]),
];
