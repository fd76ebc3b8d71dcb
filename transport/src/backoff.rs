//! How long to wait before the next connection: full jitter, so that a fleet that lost its broker does not come back
//! in step.
//!
//! Always holds: a wait is below `cap`; the first one after a healthy connection is below `base`.

use std::time::Duration;

/// A connection that lived this long counts as healthy. One that is refused, taken over or poisoned right after
/// CONNACK does not, so that it cannot loop at full speed.
const HEALTHY: Duration = Duration::from_secs(30);

pub(crate) struct Backoff {
    base: Duration,
    cap: Duration,
    failures: u32,
    random: Box<dyn FnMut() -> u64 + Send>,
}

impl Backoff {
    pub(crate) fn new(base: Duration, cap: Duration, random: Box<dyn FnMut() -> u64 + Send>) -> Self {
        Self {
            base,
            cap,
            failures: 0,
            random,
        }
    }

    /// The wait after a connection that was up for `lived`, or after an attempt that never got there (zero).
    pub(crate) fn next(&mut self, lived: Duration) -> Duration {
        if lived >= HEALTHY {
            self.failures = 0;
        }
        let factor = 1u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        self.failures = self.failures.saturating_add(1);
        let bound = self.base.saturating_mul(factor).min(self.cap);
        // Microseconds of the cap (300 s) stay far below 64 bits.
        let micros = (bound.as_micros() as u64).max(1);
        Duration::from_micros((self.random)() % micros)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_stop_at_the_cap_and_start_over_after_health() {
        let secs = Duration::from_secs;
        let top = || Box::new(|| u64::MAX / 1_000_000 * 1_000_000 - 1);
        // The largest remainder shows the bound itself.
        let mut backoff = Backoff::new(secs(1), secs(10), top());
        let mut check = |lived, bound: u64| {
            let wait = backoff.next(lived);
            assert!(wait < secs(bound), "{wait:?} for a bound of {bound} s");
            wait
        };
        for bound in [1, 2, 4, 8, 10, 10] {
            check(secs(0), bound);
        }
        check(secs(29), 10);
        check(secs(30), 1);
        check(secs(0), 2);
        for _ in 0..100 {
            check(secs(0), 10);
        }
    }

    #[test]
    fn jitter_spreads_over_the_whole_bound() {
        let mut seed = 1u64;
        let random = move || {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            seed >> 16
        };
        let mut backoff = Backoff::new(Duration::from_secs(8), Duration::from_secs(8), Box::new(random));
        let mut buckets = [0u32; 8];
        for _ in 0..800 {
            buckets[backoff.next(Duration::ZERO).as_secs() as usize] += 1;
        }
        assert!(buckets.iter().all(|n| (50..=150).contains(n)), "{buckets:?}");
    }
}
