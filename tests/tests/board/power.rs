//! Power cuts at any moment while Pods come, crash and go: what was acknowledged is there after the reboot.
//!
//! A Pod is acknowledged when the API shows its `status.startTime`, which is the node's word; its end is when the API has it
//! no more; a restart is when the API counts it. Always holds: what is looked for was read from the API, before the power
//! went or from what the node had sent by then; the first look after the reboot is without any network.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;
use skiff_tests::rng::Rng;

use crate::disk::{Account, Cut};
use crate::harness::wait;
use crate::machine::Boot;
use crate::node::{Board, PATIENCE, Wanted};
use crate::payload;

/// Pods at most at once: the board has 256 MiB.
const PODS: usize = 6;

/// Cuts in every test run.
const FEW: u64 = 5;

/// Cuts within which a node that does not sync must be caught.
const CAUGHT_WITHIN: u64 = 10;

/// What the API has said of a Pod.
#[derive(Clone, Debug)]
struct Known {
    name: String,
    /// Its image can tell whether it is whole.
    payload: bool,
    /// `restartPolicy: Never`: after a cut it has run.
    once: bool,
    acknowledged: bool,
    /// All its containers have run, so its image is on the node.
    ran: bool,
    restarts: u64,
    deleting: bool,
}

/// Figures of a run.
#[derive(Debug, Default)]
struct Totals {
    cuts: u64,
    pods: u64,
    ends: u64,
    restarts: u64,
    images: u64,
    /// Cuts while an image was on its way.
    pulling: u64,
    written: u64,
    flushes: u64,
    unflushed: usize,
    kept: usize,
}

struct Story {
    board: Board,
    rng: Rng,
    /// By uid.
    known: BTreeMap<String, Known>,
    /// Uids of Pods whose end was acknowledged.
    gone: BTreeSet<String>,
    names: u32,
    totals: Totals,
}

impl Story {
    fn begin(seed: u64, through: &str) -> Self {
        println!("seed {seed}");
        let mut board = Board::start(&Wanted {
            through,
            ..Wanted::default()
        });
        // What the control loses shall be what the agent did not sync from now on.
        board.ok("sync");
        Self {
            board,
            rng: Rng::new(seed),
            known: BTreeMap::new(),
            gone: BTreeSet::new(),
            names: 0,
            totals: Totals::default(),
        }
    }

    /// Some changes, meanwhile or after which the power goes: in the middle of a write to the disk, mostly.
    fn changes(&mut self) {
        if self.rng.percent(80) {
            let request = self.rng.between(1, 90);
            self.board.machine().disk().cut_at(request);
        }
        for _ in 0..self.rng.between(2, 6) {
            let alive = self.known.values().filter(|it| !it.deleting).count();
            match self.rng.below(10) {
                0..5 if alive < PODS => self.create(),
                5..8 if alive > 1 => self.delete(),
                _ => self.crash(),
            }
            std::thread::sleep(Duration::from_millis(self.rng.below(900)));
            if self.board.machine().disk().is_off() {
                return;
            }
            self.observe();
        }
        std::thread::sleep(Duration::from_millis(self.rng.below(1500)));
    }

    /// A Pod with an image of its own, and the power goes while that is on its way, mostly.
    fn pull(&mut self) {
        let request = self.rng.between(1, 60);
        self.board.machine().disk().cut_at(request);
        let alive = self.known.values().filter(|it| !it.deleting).count();
        if alive > 2 {
            self.delete();
        }
        self.create_with(true, false);
        // It may be cut later than the image came: after a while it goes all the same.
        for _ in 0..40 {
            std::thread::sleep(Duration::from_millis(self.rng.below(200)));
            if self.board.machine().disk().is_off() {
                return;
            }
            self.observe();
        }
    }

    fn create(&mut self) {
        let is_payload = self.rng.percent(60);
        let once = self.rng.percent(25);
        self.create_with(is_payload, once);
    }

    fn create_with(&mut self, is_payload: bool, once: bool) {
        self.names += 1;
        let name = format!("p{}", self.names);
        let uid = payload::apply(
            &self.board.control,
            &name,
            once,
            is_payload.then_some(&mut self.rng),
        );
        let known = Known {
            name,
            payload: is_payload,
            once,
            acknowledged: false,
            ran: false,
            restarts: 0,
            deleting: false,
        };
        self.known.insert(uid, known);
    }

    fn delete(&mut self) {
        let all: Vec<String> = self
            .known
            .iter()
            .filter(|it| !it.1.deleting)
            .map(|it| it.0.clone())
            .collect();
        let uid = self.rng.pick(&all).clone();
        let known = self.known.get_mut(&uid).unwrap();
        known.deleting = true;
        let name = known.name.clone();
        payload::delete(&self.board.control, &name);
    }

