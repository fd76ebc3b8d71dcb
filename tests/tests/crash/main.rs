//! Power cuts and errors at every operation of core and journal together.
//!
//! A workload of desired states and exits is run once for each operation that the journal does on its medium, and the
//! operation fails: by a power cut, or by an error and a power cut later. What is recovered must be a state that once was,
//! and contain everything that was said to the outside: each `Applied`, and each batch whose MQTT message was acked.
//!
//! Always holds: the same sweep over a medium or a shell that is broken on purpose finds violations.

mod medium;
mod shell;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use medium::{Fault, Medium};
use ring::signature::{Ed25519KeyPair, KeyPair};
use shell::{Care, Shell, decode};
use skiff_core::{Config, ContainerRef, Event, Exit, Recovered};
use skiff_journal::{Journal, Outcome};
use skiff_protocol::sha256;
use skiff_protocol::topic::NodeName;
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::Down;
use skiff_protocol::wire::desired::{Change, Desired, Index, delta, signed_bytes};
use skiff_protocol::wire::spec::{
    ConfigData, Container, Object, ObjectKey, PodSecurity, PodSpec, PullPolicy, Resources, RestartPolicy,
    Security,
};
use skiff_tests::rng::Rng;

/// Turns of the workload; enough for the journal to switch segments several times.
const TURNS: u64 = 200;

fn key() -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("32 bytes are a seed")
}

fn config() -> Config {
    Config {
        node: NodeName::parse("rover-7").expect("a node's name"),
        server_key: key().public_key().as_ref().to_vec(),
        network: Ipv4Addr::new(10, 88, 0, 0),
        prefix: 24,
        allocatable_cpu_milli: 1000,
        allocatable_memory: 1 << 30,
        allocatable_storage: 10 << 30,
        extended: BTreeMap::new(),
        features: std::collections::BTreeSet::new(),
        max_pods: 50,
    }
}

fn pod(number: u8, image: u64) -> Object {
    Object::Pod(PodSpec {
        uid: Uid([number; 16]),
        namespace: "default".to_owned(),
        name: format!("pod-{number}"),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        deletion_grace_seconds: None,
        restart_policy: RestartPolicy::Always,
        termination_grace_seconds: 1,
        hostname: "pod".to_owned(),
        security: PodSecurity::default(),
        containers: vec![Container {
            name: "app".to_owned(),
            image: format!("app:{image}"),
            pull_policy: PullPolicy::IfNotPresent,
            command: Vec::new(),
            args: Vec::new(),
            working_dir: String::new(),
            env_from: Vec::new(),
            env: Vec::new(),
            ports: Vec::new(),
            resources: Resources::default(),
            mounts: Vec::new(),
            security: Security::default(),
            ..Default::default()
        }],
        volumes: Vec::new(),
        ..Default::default()
    })
}

fn config_map(size: usize, value: u64) -> Object {
    Object::ConfigMap(ConfigData {
        namespace: "default".to_owned(),
        name: "settings".to_owned(),
        data: [("key".to_owned(), vec![value.to_le_bytes()[0]; size])].into(),
    })
}

/// What the server wants, and what it says of it.
#[derive(Default)]
struct Server {
    objects: BTreeMap<ObjectKey, Vec<u8>>,
    generation: u64,
}

impl Server {
    fn index(&self) -> Index {
        Index(
            self.objects
                .iter()
                .map(|(key, bytes)| (key.clone(), sha256(bytes)))
                .collect(),
        )
    }

    fn put(&mut self, object: &Object) {
        let bytes = postcard::to_allocvec(object).expect("postcard encodes into memory without fail");
        self.objects.insert(object.key(), bytes);
    }

    /// The next generation, as a change to what the node holds where that is what it builds on.
    fn say(&mut self, before: &Index, held: u64, full: bool) -> Desired {
        let index = self.index();
        let change = if full || held != self.generation {
            Change::Full(index.clone())
        } else {
            delta(held, before, &index)
        };
        self.generation += 1;
        let signed = signed_bytes(&config().node, self.generation, &index.digest());
        Desired {
            generation: self.generation,
            signature: key().sign(&signed).as_ref().to_vec(),
            change,
            objects: self.objects.values().cloned().collect(),
        }
    }
}

