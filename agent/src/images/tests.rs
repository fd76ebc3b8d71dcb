//! Pulls by a stand-in for the pull process, over a store that holds images without layers.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::json;
use skiff_protocol::enrol::JoinResponse;
use skiff_protocol::image_ref::Digest;
use skiff_protocol::topic::NodeName;
use skiff_protocol::uid::Uid;
use tokio::time::timeout;

use super::collection::Why;
use super::window::Window;
use super::*;

/// Says nothing for a moment, notes that it ran, and that nobody answered it.
pub(crate) const UNREACHED: &str = r#"read -r request; echo "$request" >> ran; sleep 0.2
echo '{"error":{"reason":"RegistryUnavailable","message":"connection refused"}}'"#;

pub(crate) struct Node {
    dir: tempfile::TempDir,
    pub(crate) images: Images,
    inputs: mpsc::Receiver<Input>,
}

impl Node {
    pub(crate) fn new(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            state_dir: dir.path().to_owned(),
            run_dir: dir.path().to_owned(),
            images_from_server: false,
            ..Config::default()
        };
        let identity = Identity {
            node: NodeName::parse("node").unwrap(),
            key_pem: String::new(),
            joined: JoinResponse {
                version: 1,
                node: "node".into(),
                ca_certificate: String::new(),
                certificate: String::new(),
                signing_key: String::new(),
                broker_url: String::new(),
                broker_username: String::new(),
                broker_password: String::new(),
                server_urls: Vec::new(),
                server_time: 0,
                not_after: 0,
            },
            server_key: Vec::new(),
            broker_chosen: false,
        };
        let (sender, inputs) = mpsc::channel(64);
        let images = Images::open(
            Arc::new(config),
            Arc::new(identity),
            executable(dir.path(), script),
            Own::default(),
            sender,
        );
        Self {
            images: images.unwrap(),
            dir,
            inputs,
        }
    }

    /// Puts an image without layers into the store.
    pub(crate) fn store(&self, image: &str) {
        let reference = ImageRef::parse(image).unwrap();
        let sha256 = |text: &str| {
            let hash = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
            Digest::from_sha256(hash.as_ref().try_into().unwrap())
        };
        let (name, digest) = (sha256(&reference.to_string()), sha256(image));
        let config = skiff_images::ImageConfig::default();
        let root = self.dir.path().join("images");
        let write = |path: String, record: serde_json::Value| {
            fs::write(root.join(path), record.to_string()).unwrap();
        };
        write(
            format!("images/{}.json", digest.hex()),
            json!({"format": 1, "digest": digest, "layers": [], "config": config, "sizeBytes": 0}),
        );
        write(
            format!("refs/{}.json", name.hex()),
            json!({"format": 1, "reference": reference, "image": digest, "repoDigest": digest}),
        );
    }

    fn ensure(&mut self, image: &str) -> Ensured {
        let container = ContainerRef {
            pod: Uid([0; 16]),
            name: image.to_owned(),
            attempt: 0,
        };
        self.images
            .ensure(container, image, PullPolicy::Always, Vec::new(), 0)
    }

    /// What the next pull that ends leads to: each image with whether it is ready.
    async fn pulled(&mut self) -> Vec<(String, bool)> {
        self.answers().await.into_iter().map(shown).collect()
    }

    /// What the next pull that ends leads to.
    pub(crate) async fn answers(&mut self) -> Vec<Event> {
        let input = timeout(Duration::from_secs(20), self.inputs.recv()).await;
        let Some(Input::Pulled { image, result, cost }) = input.unwrap() else {
            panic!("no pull ended")
        };
        self.images.pulled(&image, &result, cost)
    }

    fn ran(&self) -> usize {
        fs::read_to_string(self.dir.path().join("ran")).map_or(0, |it| it.lines().count())
    }
}

fn shown(event: Event) -> (String, bool) {
    match event {
        Event::ImageReady { container, .. } => (container.name, true),
        Event::ImageFailed { container, .. } => (container.name, false),
        other => panic!("{other:?}"),
    }
}

