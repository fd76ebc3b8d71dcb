//! `valueFrom`, and the same of files: fields and resources of the Pod.

use alloc::borrow::ToOwned;
use alloc::format;

use super::Convert;
use crate::manifest::{self, Cause};
use crate::quantity::Quantity;
use crate::wire::spec::{EnvValue, FieldPath, ResourceField, ResourceName};

impl Convert {
    pub(super) fn env_source(&mut self, path: &str, source: &manifest::EnvVarSource) -> Option<EnvValue> {
        let key = |secret, it: &manifest::KeySelector| EnvValue::Key {
            secret,
            name: it.name.clone(),
            key: it.key.clone(),
            optional: it.optional,
        };
        match (
            &source.field_ref,
            &source.config_map_key_ref,
            &source.secret_key_ref,
            &source.resource_field_ref,
        ) {
            (Some(field), None, None, None) => self.field_path(path, &field.field_path).map(EnvValue::Field),
            (None, Some(map), None, None) => Some(key(false, map)),
            (None, None, Some(secret), None) => Some(key(true, secret)),
            (None, None, None, Some(resource)) => self.resource_field(path, resource).map(EnvValue::Resource),
            (None, None, None, None) => {
                let what = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`";
                self.causes.push(Cause::invalid(path, "", what));
                None
            }
            _ => {
                self.causes.push(Cause::invalid(
                    path,
                    "",
                    "may not have more than one field specified at a time",
                ));
                None
            }
        }
    }

    pub(super) fn field_path(&mut self, path: &str, text: &str) -> Option<FieldPath> {
        let keyed = |prefix: &str| Some(text.strip_prefix(prefix)?.strip_suffix("']")?.to_owned());
        let found = match text {
            "metadata.name" => Some(FieldPath::Name),
            "metadata.namespace" => Some(FieldPath::Namespace),
            "metadata.uid" => Some(FieldPath::Uid),
            "spec.nodeName" => Some(FieldPath::NodeName),
            "spec.serviceAccountName" => Some(FieldPath::ServiceAccountName),
            "status.hostIP" | "status.hostIPs" => Some(FieldPath::HostIp),
            "status.podIP" | "status.podIPs" => Some(FieldPath::PodIp),
            _ => keyed("metadata.labels['")
                .map(FieldPath::Label)
                .or_else(|| keyed("metadata.annotations['").map(FieldPath::Annotation)),
        };
        if found.is_none() {
            let supported = [
                "metadata.name",
                "metadata.namespace",
                "metadata.uid",
                "metadata.labels['KEY']",
                "metadata.annotations['KEY']",
                "spec.nodeName",
                "spec.serviceAccountName",
                "status.hostIP",
                "status.hostIPs",
                "status.podIP",
                "status.podIPs",
            ];
            self.causes.push(Cause::not_supported(
                format!("{path}.fieldRef.fieldPath"),
                text,
                &supported,
            ));
        }
        found
    }

    /// `limits.cpu`, `requests.memory` and their like, with a divisor.
    pub(super) fn resource_field(
        &mut self,
        path: &str,
        from: &manifest::ResourceFieldSelector,
    ) -> Option<ResourceField> {
        let path = format!("{path}.resourceFieldRef");
        let (kind, name) = from.resource.split_once('.').unwrap_or(("", ""));
        let resource = match name {
            "cpu" => Some(ResourceName::Cpu),
            "memory" => Some(ResourceName::Memory),
            "ephemeral-storage" => Some(ResourceName::EphemeralStorage),
            other => other
                .strip_prefix("hugepages-")
                .and_then(|size| Quantity::parse(size).ok())
                .map(|size| ResourceName::HugePages(size.value().unsigned_abs())),
        };
        let Some(resource) = resource.filter(|_| matches!(kind, "limits" | "requests")) else {
            let supported = [
                "limits.cpu",
                "limits.memory",
                "limits.ephemeral-storage",
                "requests.cpu",
                "requests.memory",
                "requests.ephemeral-storage",
            ];
            self.causes.push(Cause::not_supported(
                format!("{path}.resource"),
                &from.resource,
                &supported,
            ));
            return None;
        };
        Some(ResourceField {
            container: from.container_name.clone(),
            request: kind == "requests",
            resource,
            divisor_milli: self.divisor(&format!("{path}.divisor"), resource, from.divisor.as_ref())?,
        })
    }

    /// Source: Kubernetes API reference, `ResourceFieldSelector.divisor`: absent and 0 mean 1.
    fn divisor(
        &mut self,
        field: &str,
        resource: ResourceName,
        written: Option<&manifest::WrittenQuantity>,
    ) -> Option<u64> {
        const CPU: [&str; 2] = ["1m", "1"];
        const BYTES: [&str; 13] = [
            "1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei",
        ];
        let text = written.map_or("1", |it| it.0.as_str());
        let parsed = match Quantity::parse(text) {
            Ok(parsed) if parsed == Quantity::ZERO => Quantity::parse("1").ok(),
            Ok(parsed) => Some(parsed),
            Err(_) => None,
        };
        let legal: &[&str] = if resource == ResourceName::Cpu {
            &CPU
        } else {
            &BYTES
        };
        let same = |it: &&str| Quantity::parse(it).ok() == parsed;
        if parsed.is_none() || !legal.iter().any(same) {
            self.causes.push(Cause::not_supported(field, text, legal));
            return None;
        }
        parsed.map(|it| it.milli().unsigned_abs())
    }
}