    /// The first process of a container that never crashed is killed.
    fn crash(&mut self) {
        let all = self
            .known
            .iter()
            .filter(|it| it.1.ran && !it.1.once && it.1.restarts == 0 && !it.1.deleting);
        let all: Vec<String> = all.map(|it| it.0.clone()).collect();
        if all.is_empty() {
            return;
        }
        let uid = self.rng.pick(&all).clone();
        self.board.crash(&uid);
    }

    /// Takes note of what the API shows by now.
    fn observe(&mut self) {
        let said = self.board.control.kubectl(&["get", "pods", "-o", "json"]).ok();
        let list: Value = serde_json::from_str(&said).unwrap();
        let mut seen = BTreeSet::new();
        for item in list["items"].as_array().unwrap() {
            let uid = item["metadata"]["uid"].as_str().unwrap();
            seen.insert(uid.to_owned());
            let known = self.known.get_mut(uid).expect("nobody else makes Pods");
            let status = &item["status"];
            known.acknowledged |= !status["startTime"].is_null();
            let container = &status["containerStatuses"][0];
            known.ran |= !container["state"]["running"].is_null();
            known.restarts = known
                .restarts
                .max(container["restartCount"].as_u64().unwrap_or(0));
        }
        let ended: Vec<String> = self
            .known
            .keys()
            .filter(|uid| !seen.contains(*uid))
            .cloned()
            .collect();
        for uid in ended {
            let known = self.known.remove(&uid).unwrap();
            assert!(known.deleting, "nobody deleted {known:?}");
            self.gone.insert(uid);
        }
    }

    fn cut(&mut self, how: Cut) -> Account {
        let account = self.board.cut(how);
        // What the node had said before is acknowledged, also when it arrives now.
        std::thread::sleep(Duration::from_millis(300));
        self.observe();
        self.totals.cuts += 1;
        let mut waiting = self.known.values();
        let pulling = waiting.any(|it| it.payload && it.acknowledged && !it.ran && !it.deleting);
        self.totals.pulling += u64::from(pulling);
        self.totals.written += account.written;
        self.totals.flushes += account.flushes;
        self.totals.unflushed += account.unflushed;
        self.totals.kept += account.kept;
        account
    }

    /// Boots without a network: what was acknowledged must be there, and run.
    fn survives(&mut self) -> Result<(), String> {
        self.board.boot(&Boot::with("board.offline"));
        self.board.run_agent();
        let pods = self.board.try_answer("pods")?;
        let of = |pods: &Value, uid: &str| -> Option<Value> {
            pods.as_array()?.iter().find(|it| it["uid"] == uid).cloned()
        };
        for (uid, known) in self.known.iter().filter(|it| it.1.acknowledged && !it.1.deleting) {
            let Some(pod) = of(&pods, uid) else {
                return Err(format!("an acknowledged Pod is lost: {known:?} in {pods}"));
            };
            let restarts = pod["containers"][0]["restartCount"].as_u64().unwrap_or(0);
            if restarts < known.restarts {
                return Err(format!(
                    "{} acknowledged restarts of {} are {restarts}",
                    known.restarts, known.name
                ));
            }
            self.totals.pods += 1;
            self.totals.restarts += known.restarts;
        }
        let must_run = self.known.iter().filter(|it| it.1.ran && !it.1.deleting);
        let must_run: BTreeMap<String, Known> = must_run.map(|(uid, it)| (uid.clone(), it.clone())).collect();
        let mut last = Value::Null;
        for _ in 0..PATIENCE * 4 {
            last = self.board.try_answer("pods")?;
            let again = |it: &(&String, &Known)| of(&last, it.0).is_some_and(|it| it["phase"] != "Failed");
            if let Some(again) = must_run.iter().filter(|it| it.1.once).find(again) {
                return Err(format!(
                    "what runs once ran when the power went, and is not over: {again:?} in {last}"
                ));
            }
            // Half a change would be a Pod without its ConfigMap.
            if last.to_string().contains("CreateContainerConfigError") {
                return Err(format!("a Pod came without what came with it: {last}"));
            }
            let runs =
                |uid: &String| of(&last, uid).is_some_and(|it| it["containers"][0]["state"] == "Running");
            if must_run.iter().filter(|it| !it.1.once).all(|it| runs(it.0)) {
                return self.nothing_is_back();
            }
            std::thread::sleep(Duration::from_millis(250));
        }
        Err(format!("not all of {must_run:?} run from the journal: {last}"))
    }

