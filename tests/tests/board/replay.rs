//! Every moment at which the power can go, of one story: what was acknowledged by then is on the disk that is left.
//!
//! The board's disk records what it is asked for while Pods come, crash and go. Then, without the board, the disk is made as
//! the power would have left it at each of those requests: with nothing, with all, and with a torn part of what no flush had
//! covered. Each of these disks is recovered as a kernel does it, and the product's own code opens the journal and the image
//! store on it. Always holds: a fact counts from the request that the disk had got when the API showed it, so never too early.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use skiff_core::{Record, Recovered};
use skiff_images::Store;
use skiff_journal::{FileStorage, Journal, Outcome, SegmentSize};
use skiff_protocol::image_ref::ImageRef;
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::spec::{Object, ObjectKey};
use skiff_tests::rng::Rng;

use crate::disk::{Cut, Request, State};
use crate::harness::payload::digest;
use crate::harness::wait;
use crate::node::{Board, PATIENCE, Wanted};
use crate::payload;

/// Small, because it is copied for each moment.
const DISK: u64 = 96 << 20;

/// So small that it is written anew several times.
const SEGMENT: u64 = 65_536;

/// How often each write is torn, each time in another way.
const TORN: u64 = 1;

/// Disks that are made at once.
const WORKERS: usize = 2;

/// What the API has shown.
#[derive(Clone, Debug)]
enum Fact {
    /// The node has the Pod, and its ConfigMap.
    Pod(Uid),
    /// The Pod's only container was started so often anew.
    Restarts(Uid, u32),
    /// A Pod that runs once ran.
    Once(Uid),
    /// The image of the Pod of this name is on the node.
    Image(String),
    /// The Pod has ended.
    Gone(Uid),
}

/// A fact, and the requests between which it must be found.
#[derive(Debug)]
struct Promise {
    fact: Fact,
    from: usize,
    to: usize,
}

/// The disk of a story, what it was asked for, and what was promised meanwhile.
struct Recording {
    base: PathBuf,
    requests: Vec<Request>,
    promises: Vec<Promise>,
    /// Pods with images of their own.
    images: Vec<String>,
    /// Where `base` is; removed with this value.
    _dir: tempfile::TempDir,
}

struct Story {
    board: Board,
    rng: Rng,
    promises: Vec<Promise>,
    images: Vec<String>,
}

impl Story {
    fn now(&mut self) -> usize {
        self.board.machine().disk().recorded()
    }

    /// From now on it must be found.
    fn promise(&mut self, fact: Fact) {
        let from = self.now();
        let to = usize::MAX;
        self.promises.push(Promise { fact, from, to });
    }

    fn create(&mut self, name: &str, with_image: bool, once: bool) -> Uid {
        let random = with_image.then_some(&mut self.rng);
        let uid: Uid = payload::apply(&self.board.control, name, once, random)
            .parse()
            .unwrap();
        self.board.control.until(name, "to be accepted", PATIENCE, |it| {
            !it["status"]["startTime"].is_null()
        });
        self.promise(Fact::Pod(uid));
        self.board.running(name);
        if with_image {
            self.images.push(name.to_owned());
            self.promise(Fact::Image(name.to_owned()));
        }
        if once {
            self.promise(Fact::Once(uid));
        }
        uid
    }

    fn crash(&mut self, name: &str, uid: Uid, restarts: u32) {
        self.board.crash(&uid.to_string());
        self.board.control.until(name, "to be restarted", PATIENCE, |it| {
            it["status"]["containerStatuses"][0]["restartCount"] == restarts
        });
        self.promise(Fact::Restarts(uid, restarts));
    }