fn executable(dir: &Path, script: &str) -> PathBuf {
    let path = dir.join("pull-stand-in");
    fs::write(&path, format!("#!/bin/sh\ncd {}\n{script}\n", dir.display())).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// After a boot without a link, one wait for a registry is enough for all its images that are here.
#[tokio::test]
async fn a_registry_that_cannot_be_reached_is_waited_for_once() {
    let mut node = Node::new(UNREACHED);
    let local: Vec<String> = (0..8).map(|n| format!("far.example/app{n}:latest")).collect();
    for image in &local {
        node.store(image);
        assert_eq!(node.ensure(image), Ensured::Pulling, "{image} is asked for");
    }
    assert_eq!(node.ensure("far.example/absent:latest"), Ensured::Pulling);
    let mut first = node.pulled().await;
    first.sort();
    // All but the one whose pull is under way too, which speaks for itself.
    assert_eq!(first.len(), 7, "{first:?}");
    let Ensured::Now(again) = node.ensure(&local[0]) else {
        panic!("asked for again so soon")
    };
    assert_eq!(shown(*again), (local[0].clone(), true));
    let mut rest = node.pulled().await;
    rest.extend(node.pulled().await);
    rest.sort();
    assert_eq!(rest.len(), 2, "{rest:?}");
    assert_eq!(rest[0], ("far.example/absent:latest".to_owned(), false));
    first.push(rest[1].clone());
    first.sort();
    let expected: Vec<_> = local.iter().map(|image| (image.clone(), true)).collect();
    assert_eq!(first, expected);
    // The two that began before anybody knew, and the one that is not here.
    assert_eq!(node.ran(), 3);
    assert!(node.images.pulls.is_empty() && node.images.waiting.is_empty());
    // What holds of one registry says nothing of another, nor of what is not here.
    node.store("near.example/app:latest");
    for image in ["near.example/app:latest", "far.example/absent:latest"] {
        assert_eq!(node.ensure(image), Ensured::Pulling, "{image}");
    }
}

#[test]
fn unreachable_registries_are_forgotten_in_time_and_are_few() {
    let start = Instant::now();
    let mut unreachable = Unreachable::default();
    unreachable.note("a", start);
    assert!(unreachable.has("a", start + UNREACHABLE / 2));
    assert!(!unreachable.has("a", start + UNREACHABLE));
    assert!(!unreachable.has("b", start));
    unreachable.forget("a");
    assert!(!unreachable.has("a", start));
    for n in 0..1000 {
        unreachable.note(&n.to_string(), start + Duration::from_millis(n));
    }
    assert_eq!(unreachable.0.len(), HOSTS);
    let last = start + Duration::from_secs(1);
    assert!(unreachable.has("999", last) && !unreachable.has("0", last));
}

/// However a pull is stuck, it is killed; one that says something now and then is not.
#[tokio::test]
async fn a_pull_without_progress_is_killed() {
    let progress = r#"{"progress":{"layer":"sha256:0000000000000000000000000000000000000000000000000000000000000000","done":1,"total":2}}"#;
    let slow = format!(
        "read -r request; for n in 1 2 3 4 5; do echo '{progress}'; sleep 0.4; done; echo '{UNWANTED}'"
    );
    for (script, expected) in [
        ("exec sleep 1000".to_owned(), "no progress"),
        (format!("echo '{progress}'; exec sleep 1000"), "no progress"),
        (
            format!("echo '{UNWANTED}'; exec 1>&-; exec sleep 1000"),
            "no progress",
        ),
        (slow, "unwanted"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = executable(dir.path(), &format!("echo $$ > pid; {script}"));
        let request = asking(dir.path());
        let error = run(
            &path,
            &Own::default(),
            &request,
            Duration::from_secs(1),
            &mut Cost::default(),
            &Mutex::new(Shown::new(Instant::now())),
            &|_| {},
        )
        .await
        .unwrap()
        .unwrap_err();
        assert!(error.message.contains(expected), "{script}: {error}");
        assert_eq!(error.reason, PullReason::RegistryUnavailable);
        assert!(!is_alive(dir.path()), "{script}");
    }
}

/// A request of more than a pipe takes, so that a process which does not read is noticed too.
fn asking(dir: &Path) -> PullRequest {
    PullRequest {
        reference: "a/b:v1".into(),
        sources: vec![Source::new(SourceKind::Registry, "x".repeat(200_000))],
        platform: Platform::host(),
        store: dir.join("store"),
        preloaded: None,
        limits: Default::default(),
        not_before_unix: 0,
    }
}

fn is_alive(dir: &Path) -> bool {
    let pid = fs::read_to_string(dir.join("pid")).unwrap();
    Path::new("/proc").join(pid.trim()).exists()
}

/// A pull that is under way when its window closes is ended, and may go on in the next.
#[tokio::test]
async fn a_pull_ends_with_its_window() {
    let dir = tempfile::tempdir().unwrap();
    let path = executable(dir.path(), "echo $$ > pid; exec sleep 1000");
    let shown = Mutex::new(Shown::new(Instant::now()));
    let until_then = Instant::now() + Duration::from_secs(1);
    let (own, request, mut cost) = (Own::default(), asking(dir.path()), Cost::default());
    let ended = run_until(until_then, &path, &own, &request, &mut cost, &shown, &|_| {}).await;
    let error = ended.unwrap().unwrap_err();
    assert!(error.message.contains("the pull window has closed"), "{error}");
    assert_eq!(error.reason, PullReason::RegistryUnavailable);
    // On a slow machine it may not even have begun.
    until("its process to be gone", || {
        !dir.path().join("pid").exists() || !is_alive(dir.path())
    })
    .await;
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..500 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("waited in vain for {what}");
}

/// Outside of its windows a node pulls nothing, says when it will, and runs what it has.
#[tokio::test]
async fn nothing_is_pulled_outside_of_its_window() {
    let mut node = Node::new(UNREACHED);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let minute = now.as_secs() / 60;
    let time = |minutes: u64| {
        format!(
            "{:02}:{:02}",
            (minute + minutes) / 60 % 24,
            (minute + minutes) % 60
        )
    };
    let window = |from: u64, to: u64| Window::try_from(format!("{}-{}", time(from), time(to))).unwrap();
    let with = |windows: Vec<Window>, node: &mut Node| {
        let mut config = (*node.images.config).clone();
        config.images.pull_windows = windows;
        node.images.config = Arc::new(config);
    };
    with(vec![window(120, 180)], &mut node);
    node.store("far.example/here:latest");
    let Ensured::Now(here) = node.ensure("far.example/here:latest") else {
        panic!("it is here")
    };
    assert_eq!(shown(*here), ("far.example/here:latest".to_owned(), true));
    let Ensured::Now(absent) = node.ensure("far.example/absent:latest") else {
        panic!("it is not asked for")
    };
    let Event::ImageFailed { error, .. } = *absent else {
        panic!("{absent:?}")
    };
    assert!(
        error.retry && error.message.contains("UTC alone (images.pull_windows)"),
        "{error:?}"
    );
    assert_eq!(node.ran(), 0);
    with(vec![window(0, 60)], &mut node);
    assert_eq!(node.ensure("far.example/absent:latest"), Ensured::Pulling);
}

/// While the store is tidied no image is promised, and a pull that found no room is tried again after it, once.
#[tokio::test]
async fn a_pull_without_room_is_tried_again_once_the_store_is_tidy() {
    let script = r#"read -r request; echo "$request" >> ran
case "$1" in
collect) sleep 0.2; echo '{"removed":{"what":"image a","bytes":7}}'; echo '"done"' ;;
*) echo '{"error":{"reason":"ErrImagePull","message":"full","neededBytes":12}}' ;;
esac"#;
    let mut node = Node::new(script);
    node.store("far.example/here:latest");
    assert_eq!(node.ensure("far.example/app:latest"), Ensured::Pulling);
    assert_eq!(node.answers().await, [], "it waits for room");
    assert_eq!(node.images.starving(), Some(12));
    assert_eq!(
        node.ensure("far.example/app:latest"),
        Ensured::Pulling,
        "with the other"
    );
    assert_eq!(node.ran(), 1);
    assert!(
        node.images
            .collect(Why::Pull(12), BTreeSet::new(), BTreeSet::new())
    );
    assert!(
        !node
            .images
            .collect(Why::Asked { all: true }, BTreeSet::new(), BTreeSet::new())
    );
    let container = ContainerRef {
        pod: Uid([0; 16]),
        name: "later".to_owned(),
        attempt: 0,
    };
    let policy = PullPolicy::IfNotPresent;
    let later = node
        .images
        .ensure(container, "far.example/here:latest", policy, Vec::new(), 0);
    assert_eq!(later, Ensured::Later);
    let done = match timeout(Duration::from_secs(20), node.inputs.recv())
        .await
        .unwrap()
    {
        Some(Input::Collected(done)) => *done,
        other => panic!("{other:?}"),
    };
    let now = Instant::now();
    let events: Vec<_> = node.images.collected(done, now).into_iter().map(shown).collect();
    assert_eq!(events, [("later".to_owned(), true)]);
    // What the collection was told stays is what is waited for.
    let asked = fs::read_to_string(node.dir.path().join("ran")).unwrap();
    assert!(
        asked
            .lines()
            .nth(1)
            .unwrap()
            .contains("\"references\":[\"far.example/app:latest\"]"),
        "{asked}"
    );
    let failed = node.pulled().await;
    assert_eq!(failed, vec![("far.example/app:latest".to_owned(), false); 2]);
    assert_eq!((node.ran(), node.images.starving()), (3, None));
    assert!(!node.images.may_collect(now) && node.images.may_collect(now + Duration::from_secs(301)));
}