    /// A Pod whose end was acknowledged does not run. That it is to end the node may still know: it let the server know of
    /// its end before it was told that the server has taken note.
    fn nothing_is_back(&mut self) -> Result<(), String> {
        let present = self.board.ok("ls /sys/fs/cgroup/skiff");
        self.totals.ends += self.gone.len() as u64;
        match self.gone.iter().find(|uid| present.contains(uid.as_str())) {
            Some(uid) => Err(format!(
                "the end of Pod {uid} was acknowledged, and it runs again"
            )),
            None => Ok(()),
        }
    }

    /// With the network the node becomes what the server wants, and every image is whole.
    fn converges(&mut self) {
        self.board.ok("/up");
        wait("node and server to agree", PATIENCE, || {
            self.observe();
            let pods = self.board.answer("pods");
            let said = self.board.control.kubectl(&["get", "pods", "-o", "json"]).ok();
            let list: Value = serde_json::from_str(&said).unwrap();
            let items = list["items"].as_array().unwrap();
            let on_node = pods.as_array().unwrap();
            let agree = items.len() == on_node.len()
                && self.known.values().all(|it| !it.deleting)
                && items.iter().all(|item| {
                    let shown = &item["status"]["containerStatuses"][0];
                    let id = shown["containerID"].as_str().unwrap_or_default();
                    if item["status"]["phase"] == "Failed" {
                        return true;
                    }
                    !shown["state"]["running"].is_null()
                        && on_node.iter().any(|it| {
                            let real = it["containers"][0]["containerID"].as_str().unwrap_or_default();
                            it["uid"] == item["metadata"]["uid"] && !real.is_empty() && id.ends_with(real)
                        })
                });
            if agree {
                Ok(())
            } else {
                Err(format!("{pods}\n{}", list["items"]))
            }
        });
        let running = self.known.values().filter(|it| !it.once);
        for known in running.cloned().collect::<Vec<Known>>() {
            let mark = format!("mark-{}\n", known.name);
            let end = if known.payload { "whole\n" } else { &mark };
            let log = wait("a Pod's own look at its image", PATIENCE, || {
                let said = self.board.control.kubectl(&["logs", &known.name]);
                if said.out.ends_with(end) || said.out.contains("torn") {
                    Ok(said.out)
                } else {
                    Err(said.to_string())
                }
            });
            assert_eq!(
                log,
                format!("{mark}{}", if known.payload { "whole\n" } else { "" })
            );
            self.totals.images += u64::from(known.payload);
        }
    }
}

/// What the power goes in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    /// Pods come, crash and go.
    Changes,
    /// Images come; a cut while none does is not counted.
    Pulls,
}

/// Cuts so often; panics when something that was acknowledged is lost.
fn cuts(seed: u64, count: u64, what: What) {
    let mut story = Story::begin(seed, "");
    for number in 1.. {
        match what {
            What::Changes => story.changes(),
            What::Pulls => story.pull(),
        }
        let how = match story.rng.below(3) {
            0 => Cut::Clean,
            _ => Cut::Torn(story.rng.bits()),
        };
        let account = story.cut(how);
        println!("cut {number}: {how:?}, {account:?}");
        if let Err(lost) = story.survives() {
            panic!("seed {seed}, cut {number}: {lost}");
        }
        story.converges();
        let counted = match what {
            What::Changes => story.totals.cuts,
            What::Pulls => story.totals.pulling,
        };
        if counted >= count {
            break;
        }
    }
    println!("seed {seed}: {:?}", story.totals);
}

#[test]
fn nothing_acknowledged_is_lost_with_the_power() {
    cuts(20_261_126, FEW, What::Changes);
}

#[test]
#[ignore = "takes long: cargo xtask board --cuts N [--seed N]"]
fn as_many_cuts_as_asked_for() {
    asked_for("SKIFF_BOARD_CUTS", What::Changes);
}

#[test]
#[ignore = "takes long: cargo xtask board --pulls N [--seed N]"]
fn as_many_pulls_as_asked_for() {
    asked_for("SKIFF_BOARD_PULLS", What::Pulls);
}

fn asked_for(count: &str, what: What) {
    let number = |name: &str| std::env::var(name).ok().map(|it| it.parse::<u64>().unwrap());
    let random = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.unwrap().as_secs()
    };
    cuts(
        number("SKIFF_BOARD_SEED").unwrap_or_else(random),
        number(count).expect("it is said how many"),
        what,
    );
}

/// The control: the same agent, whose syncs do nothing.
#[test]
fn a_node_that_does_not_sync_is_caught() {
    let mut story = Story::begin(7, "unsynced");
    for number in 1..=CAUGHT_WITHIN {
        story.changes();
        story.cut(Cut::Clean);
        match story.survives() {
            Err(lost) => {
                println!("caught at cut {number}: {lost}");
                return;
            }
            Ok(()) => story.converges(),
        }
    }
    panic!("{CAUGHT_WITHIN} cuts, and nothing was lost by an agent that does not sync");
}
