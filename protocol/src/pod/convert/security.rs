//! `securityContext` of Pod and container.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;

use super::Convert;
use crate::manifest::{self, Cause};
use crate::pod::check;
use crate::wire::spec::{AppArmor, PodSecurity, Seccomp, Security};

/// What seccomp's and AppArmor's profiles have in common.
enum Profile {
    RuntimeDefault,
    Unconfined,
    Localhost(String),
}

impl Convert {
    pub(super) fn id(&mut self, field: &str, value: Option<i64>) -> Option<u32> {
        let value = value?;
        let id = u32::try_from(value).ok().filter(|id| i32::try_from(*id).is_ok());
        if id.is_none() {
            self.causes.push(Cause::invalid(
                field,
                value,
                "must be between 0 and 2147483647, inclusive",
            ));
        }
        id
    }

    fn seccomp(&mut self, field: &str, profile: Option<&manifest::SeccompProfile>) -> Option<Seccomp> {
        let profile = profile?;
        let field = format!("{field}.seccompProfile");
        let localhost = profile.localhost_profile.as_deref();
        Some(match self.profile(&field, &profile.kind, localhost)? {
            Profile::RuntimeDefault => Seccomp::RuntimeDefault,
            Profile::Unconfined => Seccomp::Unconfined,
            Profile::Localhost(name) => {
                check::relative(&format!("{field}.localhostProfile"), &name, &mut self.causes);
                Seccomp::Localhost(name)
            }
        })
    }

    fn apparmor(&mut self, field: &str, profile: Option<&manifest::AppArmorProfile>) -> Option<AppArmor> {
        let profile = profile?;
        let field = format!("{field}.appArmorProfile");
        let localhost = profile.localhost_profile.as_deref();
        Some(match self.profile(&field, &profile.kind, localhost)? {
            Profile::RuntimeDefault => AppArmor::RuntimeDefault,
            Profile::Unconfined => AppArmor::Unconfined,
            Profile::Localhost(name) => AppArmor::Localhost(name),
        })
    }

    /// What `type` and `localhostProfile` say together.
    fn profile(&mut self, field: &str, kind: &str, localhost: Option<&str>) -> Option<Profile> {
        let name = localhost.unwrap_or_default();
        let field_of_name = format!("{field}.localhostProfile");
        match kind {
            "Localhost" if name.is_empty() => {
                let what = "must be set when type is Localhost";
                self.causes.push(Cause::required(field_of_name, what));
                None
            }
            "Localhost" => Some(Profile::Localhost(name.to_owned())),
            "RuntimeDefault" | "Unconfined" => {
                if !name.is_empty() {
                    let why = "can only be set when type is Localhost";
                    self.causes.push(Cause::invalid(field_of_name, name, why));
                }
                Some(if kind == "Unconfined" {
                    Profile::Unconfined
                } else {
                    Profile::RuntimeDefault
                })
            }
            other => {
                let supported = ["Localhost", "RuntimeDefault", "Unconfined"];
                let field = format!("{field}.type");
                self.causes.push(Cause::not_supported(field, other, &supported));
                None
            }
        }
    }

    pub(super) fn pod_security(&mut self, from: &manifest::PodSecurityContext) -> PodSecurity {
        let at = "spec.securityContext";
        let groups = from.supplemental_groups.iter().enumerate();
        PodSecurity {
            run_as_user: self.id(&format!("{at}.runAsUser"), from.run_as_user),
            run_as_group: self.id(&format!("{at}.runAsGroup"), from.run_as_group),
            run_as_non_root: from.run_as_non_root.unwrap_or(false),
            supplemental_groups: groups
                .filter_map(|(n, group)| self.id(&format!("{at}.supplementalGroups[{n}]"), Some(*group)))
                .collect(),
            strict_groups: self.one_of(
                &format!("{at}.supplementalGroupsPolicy"),
                from.supplemental_groups_policy.as_deref(),
                &[("Merge", false), ("Strict", true)],
            ),
            fs_group: self.id(&format!("{at}.fsGroup"), from.fs_group),
            fs_group_on_root_mismatch: self.one_of(
                &format!("{at}.fsGroupChangePolicy"),
                from.fs_group_change_policy.as_deref(),
                &[("Always", false), ("OnRootMismatch", true)],
            ),
            sysctls: from
                .sysctls
                .iter()
                .map(|it| (it.name.replace('/', "."), it.value.clone()))
                .collect(),
            seccomp: self.seccomp(at, from.seccomp_profile.as_ref()),
            apparmor: self.apparmor(at, from.app_armor_profile.as_ref()),
        }
    }

    pub(super) fn security(
        &mut self,
        path: &str,
        from: &manifest::SecurityContext,
        pod: &PodSecurity,
    ) -> Security {
        let path = format!("{path}.securityContext");
        let strip = |names: &[String]| {
            names
                .iter()
                .map(|n| n.strip_prefix("CAP_").unwrap_or(n).to_owned())
                .collect()
        };
        Security {
            run_as_user: self
                .id(&format!("{path}.runAsUser"), from.run_as_user)
                .or(pod.run_as_user),
            run_as_group: self
                .id(&format!("{path}.runAsGroup"), from.run_as_group)
                .or(pod.run_as_group),
            run_as_non_root: from.run_as_non_root.unwrap_or(pod.run_as_non_root),
            read_only_root: from.read_only_root_filesystem,
            privileged: from.privileged,
            allow_privilege_escalation: self.escalation(&path, from),
            unmasked_proc: self.one_of(
                &format!("{path}.procMount"),
                from.proc_mount.as_deref(),
                &[("Default", false), ("Unmasked", true)],
            ),
            add_capabilities: strip(&from.capabilities.add),
            drop_capabilities: strip(&from.capabilities.drop),
            seccomp: self
                .seccomp(&path, from.seccomp_profile.as_ref())
                .or_else(|| pod.seccomp.clone()),
            apparmor: self
                .apparmor(&path, from.app_armor_profile.as_ref())
                .or_else(|| pod.apparmor.clone()),
        }
    }

    /// Whether the process may gain privileges; who has them all, or may give them to itself, always can.
    fn escalation(&mut self, path: &str, from: &manifest::SecurityContext) -> bool {
        let admin = from.capabilities.add.iter().any(|it| it == "CAP_SYS_ADMIN");
        let against = if from.privileged {
            Some("cannot set `allowPrivilegeEscalation` to false and `privileged` to true")
        } else if admin {
            Some("cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN")
        } else {
            None
        };
        if let (Some(false), Some(why)) = (from.allow_privilege_escalation, against) {
            self.causes.push(Cause::invalid(path, "", why));
        }
        from.privileged || from.allow_privilege_escalation == Some(true)
    }
}
