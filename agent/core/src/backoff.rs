//! Kubernetes' back-off: 10 s, doubled at each failure up to 5 min, forgotten after 10 min of running.
//!
//! Always holds: the first restart is immediate, as a kubelet's is.

/// The first wait, in milliseconds.
const FIRST: u64 = 10_000;
/// The longest wait, in milliseconds.
const LONGEST: u64 = 300_000;
/// Running this long, in milliseconds, means that the trouble is over.
const RESET: u64 = 600_000;

/// The back-off of one container or image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Backoff {
    /// The wait that the next failure costs, in milliseconds; 0 means none.
    pub(crate) wait: u64,
}

impl Backoff {
    /// A failure after `ran` milliseconds: the wait before the next try.
    pub(crate) fn crashed(&mut self, ran: u64) -> u64 {
        if ran >= RESET {
            self.wait = 0;
        }
        let wait = self.wait;
        self.wait = if wait == 0 { FIRST } else { (wait * 2).min(LONGEST) };
        wait
    }

    /// A failure to get an image: there the first wait is not free.
    pub(crate) fn failed(&mut self) -> u64 {
        self.wait = if self.wait == 0 {
            FIRST
        } else {
            (self.wait * 2).min(LONGEST)
        };
        self.wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_five_minutes_and_reset_after_ten() {
        let mut crash = Backoff::default();
        let waits: Vec<u64> = (0..8).map(|_| crash.crashed(0) / 1000).collect();
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(crash.crashed(RESET), 0);
        let mut pull = Backoff::default();
        let waits: Vec<u64> = (0..4).map(|_| pull.failed() / 1000).collect();
        assert_eq!(waits, [10, 20, 40, 80]);
    }
}
