//! Events: what they are about must be in their own namespace.

use serde_json::Value;
use skiff_protocol::manifest::Cause;

use crate::api::resources::Strategy;

/// See the module.
pub struct Event;

impl Strategy for Event {
    fn check(&self, object: &Value) -> Vec<Cause> {
        let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let (own, involved) = (text("/metadata/namespace"), text("/involvedObject/namespace"));
        // Events about cluster-scoped objects live in `default`, as in Kubernetes.
        let wanted = if involved.is_empty() { "default" } else { involved };
        if own == wanted || (involved.is_empty() && own == "kube-system") {
            return Vec::new();
        }
        vec![Cause::invalid(
            "involvedObject.namespace",
            involved,
            "does not match event.namespace",
        )]
    }
}