/// The workload: the same for every fault, as far as the fault lets it come.
fn work(shell: &mut Shell, server: &mut Server, seed: u64, turns: u64) {
    let mut rng = Rng::new(seed);
    for _ in 0..turns {
        let before = server.index();
        let number = u8::try_from(rng.below(6)).expect("small");
        match rng.below(10) {
            0..4 => server.put(&pod(number, rng.below(3))),
            4..6 => drop(server.objects.remove(&ObjectKey::Pod(Uid([number; 16])))),
            6..8 => server.put(&config_map(
                usize::try_from(rng.between(10, 1200)).expect("small"),
                rng.bits(),
            )),
            _ => {
                exits(shell, number);
                continue;
            }
        }
        let desired = server.say(&before, shell.core.generation(), rng.percent(30));
        shell.turn(Event::Down(Down::Desired(desired)));
    }
}

/// A container starts and ends, if its Pod is there.
fn exits(shell: &mut Shell, number: u8) {
    let pod = Uid([number; 16]);
    let status = shell.core.statuses().find(|(_, status)| status.uid == pod);
    let Some(count) = status.and_then(|(_, status)| status.containers.first().map(|it| it.restart_count))
    else {
        return;
    };
    shell.turn(Event::SandboxReady(pod));
    for attempt in [count, count + 1] {
        let container = ContainerRef {
            pod,
            name: "app".to_owned(),
            attempt,
        };
        let image_id = "id".to_owned();
        shell.turn(Event::ImageReady {
            container: container.clone(),
            image_id,
        });
        let exit = Exit {
            exit_code: 1,
            signal: 0,
            oom_killed: false,
            started_at: 0,
            finished_at: shell.seconds,
            ..Default::default()
        };
        shell.turn(Event::Exited { container, exit });
    }
}

/// What a run over one fault gave.
struct Run {
    operations: u64,
    promises: u64,
    checkpoints: u64,
    violations: Vec<String>,
    torn: u64,
}

fn run(fault: Fault, lies: bool, care: Care, seed: u64) -> Run {
    let medium = Medium::new(fault, lies);
    let mut out = Run {
        operations: 0,
        promises: 0,
        checkpoints: 0,
        violations: Vec::new(),
        torn: 0,
    };
    let said = Shell::open(medium.clone(), config(), care).map(|mut shell| {
        work(&mut shell, &mut Server::default(), seed, TURNS);
        shell.said
    });
    out.operations = medium.operations();
    let Some(said) = said else { return out };
    (out.promises, out.checkpoints) = (said.promises, said.checkpoints);
    for cut in 0..4 {
        let found = medium.after_the_cut(&mut Rng::new(seed ^ cut));
        let (recovered, outcome) = match Journal::open(found.clone()) {
            Ok((_, recovery)) => (decode(&recovery.records), recovery.outcome),
            Err(why) => {
                out.violations.push(format!("{fault:?}, cut {cut}: {why}"));
                continue;
            }
        };
        out.torn += u64::from(matches!(outcome, Outcome::TornTail { .. }));
        if let Err(why) = judge(&said, &recovered) {
            out.violations.push(format!("{fault:?}, cut {cut}: {why}"));
            continue;
        }
        // The node goes on from there: some more of the workload, on a medium that does not fail any more.
        if let Some(mut shell) = Shell::open(found.clone(), config(), Care::Sound) {
            let mut server = Server {
                generation: recovered.generation,
                ..Server::default()
            };
            work(&mut shell, &mut server, seed + 1, 15);
            let again = Journal::open(found.after_the_cut(&mut Rng::new(cut)));
            let again = again.map(|(_, recovery)| judge(&shell.said, &decode(&recovery.records)));
            if !matches!(again, Ok(Ok(()))) {
                out.violations
                    .push(format!("{fault:?}, cut {cut}, going on: {again:?}"));
            }
        }
    }
    out
}

