//! Tells the agent when it was built: `SOURCE_DATE_EPOCH` where the build sets it, so that the same sources give the same
//! bytes, else the time of this script's run.

use std::time::{SystemTime, UNIX_EPOCH};

/// What a build machine whose clock is behind is not believed.
const EARLIEST: u64 = 1_763_683_200;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    let given = std::env::var("SOURCE_DATE_EPOCH")
        .ok()
        .and_then(|it| it.parse().ok());
    let seconds: u64 = given.unwrap_or_else(|| {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs())
    });
    println!("cargo::rustc-env=SKIFF_BUILT={}", seconds.max(EARLIEST));
}
