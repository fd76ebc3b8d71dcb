//! AppArmor: whether the kernel has it, and the profile of what is executed next.
//!
//! Always holds: a profile that cannot be applied is an error, so nothing runs without the one that it is to have.

use std::fs;
use std::io;

use crate::error::{Doing, Result};

/// The kernel's own word that profiles are enforced.
const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";

/// Where a thread names the profile of its next `execve`; the second is where kernels before 5.8 have it.
const ON_EXEC: [&str; 2] = [
    "/proc/thread-self/attr/apparmor/exec",
    "/proc/thread-self/attr/exec",
];

/// The name of having no profile.
pub(crate) const UNCONFINED: &str = "unconfined";

/// Whether this kernel enforces AppArmor profiles.
pub(crate) fn is_enabled() -> bool {
    fs::read_to_string(ENABLED).is_ok_and(|text| text.trim() == "Y")
}

/// Has this thread's next `execve` confined by a profile. Without AppArmor there is nothing to leave, so `unconfined` is
/// what everything is already.
pub(crate) fn on_exec(profile: &str) -> Result<()> {
    if profile == UNCONFINED && !std::path::Path::new(ON_EXEC[0]).exists() {
        return Ok(());
    }
    let line = format!("exec {profile}");
    let written = fs::write(ON_EXEC[0], &line).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => fs::write(ON_EXEC[1], &line),
        _ => Err(error),
    });
    written.doing("apply AppArmor profile", profile)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_that_is_not_loaded_is_refused() {
        let outcome = std::thread::spawn(|| on_exec("skiff-no-such-profile"))
            .join()
            .unwrap();
        let error = outcome.unwrap_err().to_string();
        assert!(
            error.starts_with("cannot apply AppArmor profile skiff-no-such-profile"),
            "{error}"
        );
        if !is_enabled() {
            assert!(std::thread::spawn(|| on_exec(UNCONFINED)).join().unwrap().is_ok());
        }
    }
}
