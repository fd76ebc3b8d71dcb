//! Waiting: asking again until a deadline, and never sleeping in the hope that something has happened.
//!
//! Always holds: what was waited for in vain stands in the failure, with the last answer.

use std::time::{Duration, Instant};

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(50);

/// Asks until there is an answer. The last `Err` is what the failure shows.
///
/// # Panics
/// When the deadline passes.
#[track_caller]
pub(crate) fn wait<T>(what: &str, seconds: u64, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(last) if Instant::now() > deadline => {
                panic!("waited {seconds} s in vain for {what}; last seen: {last}")
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

/// Waits until it is so.
///
/// # Panics
/// When the deadline passes.
#[track_caller]
pub(crate) fn until(what: &str, seconds: u64, mut is_so: impl FnMut() -> bool) {
    wait(what, seconds, || {
        is_so().then_some(()).ok_or_else(|| "no".to_owned())
    });
}

/// Checks again and again, for as long, that it stays so.
#[track_caller]
pub(crate) fn stays(seconds: u64, mut check: impl FnMut()) {
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        check();
        std::thread::sleep(Duration::from_millis(250));
    }
}