    fn delete(&mut self, name: &str, uid: Uid) {
        let to = self.now();
        let of = |fact: &Fact| match fact {
            Fact::Pod(of) | Fact::Restarts(of, _) | Fact::Once(of) => *of == uid,
            Fact::Image(_) | Fact::Gone(_) => false,
        };
        self.promises
            .iter_mut()
            .filter(|it| of(&it.fact))
            .for_each(|it| it.to = to);
        payload::delete(&self.board.control, name);
        wait("the Pod to end", PATIENCE, || {
            match self.board.control.get(name) {
                Ok(pod) => Err(pod["status"].to_string()),
                Err(said) if said.contains("NotFound") => Ok(()),
                Err(said) => Err(said),
            }
        });
        self.promise(Fact::Gone(uid));
    }
}

/// Pods come, crash and go on a board whose disk takes note of it all.
fn record(through: &str) -> Recording {
    let board = Board::start(&Wanted {
        through,
        agent: &format!("journal_segment_bytes = {SEGMENT}\n"),
        disk: DISK,
        ..Wanted::default()
    });
    let mut story = Story {
        board,
        rng: Rng::new(1),
        promises: Vec::new(),
        images: Vec::new(),
    };
    story.board.ok("sync");
    let dir = scratch();
    let base = dir.path().join("base.img");
    story.board.machine().disk().record(&base);
    let first = story.create("first", true, false);
    let once = story.create("once", false, true);
    story.crash("first", first, 1);
    let second = story.create("second", true, false);
    story.delete("first", first);
    story.crash("second", second, 1);
    story.delete("once", once);
    story.create("third", false, false);
    // What is still in memory gets to the disk by itself, as far as it does.
    std::thread::sleep(std::time::Duration::from_secs(2));
    Recording {
        base,
        requests: story.board.machine().disk().take_record(),
        promises: story.promises,
        images: story.images,
        _dir: dir,
    }
}

/// A directory in memory, where there is one.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    }
}

/// Runs a program whose exit status says more than yes or no, as those of e2fsprogs.
fn run(program: &str, arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    let output = command.output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap_or(-1), text)
}

/// A moment at which the power goes.
#[derive(Clone, Copy, Debug)]
struct Moment {
    /// Requests that the disk has got.
    requests: usize,
    how: Cut,
    /// Promises of this many requests hold; more than were made, where the disk stays the same for longer.
    until: usize,
}

/// The moments of a recording, in order. With nothing kept, the disk is the same until something is durable, so the last
/// moment before that is the one with the most promises.
fn moments(requests: &[Request]) -> Vec<Moment> {
    let mut moments = Vec::new();
    for number in 0..=requests.len() {
        let kept = |how| Moment {
            requests: number,
            how,
            until: number,
        };
        let durable = |it: &Request| matches!(it, Request::Flush | Request::Write { through: true, .. });
        let is_write = number > 0 && matches!(requests[number - 1], Request::Write { .. });
        if is_write {
            moments.push(kept(Cut::Whole));
            let seeds = (0..TORN).map(|seed| number as u64 * TORN + seed);
            moments.extend(seeds.map(|seed| kept(Cut::Torn(seed))));
        }
        if number == 0 || durable(&requests[number - 1]) {
            let more = requests[number..].iter().position(durable);
            let until = more.map_or(requests.len(), |more| number + more);
            moments.push(Moment {
                requests: number,
                how: Cut::Clean,
                until,
            });
        }
    }
    moments
}

/// What was found.
#[derive(Debug, Default)]
struct Found {
    moments: usize,
    promises: usize,
    believed: usize,
    torn_tails: usize,
    lost: Vec<String>,
}

