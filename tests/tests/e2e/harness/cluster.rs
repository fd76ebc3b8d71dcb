//! A server, a broker and one node, and kubectl and skiff to drive them.
//!
//! Always holds: everything is dropped in the order in which it may be stopped: node, broker, server, directory.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use serde_json::Value;
use skiff_tests::port;
use tempfile::TempDir;

use super::node::Node;
use super::process::{Process, Said, read, tail};
use super::programs;
use super::wait::wait;

/// What a test wants.
#[derive(Default)]
pub(crate) struct Setup<'a> {
    /// A Mosquitto with the configuration that the server writes, in place of the embedded broker.
    pub(crate) mosquitto: bool,
    /// Stand-in images to import.
    pub(crate) images: &'a [&'a str],
    /// More of the agent's configuration.
    pub(crate) agent: &'a str,
    /// More words for `skiff server`.
    pub(crate) server: &'a [&'a str],
    /// Where the agent shall look for the broker, as a function of where it is.
    pub(crate) broker_url: Option<&'a dyn Fn(&Cluster) -> String>,
}

/// A running fleet of one node.
pub(crate) struct Cluster {
    /// The node. It ends before the server does.
    pub(crate) node: Node,
    control: Control,
}

impl std::ops::Deref for Cluster {
    type Target = Control;

    fn deref(&self) -> &Control {
        &self.control
    }
}

impl std::ops::DerefMut for Cluster {
    fn deref_mut(&mut self) -> &mut Control {
        &mut self.control
    }
}

impl Cluster {
    /// Starts everything and waits until the node is Ready.
    #[track_caller]
    pub(crate) fn start(setup: &Setup<'_>) -> Self {
        let control = Control::start(setup);
        let mut cluster = Self {
            node: Node::new(control.dir(), "rover", setup.agent),
            control,
        };
        let token = cluster.token("rover");
        cluster.node.join(&token);
        if let Some(url) = setup.broker_url {
            let line = format!("broker_url = {:?}\n{}", url(&cluster), read(&cluster.node.config));
            std::fs::write(&cluster.node.config, line).unwrap();
        }
        cluster.node.start();
        cluster.is_ready();
        cluster
    }

    /// One with the embedded broker and busybox.
    #[track_caller]
    pub(crate) fn busybox() -> Self {
        Self::start(&Setup {
            images: &["busybox"],
            ..Setup::default()
        })
    }

    /// Waits until the node is Ready.
    #[track_caller]
    pub(crate) fn is_ready(&self) {
        self.control.is_ready("rover", 30);
    }

    /// Drives this fleet with another kubectl.
    pub(crate) fn with_kubectl(mut self, program: PathBuf) -> Self {
        self.control.kubectl = program;
        self
    }

    /// Waits until the API has no Pod and the kernel holds nothing of any.
    #[track_caller]
    pub(crate) fn is_empty(&self) {
        wait("no Pod to be left", 30, || {
            let pods = self.kubectl(&["get", "pods", "-A", "-o", "name"]).ok();
            let known = self.node.ask("pods")?;
            let mut left = self.node.leftovers();
            left.extend(pods.lines().map(str::to_owned));
            left.extend(known.as_array().into_iter().flatten().map(Value::to_string));
            if left.is_empty() {
                Ok(())
            } else {
                Err(left.join("\n"))
            }
        });
    }
}

/// The server and its broker, without any node.
pub(crate) struct Control {
    broker: Option<Process>,
    server: Option<Process>,
    kubectl: PathBuf,
    api: SocketAddr,
    broker_address: SocketAddr,
    mosquitto: bool,
    server_words: Vec<String>,
    dir: TempDir,
}

impl Control {
    /// Starts them and imports the images.
    #[track_caller]
    pub(crate) fn start(setup: &Setup<'_>) -> Self {
        let mut control = Self {
            broker: None,
            server: None,
            kubectl: programs::kubectl(),
            api: port::free(),
            broker_address: port::free(),
            mosquitto: setup.mosquitto,
            server_words: setup.server.iter().map(ToString::to_string).collect(),
            dir: tempfile::Builder::new().prefix("skiff-e2e-").tempdir().unwrap(),
        };
        control.start_server();
        if setup.mosquitto {
            control.start_broker();
        }
        for image in setup.images {
            control.import(&programs::archive(image));
        }
        control
    }

    /// Gives an image to the server.
    #[track_caller]
    pub(crate) fn import(&self, archive: &Path) {
        let archive = archive.display().to_string();
        self.skiff(&["image", "import", &archive]).ok();
    }

    /// Waits until a node is Ready.
    #[track_caller]
    pub(crate) fn is_ready(&self, node: &str, seconds: u64) {
        let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        wait("the node to be Ready", seconds, || {
            let said = self.kubectl(&["get", "node", node, "-o", path]);
            if said.out == "True" {
                Ok(())
            } else {
                Err(said.to_string())
            }
        });
    }

