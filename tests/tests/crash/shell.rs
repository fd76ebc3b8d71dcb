//! The driver's rules for core and journal together: one batch one record, synced before anything follows from it.
//!
//! Always holds: what is in `said` was said to the outside, and only after the journal reported that it is durable, unless
//! the shell was made careless.

use skiff_core::{Config, Core, Effect, Event, Now, Record, Recovered};
use skiff_journal::Journal;
use skiff_protocol::wire::Up;

use crate::medium::Medium;

/// How a shell may be broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Care {
    Sound,
    /// Says that a batch is durable when it is appended.
    SpeaksTooSoon,
    /// Goes on appending after a failed commit whose batch is still in the journal's buffer.
    ForgetsFailures,
}

/// What the outside may rely on.
#[derive(Default)]
pub(crate) struct Said {
    /// States that recovery may give: the last one that was promised, and all that were on their way since.
    pub(crate) possible: Vec<Recovered>,
    /// The highest generation confirmed to the server.
    pub(crate) generation: u64,
    /// Promises made.
    pub(crate) promises: u64,
    pub(crate) checkpoints: u64,
}

pub(crate) struct Shell {
    pub(crate) core: Core,
    journal: Journal<Medium>,
    care: Care,
    unsynced: Vec<u64>,
    /// A commit failed, and no checkpoint has made it good.
    failed: bool,
    /// What the medium holds when everything appended so far is durable.
    appended: Recovered,
    pub(crate) said: Said,
    pub(crate) seconds: i64,
}

pub(crate) fn decode(records: &[Vec<u8>]) -> Recovered {
    let mut out = Recovered::default();
    for bytes in records {
        let batch: Vec<Record> = postcard::from_bytes(bytes).expect("the journal gives back whole records");
        batch.into_iter().for_each(|record| out.apply(record));
    }
    out
}

fn fold(base: &Recovered, records: &[Record]) -> Recovered {
    let mut out = base.clone();
    records.iter().for_each(|record| out.apply(record.clone()));
    out
}

impl Shell {
    /// Opens the journal and begins; nothing when the medium fails at once.
    pub(crate) fn open(medium: Medium, config: Config, care: Care) -> Option<Self> {
        let (journal, recovery) = Journal::open(medium).ok()?;
        let recovered = decode(&recovery.records);
        let mut shell = Self {
            core: Core::new(config, recovered.clone()),
            journal,
            care,
            unsynced: Vec::new(),
            failed: false,
            appended: recovered.clone(),
            said: Said {
                possible: vec![recovered],
                ..Said::default()
            },
            seconds: 1_767_225_600,
        };
        shell.turn(Event::Observed(Vec::new()));
        Some(shell)
    }

    /// One turn of the driver: the event, what follows at once, and a sync.
    pub(crate) fn turn(&mut self, event: Event) {
        self.seconds += 1;
        self.event(event);
        self.sync();
    }

    fn sync(&mut self) {
        while !self.unsynced.is_empty() {
            let tokens = std::mem::take(&mut self.unsynced);
            let done = self.commit();
            for token in tokens {
                self.event(if done {
                    Event::Durable(token)
                } else {
                    Event::NotDurable(token)
                });
            }
            if !done {
                // What was refused is not held; the journal must not bring it back.
                self.appended = fold(&Recovered::default(), &self.core.checkpoint());
                self.checkpoint();
            }
        }
    }

    fn commit(&mut self) -> bool {
        if self.failed && self.care != Care::ForgetsFailures {
            return false;
        }
        let done = self.journal.commit().is_ok();
        if done {
            self.promised();
        }
        self.failed = !done;
        done
    }

    fn event(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let now = Now {
                mono: u64::try_from(self.seconds).expect("after 1970") * 1000,
                unix: self.seconds,
            };
            for effect in self.core.handle(now, event) {
                match effect {
                    Effect::Append { token, records } => {
                        if !self.append(&records) {
                            events.push(Event::NotDurable(token));
                            continue;
                        }
                        self.unsynced.push(token);
                        if self.care == Care::SpeaksTooSoon {
                            events.push(Event::Durable(token));
                        }
                    }
                    Effect::Send(up) => {
                        if let Up::Applied { generation, .. } = *up {
                            self.said.generation = self.said.generation.max(generation);
                            self.said.promises += 1;
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    /// Everything appended is durable: from now on nothing less may be recovered.
    fn promised(&mut self) {
        self.said.possible = vec![self.appended.clone()];
        self.said.promises += 1;
    }

    fn append(&mut self, records: &[Record]) -> bool {
        let bytes = postcard::to_allocvec(records).expect("postcard encodes into memory without fail");
        let barred = self.failed && self.care != Care::ForgetsFailures;
        let mut taken = !barred && self.journal.append(&bytes).is_ok();
        if !taken {
            // The core must know what is durable before it says what a fresh journal holds.
            self.sync();
            taken = self.checkpoint() && self.journal.append(&bytes).is_ok();
        }
        if taken {
            self.appended = fold(&self.appended, records);
            self.said.possible.push(self.appended.clone());
        }
        taken
    }

    fn checkpoint(&mut self) -> bool {
        let live = self.core.checkpoint();
        let encoded: Vec<Vec<u8>> = live
            .iter()
            .map(|record| {
                postcard::to_allocvec(std::slice::from_ref(record)).expect("encodes into memory without fail")
            })
            .collect();
        let state = fold(&Recovered::default(), &live);
        // Until it is known to have failed, or not, either may be found.
        self.said.possible.push(state.clone());
        let done = self.journal.checkpoint(encoded.iter().map(Vec::as_slice)).is_ok();
        if done {
            self.failed = false;
            self.appended = state;
            self.said.checkpoints += 1;
            self.promised();
        }
        done
    }
}