impl Recording {
    /// Looks at every moment; until something is lost, where that is `enough`.
    fn replay(&self, enough: bool) -> Found {
        let all = moments(&self.requests);
        let parts = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..WORKERS)
                .map(|worker| {
                    let mine = all.iter().skip(worker).step_by(WORKERS);
                    scope.spawn(move || self.part(mine, enough))
                })
                .collect();
            workers
                .into_iter()
                .map(|it| it.join().unwrap())
                .collect::<Vec<Found>>()
        });
        parts.into_iter().fold(Found::default(), |mut all, part| {
            all.moments += part.moments;
            all.promises += part.promises;
            all.believed += part.believed;
            all.torn_tails += part.torn_tails;
            all.lost.extend(part.lost);
            all
        })
    }

    fn part<'a>(&self, moments: impl Iterator<Item = &'a Moment>, enough: bool) -> Found {
        let dir = scratch();
        let durable = dir.path().join("durable.img");
        fs::copy(&self.base, &durable).unwrap();
        let open = |path: &Path| File::options().read(true).write(true).open(path).unwrap();
        let mut disk = State::new(open(&durable));
        let mut done = 0;
        let mut found = Found::default();
        for moment in moments {
            for request in &self.requests[done..moment.requests] {
                disk.repeat(request).unwrap();
            }
            done = moment.requests;
            let left = dir.path().join("left.img");
            let (status, text) = run("cp", &["--sparse=auto", text(&durable), text(&left)]);
            assert_eq!(status, 0, "{text}");
            disk.keep(moment.how, &open(&left)).unwrap();
            found.moments += 1;
            let tree = dir.path().join("tree");
            if let Err(lost) = self.judge(moment, &left, &tree, &mut found) {
                found.lost.push(format!(
                    "{moment:?} of {}, {} unflushed: {lost}",
                    self.requests.len(),
                    disk.unflushed()
                ));
                if enough {
                    break;
                }
            }
            fs::remove_dir_all(&tree).ok();
        }
        found
    }

    /// Whether this disk holds what was promised, and nothing that is half done.
    fn judge(&self, moment: &Moment, image: &Path, tree: &Path, found: &mut Found) -> Result<(), String> {
        // 1: something was corrected, as after every cut.
        let (status, said) = run("e2fsck", &["-fy", text(image)]);
        if !(0..=1).contains(&status) {
            return Err(format!("the file system is broken: {said}"));
        }
        fs::create_dir_all(tree).unwrap();
        let dump = format!("rdump /skiff/journal /skiff/images {}", text(tree));
        let (status, said) = run("debugfs", &["-R", &dump, text(image)]);
        if status != 0 {
            return Err(format!("debugfs: {said}"));
        }
        let (held, outcome) = journal(&tree.join("journal"))?;
        found.torn_tails += usize::from(matches!(outcome, Outcome::TornTail { .. }));
        for key in held.objects.keys() {
            let ObjectKey::Pod(uid) = key else { continue };
            let Object::Pod(pod) = object(&held, key)? else {
                return Err(format!("{key:?} is no Pod"));
            };
            let config = ObjectKey::ConfigMap(pod.namespace.clone(), pod.name.clone());
            if pod.deletion_grace_seconds.is_none() && !held.objects.contains_key(&config) {
                return Err(format!("Pod {uid} came without its ConfigMap"));
            }
        }
        let believed = images(&tree.join("images"), &self.images)?;
        found.believed += believed.len();
        for promise in &self.promises {
            if !(promise.from..promise.to).contains(&moment.until) {
                continue;
            }
            found.promises += 1;
            if !kept(&promise.fact, &held, &believed)? {
                return Err(format!("{promise:?} is not kept: {held:?}, images {believed:?}"));
            }
        }
        Ok(())
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// How a record lies in the agent's journal; the other variant, for Secrets, comes from nobody here.
#[derive(serde::Deserialize)]
enum Entry {
    Clear(Record),
}

/// What the journal holds, and in what state it was.
fn journal(dir: &Path) -> Result<(Recovered, Outcome), String> {
    let size = SegmentSize::new(SEGMENT).unwrap();
    let storage = FileStorage::open(dir, size).map_err(|error| format!("journal: {error}"))?;
    let (_, recovery) = Journal::open(storage).map_err(|error| format!("journal: {error}"))?;
    let mut held = Recovered::default();
    for bytes in &recovery.records {
        let entries: Vec<Entry> =
            postcard::from_bytes(bytes).map_err(|error| format!("a journal record: {error}"))?;
        entries
            .into_iter()
            .for_each(|Entry::Clear(record)| held.apply(record));
    }
    Ok((held, recovery.outcome))
}

fn object(held: &Recovered, key: &ObjectKey) -> Result<Object, String> {
    let bytes = &held.objects[key];
    postcard::from_bytes(bytes).map_err(|error| format!("{key:?}: {error}"))
}

/// The Pods whose images the store believes to have, each of which is whole.
fn images(root: &Path, pods: &[String]) -> Result<BTreeSet<String>, String> {
    let store = Store::open(root).map_err(|error| error.to_string())?;
    let mut believed = BTreeSet::new();
    for pod in pods {
        let reference = ImageRef::parse(&payload::name(pod)).unwrap();
        match store.resolve(&reference) {
            Ok(None) => {}
            Ok(Some(_)) => {
                believed.insert(pod.clone());
            }
            Err(error) if error.is_repaired_by_pull() => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    // A layer that has its name is believed, whether or not an image names it yet.
    for layer in fs::read_dir(root.join("layers")).unwrap() {
        let payload = layer.unwrap().path().join("payload");
        if payload.is_dir() {
            whole(&payload)?;
        }
    }
    Ok(believed)
}

/// Whether the files of an image's payload are what they were.
fn whole(payload: &Path) -> Result<(), String> {
    let sums = fs::read_to_string(payload.join("sums")).map_err(|error| format!("sums: {error}"))?;
    let expected: BTreeMap<&str, &str> = sums
        .lines()
        .filter_map(|line| line.split_once("  "))
        .map(|(sum, name)| (name, sum))
        .collect();
    if expected.len() != payload::FILES {
        return Err(format!("{} names {} files", payload.display(), expected.len()));
    }
    for (name, sum) in expected {
        let bytes = fs::read(payload.join(name)).unwrap_or_default();
        if digest(&bytes) != sum {
            return Err(format!(
                "a layer is believed and torn: {name}, {} bytes",
                bytes.len()
            ));
        }
    }
    Ok(())
}

fn kept(fact: &Fact, held: &Recovered, believed: &BTreeSet<String>) -> Result<bool, String> {
    Ok(match fact {
        Fact::Pod(uid) => held.objects.contains_key(&ObjectKey::Pod(*uid)),
        Fact::Restarts(uid, restarts) => {
            let key = (*uid, "main".to_owned());
            let attempt = held.started.get(&key).copied();
            let ended = held.containers.get(&key).map(|it| it.restart_count);
            attempt.max(ended) >= Some(*restarts)
        }
        Fact::Once(uid) => {
            let key = (*uid, "main".to_owned());
            held.started.contains_key(&key) || held.containers.contains_key(&key)
        }
        Fact::Image(pod) => believed.contains(pod),
        // That it is to end the node may still know, for its word reached the server before the server's reached it.
        Fact::Gone(uid) => {
            let key = ObjectKey::Pod(*uid);
            match held.objects.contains_key(&key).then(|| object(held, &key)) {
                None => true,
                Some(pod) => matches!(pod?, Object::Pod(pod) if pod.deletion_grace_seconds.is_some()),
            }
        }
    })
}

#[test]
fn the_power_may_go_at_any_write() {
    let recording = record("");
    let found = recording.replay(false);
    println!(
        "{} requests, {} moments, {} promises, {} times a whole image, {} torn tails",
        recording.requests.len(),
        found.moments,
        found.promises,
        found.believed,
        found.torn_tails,
    );
    assert!(
        found.lost.is_empty(),
        "{} of {} moments lose something; the first: {}",
        found.lost.len(),
        found.moments,
        found.lost[0]
    );
    assert!(
        found.promises > found.moments && found.believed > 0,
        "the story is too small to mean anything: {found:?}"
    );
}

/// The control: the same agent, whose syncs do nothing.
#[test]
fn a_node_that_does_not_sync_is_caught_at_some_write() {
    let recording = record("unsynced");
    let found = recording.replay(true);
    println!("{} moments looked at; {:?}", found.moments, found.lost);
    assert!(
        !found.lost.is_empty(),
        "{} moments, and nothing was lost",
        found.moments
    );
}
