//! How far a pull is, for people.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use skiff_images::pull::Progress;
use skiff_protocol::image_ref::Digest;

use crate::show::size;

/// When it is told of for the first time; then after twice as long, and so on.
const FIRST: Duration = Duration::from_secs(30);

/// The longest time between two.
const LONGEST: Duration = Duration::from_secs(1800);

/// How far a pull is.
#[derive(Debug)]
pub(crate) struct Shown {
    began: Instant,
    /// Bytes of all layers; 0 while that is not known.
    total: u64,
    /// Bytes of each layer that are here.
    layers: BTreeMap<Digest, u64>,
    /// Bytes that were here when it began to come.
    known: u64,
    tell_at: Instant,
    wait: Duration,
}

impl Shown {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            began: now,
            total: 0,
            layers: BTreeMap::new(),
            known: 0,
            tell_at: now + FIRST,
            wait: FIRST,
        }
    }

    /// So many bytes are in all of its layers, and so many of them are here.
    pub(crate) fn plan(&mut self, total: u64, known: u64) {
        (self.total, self.known) = (total, known);
    }

    /// Takes note of a layer; gives what to tell people, when it is time for that.
    pub(crate) fn hear(&mut self, progress: &Progress, now: Instant) -> Option<String> {
        self.layers.insert(progress.layer, progress.done);
        if now < self.tell_at || self.total == 0 {
            return None;
        }
        self.wait = (self.wait * 2).min(LONGEST);
        self.tell_at = now + self.wait;
        Some(self.text(now))
    }

    fn done(&self) -> u64 {
        let done = self
            .layers
            .values()
            .fold(0_u64, |sum, it| sum.saturating_add(*it));
        done.min(self.total)
    }

    fn text(&self, now: Instant) -> String {
        let (done, total) = (self.done(), self.total);
        let percent = u128::from(done) * 100 / u128::from(total.max(1));
        let mut text = format!("{} of {} ({percent}%)", size(done), size(total));
        let seconds = now.duration_since(self.began).as_secs();
        let rate = done.saturating_sub(self.known) / seconds.max(1);
        if let Some(left) = (total - done).checked_div(rate) {
            let left = if left < 120 {
                format!("{left} s")
            } else {
                format!("{} min", left / 60)
            };
            text.push_str(&format!(", {} KiB/s, about {left} left", rate >> 10));
        }
        text
    }

    /// For whoever asks on the node.
    pub(crate) fn json(&self, image: &str) -> Value {
        json!({ "image": image, "bytes": self.done(), "totalBytes": self.total })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_of_less_and_less_often() {
        let start = Instant::now();
        let mut shown = Shown::new(start);
        let layer = |n: u8, done: u64| Progress {
            layer: Digest::from_sha256([n; 32]),
            done,
            total: 10 << 20,
        };
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert_eq!(
            shown.hear(&layer(1, 1 << 20), at(40)),
            None,
            "of what is not known"
        );
        shown.plan(20 << 20, 5 << 20);
        assert_eq!(shown.hear(&layer(1, 5 << 20), at(10)), None);
        let text = shown.hear(&layer(2, 5 << 20), at(50)).unwrap();
        assert_eq!(text, "10.0 MiB of 20.0 MiB (50%), 102 KiB/s, about 100 s left");
        assert_eq!(shown.hear(&layer(2, 6 << 20), at(109)), None);
        let text = shown.hear(&layer(2, 6 << 20), at(110)).unwrap();
        assert!(text.ends_with("about 2 min left"), "{text}");
        let told: Vec<u64> = (111..10_000)
            .filter(|second| shown.hear(&layer(2, 7 << 20), at(*second)).is_some())
            .collect();
        assert_eq!(told, [230, 470, 950, 1910, 3710, 5510, 7310, 9110]);
        // A layer that is fetched anew takes nothing below nothing.
        shown.plan(20 << 20, 20 << 20);
        assert!(shown.text(at(10_000)).starts_with("12.0 MiB of 20.0 MiB (60%)"));
        assert_eq!(shown.json("a")["bytes"], 12 << 20);
    }
}