/// Whether this may be recovered after all that was said.
fn judge(said: &shell::Said, recovered: &Recovered) -> Result<(), String> {
    if recovered.generation < said.generation {
        return Err(format!(
            "generation {} was confirmed, {} is recovered",
            said.generation, recovered.generation
        ));
    }
    if !said.possible.contains(recovered) {
        return Err(format!(
            "a state that never was, or less than was promised: generation {}, {} objects",
            recovered.generation,
            recovered.objects.len()
        ));
    }
    Ok(())
}

/// What a sweep found.
struct Sweep {
    violations: Vec<String>,
    operations: u64,
    torn: u64,
}

/// The faults that `faults` makes of these operations of the workload, until a violation speaks of `enough`.
fn sweep(
    (lies, care): (bool, Care),
    (first, step): (u64, usize),
    faults: impl Fn(u64) -> Fault,
    enough: &str,
) -> Sweep {
    let whole = run(Fault::default(), lies, care, 1);
    assert!(
        whole.operations > 150 && whole.promises > 60 && whole.checkpoints > 2,
        "the workload is too small to mean anything: {} operations, {} promises, {} checkpoints",
        whole.operations,
        whole.promises,
        whole.checkpoints
    );
    let mut out = Sweep {
        violations: whole.violations,
        operations: whole.operations,
        torn: 0,
    };
    for operation in (first..=whole.operations).step_by(step) {
        let run = run(faults(operation), lies, care, 1);
        out.violations.extend(run.violations);
        out.torn += run.torn;
        if !enough.is_empty() && out.violations.iter().any(|why| why.contains(enough)) {
            break;
        }
    }
    out
}

const SOUND: (bool, Care) = (false, Care::Sound);

/// Nothing that was said was lost, and nothing that never was came back.
fn none(sweep: &Sweep) {
    let violations = &sweep.violations;
    assert!(
        violations.is_empty(),
        "{} violations, first: {}",
        violations.len(),
        violations[0]
    );
}

fn caught(broken: (bool, Care), faults: impl Fn(u64) -> Fault, by: &str) {
    let sweep = sweep(broken, (1, 1), faults, by);
    let found = &sweep.violations;
    assert!(found.iter().any(|why| why.contains(by)), "not caught: {found:?}");
}

fn power(at: u64) -> Fault {
    Fault {
        power: at,
        ..Fault::default()
    }
}

#[test]
fn every_power_cut_recovers_all_that_was_said() {
    let sweep = sweep(SOUND, (1, 1), power, "");
    none(&sweep);
    assert!(sweep.torn > 0, "no cut ever tore a batch");
    println!("{} operations, {} torn batches", sweep.operations, sweep.torn);
}

/// So many errors in a row, and the power going so many operations later; together they begin at every operation.
#[test]
fn errors_and_a_power_cut_after_them_recover_all_that_was_said() {
    let table = [(1, 1), (1, 2), (1, 5), (2, 3), (3, 9), (1, 0), (4, 0), (2, 6)];
    for (first, (count, after)) in (0..).zip(table) {
        let faults = |at| Fault {
            errors: (at, count),
            power: if after == 0 { 0 } else { at + count - 1 + after },
        };
        none(&sweep(SOUND, (1 + first % 8, 8), faults, ""));
    }
}

/// The control: without syncs, the sweep above must find losses.
#[test]
fn a_medium_that_does_not_sync_is_caught() {
    caught((true, Care::Sound), power, "was confirmed");
}

#[test]
fn a_shell_that_speaks_before_the_sync_is_caught() {
    caught((false, Care::SpeaksTooSoon), power, "was confirmed");
}

/// What a failed commit left in the journal's buffer would become durable with the next one, though nobody holds it.
#[test]
fn a_shell_that_goes_on_after_a_failed_commit_is_caught() {
    let faults = |at| Fault {
        errors: (at, 2),
        power: at + 6,
    };
    caught((false, Care::ForgetsFailures), faults, "never was");
}
