//! What people do to a fleet: Pods and their configuration come, change and go.
//!
//! Always holds: what the server wants is valid; a name that a Pod reads may be missing, and comes in the end.

use std::collections::BTreeMap;

use skiff_protocol::uid::Uid;
use skiff_protocol::wire::spec::{
    ConfigData, Container, EnvFrom, Handler, PodSecurity, PodSpec, Probe, PullPolicy, Resources,
    RestartPolicy, Security,
};
use skiff_tests::rng::Rng;

use crate::node::ABSENT;
use crate::server::{Server, config_key};

/// Pods that a node shall have at most.
const PODS: usize = 7;

fn container(name: &str, policy: RestartPolicy, rng: &mut Rng) -> Container {
    let behaviours: &[&str] = match policy {
        RestartPolicy::Always => &["serve", "serve", "flaky"],
        RestartPolicy::OnFailure => &["serve", "job", "flaky"],
        RestartPolicy::Never => &["serve", "job"],
    };
    let mut args = vec![(*rng.pick(behaviours)).to_owned()];
    if rng.percent(20) {
        args.push("stubborn".to_owned());
    }
    let env_from = if rng.percent(30) {
        vec![EnvFrom {
            prefix: String::new(),
            secret: rng.percent(50),
            name: (*rng.pick(&["red", "green", "blue"])).to_owned(),
            optional: false,
        }]
    } else {
        Vec::new()
    };
    Container {
        name: name.to_owned(),
        image: image(rng),
        pull_policy: *rng.pick(&[PullPolicy::Always, PullPolicy::IfNotPresent]),
        command: Vec::new(),
        args,
        working_dir: String::new(),
        env_from,
        env: Vec::new(),
        ports: Vec::new(),
        resources: Resources {
            cpu_request: rng.percent(40).then(|| rng.between(100, 400)),
            ..Resources::default()
        },
        mounts: Vec::new(),
        security: Security::default(),
        readiness: rng.percent(25).then(|| probe(rng)),
        liveness: rng.percent(15).then(|| probe(rng)),
        startup: rng.percent(15).then(|| probe(rng)),
        post_start: rng.percent(15).then(hook),
        pre_stop: rng.percent(15).then(hook),
        ..Default::default()
    }
}

fn hook() -> Handler {
    Handler::Exec(vec!["/bin/true".to_owned()])
}

fn probe(rng: &mut Rng) -> Probe {
    let small = |rng: &mut Rng, low, high| u32::try_from(rng.between(low, high)).expect("small");
    Probe {
        handler: hook(),
        initial_delay_seconds: small(rng, 0, 10),
        timeout_seconds: 1,
        period_seconds: small(rng, 20, 120),
        success_threshold: 1,
        failure_threshold: small(rng, 1, 3),
        termination_grace_seconds: None,
    }
}

/// None, or an init container that ends by itself, a sidecar, or both.
fn init_containers(policy: RestartPolicy, rng: &mut Rng) -> Vec<Container> {
    let mut out = Vec::new();
    let kinds: &[&[bool]] = &[&[], &[], &[false], &[true], &[false, true], &[true, false]];
    for (at, sidecar) in rng.pick(kinds).iter().enumerate() {
        let mut it = container(&format!("init-{at}"), policy, rng);
        it.sidecar = *sidecar;
        it.args = vec![if *sidecar { "serve" } else { "job" }.to_owned()];
        if !sidecar {
            (it.readiness, it.liveness, it.startup) = (None, None, None);
            (it.post_start, it.pre_stop) = (None, None);
        }
        out.push(it);
    }
    out
}

fn image(rng: &mut Rng) -> String {
    if rng.percent(8) {
        ABSENT.to_owned()
    } else {
        format!("app:{}", rng.below(6))
    }
}

fn pod(rng: &mut Rng) -> PodSpec {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&rng.bits().to_le_bytes());
    let policy = *rng.pick(&[
        RestartPolicy::Always,
        RestartPolicy::Always,
        RestartPolicy::OnFailure,
        RestartPolicy::Never,
    ]);
    let names: &[&str] = if rng.percent(40) {
        &["app", "side"]
    } else {
        &["app"]
    };
    // Now and then one that does not fit a frame.
    let annotations: BTreeMap<String, String> = if rng.percent(5) {
        [("big".to_owned(), "x".repeat(50_000))].into()
    } else {
        BTreeMap::new()
    };
    PodSpec {
        uid: Uid::from_random(bytes),
        namespace: "default".to_owned(),
        name: format!("pod-{}", rng.below(1000)),
        labels: BTreeMap::new(),
        annotations,
        deletion_grace_seconds: None,
        restart_policy: policy,
        termination_grace_seconds: u32::try_from(rng.below(40)).expect("small"),
        hostname: "pod".to_owned(),
        security: PodSecurity::default(),
        init_containers: init_containers(policy, rng),
        containers: names.iter().map(|name| container(name, policy, rng)).collect(),
        volumes: Vec::new(),
        ..Default::default()
    }
}

/// Does one thing to one node's Pods; gives the node.
pub(crate) fn operate(server: &mut Server, rng: &mut Rng, made: &mut u64) -> usize {
    let node = usize::try_from(rng.below(server.pods.len() as u64)).expect("an index");
    let there: Vec<Uid> = server.pods[node].keys().copied().collect();
    let kind = rng.below(100);
    if there.is_empty() || (kind < 35 && there.len() < PODS) {
        let pod = pod(rng);
        server.pods[node].insert(pod.uid, pod);
        *made += 1;
        return node;
    }
    let uid = *rng.pick(&there);
    let pod = server.pods[node].get_mut(&uid).expect("it was just listed");
    match kind {
        35..50 => {
            let grace = u32::try_from(rng.below(40)).expect("small");
            pod.deletion_grace_seconds = Some(pod.deletion_grace_seconds.unwrap_or(u32::MAX).min(grace));
        }
        50..58 => drop(server.pods[node].remove(&uid)),
        58..75 => {
            let image = image(rng);
            let at = usize::try_from(rng.below(pod.containers.len() as u64)).expect("an index");
            pod.containers[at].image = image;
        }
        75..83 => {
            let value = rng.below(100).to_string();
            pod.labels.insert("changed".to_owned(), value);
        }
        _ => {
            let secret = rng.percent(50);
            let name = *rng.pick(&["red", "green", "blue"]);
            if rng.percent(40) {
                server.configs.remove(&config_key(secret, name));
            } else {
                put_config(server, secret, name, rng.bits());
            }
        }
    }
    node
}

fn put_config(server: &mut Server, secret: bool, name: &str, value: u64) {
    let data = ConfigData {
        namespace: "default".to_owned(),
        name: name.to_owned(),
        data: [("key".to_owned(), value.to_le_bytes().to_vec())].into(),
    };
    server.configs.insert(config_key(secret, name), data);
}

/// Whatever a Pod reads is there from now on.
pub(crate) fn supply(server: &mut Server) {
    for secret in [false, true] {
        for name in ["red", "green", "blue"] {
            put_config(server, secret, name, 0);
        }
    }
}
