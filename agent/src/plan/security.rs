//! From `securityContext` to whom a process runs as and what it may do.
//!
//! Always holds: pure; what a profile cannot give is an error, never a container without it.

use skiff_images::Image;
use skiff_protocol::wire::spec::{AppArmor, Container, PodSpec, Seccomp as SeccompSpec};
use skiff_sys::{Seccomp, User, default_capabilities};

use super::Facts;

/// The AppArmor profile that `RuntimeDefault` means, where the node has loaded one of this name.
pub(crate) const APPARMOR_DEFAULT: &str = "skiff-default";

/// Whom the container's process runs as, and where it is at home.
pub(super) fn user(pod: &PodSpec, spec: &Container, image: &Image) -> Result<(User, String), String> {
    let wanted = spec
        .security
        .run_as_user
        .map_or_else(|| image.config.user.clone(), |uid| uid.to_string());
    let found = image.resolve_user(&wanted).map_err(|error| error.to_string())?;
    if spec.security.run_as_non_root && found.uid == 0 {
        let what = if spec.security.run_as_user.is_some() {
            "container's runAsUser breaks non-root policy"
        } else {
            "container has runAsNonRoot and image will run as root"
        };
        return Err(format!(
            "{what} (pod: \"{}_{}({})\", container: {})",
            pod.name, pod.namespace, pod.uid, spec.name
        ));
    }
    let user = User {
        uid: found.uid,
        gid: spec.security.run_as_group.unwrap_or(found.gid),
        additional_gids: groups(pod, found.additional_gids),
    };
    Ok((user, found.home))
}

/// The supplementary groups: those of the image's user, unless the policy is Strict, and the Pod's.
pub(super) fn groups(pod: &PodSpec, of_image: Vec<u32>) -> Vec<u32> {
    let mut out = if pod.security.strict_groups {
        Vec::new()
    } else {
        of_image
    };
    for gid in pod
        .security
        .supplemental_groups
        .iter()
        .chain(&pod.security.fs_group)
    {
        if !out.contains(gid) {
            out.push(*gid);
        }
    }
    out
}

/// The container's capabilities; a privileged one has all that the agent has.
pub(super) fn capabilities(spec: &Container, bounding: &[String]) -> Vec<String> {
    let security = &spec.security;
    if security.privileged {
        return bounding.to_vec();
    }
    let (add, drop) = (&security.add_capabilities, &security.drop_capabilities);
    let full = |name: &String| format!("CAP_{name}");
    let all = |names: &[String]| names.iter().any(|name| name == "ALL");
    let mut out = match (all(add), all(drop)) {
        (true, _) => bounding.to_vec(),
        (false, true) => Vec::new(),
        (false, false) => default_capabilities(),
    };
    out.extend(add.iter().filter(|name| *name != "ALL").map(full));
    out.retain(|name| !drop.iter().any(|it| full(it) == *name));
    out.sort();
    out.dedup();
    out
}

/// Whether a process may gain what its parent did not have. A privileged container, or one that administers the system,
/// always may, as in Kubernetes.
pub(super) fn may_escalate(spec: &Container) -> bool {
    let security = &spec.security;
    let adds = |name: &String| name == "SYS_ADMIN";
    security.allow_privilege_escalation || security.privileged || security.add_capabilities.iter().any(adds)
}

pub(super) fn seccomp(spec: &Container, facts: &Facts<'_>) -> Seccomp {
    match &spec.security.seccomp {
        // As with containerd: no filter holds what may load modules.
        _ if spec.security.privileged => Seccomp::Unconfined,
        None | Some(SeccompSpec::RuntimeDefault) => Seccomp::RuntimeDefault,
        Some(SeccompSpec::Unconfined) => Seccomp::Unconfined,
        Some(SeccompSpec::Localhost(name)) => Seccomp::Profile(facts.seccomp_dir.join(name)),
    }
}

/// The profile to run under; `None` where the kernel has no AppArmor, or nothing is asked for.
pub(super) fn apparmor(spec: &Container, facts: &Facts<'_>) -> Result<Option<String>, String> {
    match (&spec.security.apparmor, facts.apparmor) {
        (Some(AppArmor::Localhost(_)), None) => {
            Err("Cannot enforce AppArmor: AppArmor is not enabled on the host".to_owned())
        }
        (Some(AppArmor::Localhost(name)), Some(loaded)) if loaded(name) => Ok(Some(name.clone())),
        (Some(AppArmor::Localhost(name)), Some(_)) => Err(format!("apparmor profile not found {name}")),
        (None | Some(AppArmor::RuntimeDefault), Some(loaded))
            if !spec.security.privileged && loaded(APPARMOR_DEFAULT) =>
        {
            Ok(Some(APPARMOR_DEFAULT.to_owned()))
        }
        _ => Ok(None),
    }
}