    /// The server's data directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("server")
    }

    /// The test's directory.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where the broker is.
    pub(crate) fn broker_address(&self) -> SocketAddr {
        self.broker_address
    }

    /// Starts the server, at the same addresses each time, and waits until it answers.
    #[track_caller]
    pub(crate) fn start_server(&mut self) {
        let mut command = Command::new(programs::skiff());
        command.arg("server").arg("--data").arg(self.data());
        command.arg("--listen").arg(self.api.to_string());
        command.args(&self.server_words);
        if self.mosquitto {
            command
                .arg("--broker")
                .arg(format!("mqtts://{}", self.broker_address));
        } else {
            command
                .arg("--broker-listen")
                .arg(self.broker_address.to_string());
        }
        self.server = Some(Process::start(command, &self.dir.path().join("server.log")));
        wait("the server to answer", 30, || {
            let server = self.server.as_mut().unwrap();
            assert!(server.runs(), "the server ended: {}", tail(&server.text(), 20));
            let said = self.kubectl(&["get", "--raw", "/version"]);
            if said.code == 0 { Ok(()) } else { Err(said.err) }
        });
    }

    /// SIGTERM to the server.
    #[track_caller]
    pub(crate) fn stop_server(&mut self) {
        assert!(
            self.server.take().unwrap().stop(),
            "the server does not stop on SIGTERM"
        );
    }

    /// SIGKILL to the server.
    pub(crate) fn kill_server(&mut self) {
        self.server.take().unwrap().kill();
    }

    /// Starts Mosquitto with what the server wrote for it.
    #[track_caller]
    pub(crate) fn start_broker(&mut self) {
        let generated = read(&self.data().join("broker/mosquitto.conf"));
        let path = self.dir.path().join("mosquitto.conf");
        // It gives its rights up otherwise, and this directory is root's.
        std::fs::write(&path, format!("user root\n{generated}")).unwrap();
        let mut command = Command::new(programs::mosquitto());
        command.arg("-c").arg(&path);
        self.broker = Some(Process::start(command, &self.dir.path().join("mosquitto.log")));
        let address = self.broker_address;
        listens(address, self.broker.as_mut().unwrap());
    }

    /// SIGKILL to Mosquitto.
    pub(crate) fn kill_broker(&mut self) {
        self.broker.take().unwrap().kill();
    }

    /// A join token.
    #[track_caller]
    pub(crate) fn token(&self, node: &str) -> String {
        let printed = self.skiff(&["node", "enrol", node, "--token-only"]).ok();
        printed.trim().to_owned()
    }

    /// Where the API listens.
    pub(crate) fn api(&self) -> SocketAddr {
        self.api
    }

    /// The administrator's kubeconfig.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.data().join("admin.kubeconfig")
    }

    /// kubectl with the administrator's certificate.
    #[track_caller]
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Said {
        self.kubectl_with(arguments, "")
    }

    /// The same with something on its standard input.
    #[track_caller]
    pub(crate) fn kubectl_with(&self, arguments: &[&str], input: &str) -> Said {
        let (config, home) = (self.kubeconfig(), self.dir.path().to_owned());
        let environment = [("KUBECONFIG", config.as_path()), ("HOME", home.as_path())];
        Said::of(&self.kubectl, arguments, &environment, input)
    }

    /// kubectl beside the test, its output in a file of that name.
    pub(crate) fn kubectl_beside(&self, name: &str, arguments: &[&str]) -> Process {
        let mut command = Command::new(&self.kubectl);
        command
            .args(arguments)
            .env("KUBECONFIG", self.kubeconfig())
            .env("HOME", self.dir.path());
        Process::start(command, &self.dir.path().join(name))
    }

    /// skiff as the administrator.
    #[track_caller]
    pub(crate) fn skiff(&self, arguments: &[&str]) -> Said {
        self.skiff_with(arguments, "")
    }

    /// The same with something on its standard input.
    #[track_caller]
    pub(crate) fn skiff_with(&self, arguments: &[&str], input: &str) -> Said {
        let config = self.kubeconfig();
        Said::of(&programs::skiff(), arguments, &[("KUBECONFIG", &config)], input)
    }

    /// `kubectl apply` of objects; gives back what it warned of.
    #[track_caller]
    pub(crate) fn apply(&self, object: &Value) -> String {
        let said = self.kubectl_with(&["apply", "-f", "-"], &object.to_string());
        assert_eq!(said.code, 0, "{said}");
        said.err
    }

    /// `kubectl delete pod`, without waiting for its grace.
    #[track_caller]
    pub(crate) fn delete(&self, pod: &str) {
        self.kubectl(&["delete", "pod", pod, "--grace-period=1"]).ok();
    }

    /// A Pod as the API shows it.
    pub(crate) fn get(&self, pod: &str) -> Result<Value, String> {
        let said = self.kubectl(&["get", "pod", pod, "-o", "json"]);
        if said.code != 0 {
            return Err(said.err);
        }
        serde_json::from_str(&said.out).map_err(|error| error.to_string())
    }

    /// Waits until a Pod is as `is_so` wants it.
    #[track_caller]
    pub(crate) fn until(&self, pod: &str, what: &str, seconds: u64, is_so: impl Fn(&Value) -> bool) -> Value {
        wait(&format!("pod {pod} {what}"), seconds, || {
            let value = self.get(pod)?;
            if is_so(&value) {
                Ok(value)
            } else {
                Err(value["status"].to_string())
            }
        })
    }

    /// Waits until a Pod runs with all its containers.
    #[track_caller]
    pub(crate) fn running(&self, pod: &str) -> Value {
        self.until(pod, "to run", 40, |it| {
            let containers = it["status"]["containerStatuses"].as_array();
            let all = containers.is_some_and(|all| {
                all.len() == it["spec"]["containers"].as_array().map_or(0, Vec::len)
                    && all.iter().all(|one| !one["state"]["running"].is_null())
            });
            it["status"]["phase"] == "Running" && all
        })
    }

    /// Waits until a Pod is in a phase.
    #[track_caller]
    pub(crate) fn phase(&self, pod: &str, phase: &str) -> Value {
        self.until(pod, &format!("to be {phase}"), 40, |it| {
            it["status"]["phase"] == phase
        })
    }

    /// Runs a Pod to its end and deletes it; gives it as it ended, and its log.
    #[track_caller]
    pub(crate) fn ends(&self, pod: &Value, seconds: u64) -> (Value, String) {
        let name = pod["metadata"]["name"].as_str().unwrap();
        self.apply(pod);
        let ended = self.until(name, "to end", seconds, |it| {
            it["status"]["phase"] == "Succeeded" || it["status"]["phase"] == "Failed"
        });
        let log = self.logs(&[name]);
        self.delete(name);
        (ended, log)
    }

    /// Applies a Pod and waits until it runs.
    #[track_caller]
    pub(crate) fn run(&self, pod: &Value) -> Value {
        self.apply(pod);
        self.running(pod["metadata"]["name"].as_str().unwrap())
    }

    /// `kubectl logs`.
    #[track_caller]
    pub(crate) fn logs(&self, arguments: &[&str]) -> String {
        let all: Vec<&str> = ["logs"].into_iter().chain(arguments.iter().copied()).collect();
        self.kubectl(&all).ok()
    }

    /// Waits until the log of a Pod's container holds `part`.
    #[track_caller]
    pub(crate) fn logs_say(&self, arguments: &[&str], part: &str) -> String {
        let all: Vec<&str> = ["logs"].into_iter().chain(arguments.iter().copied()).collect();
        wait(&format!("{part:?} in the log of {arguments:?}"), 30, || {
            let said = self.kubectl(&all);
            if said.code == 0 && said.out.contains(part) {
                Ok(said.out)
            } else {
                Err(said.to_string())
            }
        })
    }

    /// A raw request with the administrator's token; the status code and the body.
    #[track_caller]
    pub(crate) fn http(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let token = read(&self.data().join("admin.token"));
        let header = format!("Authorization: Bearer {}", token.trim());
        self.request(&["-H", &header], method, path, body)
    }

    /// A raw request with what curl takes as credentials.
    #[track_caller]
    pub(crate) fn request(&self, credentials: &[&str], method: &str, path: &str, body: &str) -> (u16, Value) {
        let raw = "jsonpath={.clusters[0].cluster.certificate-authority-data}";
        let encoded = self.kubectl(&["config", "view", "--raw", "-o", raw]).ok();
        let authority = base64::engine::general_purpose::STANDARD.decode(encoded).unwrap();
        let file = self.dir.path().join("ca.pem");
        std::fs::write(&file, authority).unwrap();
        let (file, url) = (file.display().to_string(), format!("https://{}{path}", self.api));
        let json = "Content-Type: application/json";
        let mut arguments = vec!["-sS", "--http1.1", "--cacert", &file, "-X", method, "-H", json];
        arguments.extend(credentials);
        arguments.extend(["--data-binary", "@-", "-w", "\n%{http_code}", &url]);
        let out = Said::of(Path::new("curl"), &arguments, &[], body).ok();
        let (body, code) = out.rsplit_once('\n').unwrap();
        let value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}"));
        (code.parse().unwrap(), value)
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for log in ["server.log", "mosquitto.log"] {
                let text = read(&self.dir.path().join(log));
                if !text.is_empty() {
                    eprintln!("=== {log}\n{}", tail(&text, 60));
                }
            }
        }
    }
}

/// Waits until a process listens.
#[track_caller]
pub(crate) fn listens(address: SocketAddr, process: &mut Process) {
    wait(&format!("a listener on {address}"), 20, || {
        assert!(process.runs(), "it ended: {}", tail(&process.text(), 20));
        TcpStream::connect(address).map(drop).map_err(|it| it.to_string())
    });
}

/// One HTTP GET without keep-alive; the whole answer.
pub(crate) fn get(address: &str, port: u16, path: &str) -> Result<String, String> {
    use std::io::{Read as _, Write as _};
    let mut stream = TcpStream::connect((address, port)).map_err(|it| it.to_string())?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").map_err(|it| it.to_string())?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(|it| it.to_string())?;
    Ok(text)
}