const UNWANTED: &str = r#"{"error":{"reason":"RegistryUnavailable","message":"unwanted"}}"#;

/// A pull that failed with the credentials of one Pod is tried again with those of another that waits, and with no others.
#[tokio::test]
async fn each_pod_asks_with_its_own_credentials() {
    let script = r#"read -r request; echo "$request" >> ran; sleep 0.2
case "$request" in
*'"username":"right"'*) echo '{"ok":"sha256:0000000000000000000000000000000000000000000000000000000000000000"}' ;;
*) echo '{"error":{"reason":"ErrImagePull","message":"unauthorized"}}' ;;
esac"#;
    let mut node = Node::new(script);
    let image = "far.example/app:latest";
    let login = |username: &str| Login {
        username: username.to_owned(),
        password: "p".to_owned(),
    };
    for (name, logins) in [
        ("none", vec![]),
        ("wrong", vec![login("wrong")]),
        ("none too", vec![]),
        ("right", vec![login("wrong"), login("right")]),
    ] {
        let container = ContainerRef {
            pod: Uid([0; 16]),
            name: name.to_owned(),
            attempt: 0,
        };
        let answer = node
            .images
            .ensure(container, image, PullPolicy::Always, logins, 0);
        assert_eq!(answer, Ensured::Pulling);
    }
    let answers = |names: &[&str], is_ready: bool| -> Vec<(String, bool)> {
        names.iter().map(|name| ((*name).to_owned(), is_ready)).collect()
    };
    assert_eq!(node.pulled().await, answers(&["none", "none too"], false));
    assert_eq!(node.pulled().await, answers(&["wrong"], false));
    node.store(image);
    assert_eq!(node.pulled().await, answers(&["right"], true));
    assert_eq!(node.ran(), 3);
    assert!(node.images.pulls.is_empty() && node.images.waiting.is_empty());
}

/// Where credentials go: those of Secrets to the registry alone, before the node's.
#[tokio::test]
async fn credentials_of_secrets_go_to_the_registry_alone() {
    let mut node = Node::new("");
    let mirrored = crate::config::Registry {
        mirrors: vec!["https://mirror.example".to_owned()],
        username: Some("node".to_owned()),
        password: Some("n".to_owned()),
        ..Default::default()
    };
    let config = Config {
        registries: [("far.example".to_owned(), mirrored)].into(),
        images_from_server: false,
        ..Config::default()
    };
    node.images.config = Arc::new(config);
    let login = Login {
        username: "secret".to_owned(),
        password: "s".to_owned(),
    };
    let check = |image: &str, logins: &[Login], expected: &[(SourceKind, Option<&str>)]| {
        let sources = node.images.sources(&ImageRef::parse(image).unwrap(), logins);
        let asked: Vec<_> = sources
            .iter()
            .map(|it| (it.kind, it.username.as_deref()))
            .collect();
        assert_eq!(asked, expected, "{image}");
    };
    let (mirror, registry) = (SourceKind::Mirror, SourceKind::Registry);
    let own = Some("node");
    check("far.example/a", &[], &[(mirror, own), (registry, own)]);
    check(
        "far.example/a",
        std::slice::from_ref(&login),
        &[(mirror, own), (registry, Some("secret")), (registry, own)],
    );
    check("near.example/a", &[], &[(registry, None)]);
    check("near.example/a", &[login], &[(registry, Some("secret"))]);
}
