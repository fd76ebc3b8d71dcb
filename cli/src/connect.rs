//! The way to the server: which kubeconfig, which URL, and what to say when nobody answers there.
//!
//! Always holds: an answer is read up to a bound, and within a time unless it is a stream; an error names the URL, the
//! context and the file that it is from.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use futures_util::{Stream, TryStreamExt as _};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Status;
use kube::{Client, Config};
use serde_json::Value;

use crate::failure::{Failure, Outcome, failed};
use crate::kinds::escape;

/// How long the server may take to be reached.
const CONNECT: Duration = Duration::from_secs(10);

/// How long the server may take over an answer that is no stream.
const ANSWER: Duration = Duration::from_secs(60);

/// Bytes of an answer that is no stream: some thousand Pods.
const ANSWER_BYTES: usize = 256 << 20;

/// Rows for people, or else the objects.
pub(crate) const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

/// The objects.
pub(crate) const JSON: &str = "application/json";

/// How to find the server.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Which server")]
pub(crate) struct Target {
    /// The kubeconfig file [default: $KUBECONFIG, or ~/.kube/config]
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The context in it [default: its current one]
    #[arg(long, value_name = "NAME", global = true)]
    pub(crate) context: Option<String>,
    /// The namespace [default: the context's, or "default"]
    #[arg(short, long, value_name = "NAME", global = true)]
    pub(crate) namespace: Option<String>,
}

/// A server, with our credentials for it.
pub(crate) struct Server {
    client: Client,
    /// For a connection of one's own, to stream a body.
    pub(crate) config: Config,
    /// URL, context and file, for errors.
    origin: String,
    /// Where objects are that name no namespace.
    pub(crate) namespace: String,
}

/// Why the server did not do as asked.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// It said so.
    Status(Box<Status>),
    /// It could not be asked, or its answer could not be read.
    Unanswered(anyhow::Error),
}

impl Refusal {
    /// The HTTP status code, if there was an answer.
    pub(crate) fn code(&self) -> Option<u16> {
        match self {
            Self::Status(status) => Some(status.code),
            Self::Unanswered(_) => None,
        }
    }
}

impl Refusal {
    /// It in words.
    pub(crate) fn words(&self) -> String {
        match self {
            Self::Status(status) => said(status),
            Self::Unanswered(error) => format!("{error:#}"),
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Failed(match refusal {
            Refusal::Status(status) => anyhow!("{}", said(&status)),
            Refusal::Unanswered(error) => error,
        })
    }
}

/// What the server said, with what to do about it where that is known.
pub(crate) fn said(status: &Status) -> String {
    let hint = match status.code {
        401 => "; the credentials in the kubeconfig are not this server's: use the kubeconfig that it wrote",
        403 if status.message.contains("cannot") => "; the kubeconfig's user may not do this",
        _ => "",
    };
    format!("{}{hint}", status.message)
}

type Answered<T> = Result<T, Refusal>;

impl Target {
    /// Reads the kubeconfig and makes a client; nothing is sent yet.
    pub(crate) async fn server(&self) -> Outcome<Server> {
        let (kubeconfig, file) = self.read()?;
        let context = self
            .context
            .clone()
            .or_else(|| kubeconfig.current_context.clone());
        let options = KubeConfigOptions {
            context: self.context.clone(),
            ..KubeConfigOptions::default()
        };
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
        let mut config = config.with_context(|| format!("kubeconfig {file}"))?;
        config.connect_timeout = Some(CONNECT);
        // Streams may be quiet for as long as they like; other answers have their own bound below.
        config.read_timeout = None;
        let url = config.cluster_url.to_string();
        let context = context.map_or(String::new(), |name| format!("context {name:?} of "));
        let namespace = self
            .namespace
            .clone()
            .unwrap_or_else(|| config.default_namespace.clone());
        if namespace.is_empty() {
            return failed("--namespace: a namespace has a name");
        }
        let origin = format!("{} ({context}{file})", url.trim_end_matches('/'));
        let client = Client::try_from(config.clone()).with_context(|| origin.clone())?;
        Ok(Server {
            client,
            config,
            origin,
            namespace,
        })
    }

    fn read(&self) -> Outcome<(Kubeconfig, String)> {
        if let Some(file) = &self.kubeconfig {
            let name = file.display().to_string();
            let read = Kubeconfig::read_from(file).with_context(|| format!("--kubeconfig {name}"))?;
            return Ok((read, name));
        }
        if let Some(read) = Kubeconfig::from_env().context("KUBECONFIG")? {
            let name = std::env::var("KUBECONFIG").unwrap_or_default();
            return Ok((read, name));
        }
        let file = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".kube/config"));
        match file {
            Some(file) if file.is_file() => {
                let name = file.display().to_string();
                let read = Kubeconfig::read_from(&file).with_context(|| format!("kubeconfig {name}"))?;
                Ok((read, name))
            }
            _ => failed(
                "which server? There is no --kubeconfig, no KUBECONFIG and no ~/.kube/config; `skiff server` and \
                 `skiff up` write one and print its path: export KUBECONFIG=<that path>",
            ),
        }
    }
}

/// A request that is being put together.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    method: Method,
    path: String,
    accept: &'static str,
    body: Option<(&'static str, Vec<u8>)>,
}

impl Ask {
    /// A request without a body that wants JSON.
    pub(crate) fn new(method: Method, path: impl Into<String>) -> Self {
        Self {
            method,
            path: path.into(),
            accept: JSON,
            body: None,
        }
    }

    /// Adds a parameter.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.path.push(if self.path.contains('?') { '&' } else { '?' });
        self.path.push_str(&format!("{name}={}", escape(value)));
        self
    }

    /// Wants another form of answer.
    pub(crate) fn accepting(mut self, accept: &'static str) -> Self {
        self.accept = accept;
        self
    }

    /// Carries a JSON body of this content type.
    pub(crate) fn sending(mut self, content_type: &'static str, body: &Value) -> Self {
        self.body = Some((content_type, body.to_string().into_bytes()));
        self
    }
}

impl Server {
    /// URL, context and file.
    pub(crate) fn origin(&self) -> &str {
        &self.origin
    }

    /// Sends a request and reads its JSON.
    pub(crate) async fn json(&self, ask: Ask) -> Answered<Value> {
        let whole = async {
            let response = self.send(ask).await?;
            let body = Limited::new(response.into_body(), ANSWER_BYTES).collect().await;
            let body = body
                .map_err(|error| self.unanswered(anyhow!("{error}")))?
                .to_bytes();
            serde_json::from_slice(&body)
                .map_err(|error| self.unanswered(anyhow!(error).context("the answer is not JSON")))
        };
        match tokio::time::timeout(ANSWER, whole).await {
            Ok(answer) => answer,
            Err(_) => Err(self.unanswered(anyhow!("no answer within {} s", ANSWER.as_secs()))),
        }
    }

    /// Sends a request and gives its body as it comes.
    pub(crate) async fn stream(
        &self,
        ask: Ask,
    ) -> Answered<impl Stream<Item = anyhow::Result<Bytes>> + Unpin> {
        let response = self.send(ask).await?;
        let origin = self.origin.clone();
        let body = response.into_body().into_data_stream();
        Ok(body.map_err(move |error| anyhow!("{origin}: the connection broke: {}", root(&error))))
    }

    async fn send(&self, ask: Ask) -> Answered<Response<Body>> {
        let mut request = Request::builder().method(ask.method).uri(&ask.path);
        request = request.header(header::ACCEPT, ask.accept);
        let mut bytes = Vec::new();
        if let Some((content_type, body)) = ask.body {
            request = request.header(header::CONTENT_TYPE, content_type);
            bytes = body;
        }
        let request = request.body(Body::from(bytes));
        let request = request.map_err(|error| self.unanswered(anyhow!(error).context(ask.path)))?;
        let response = self.client.send(request).await;
        let response = response.map_err(|error| self.unreachable(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let code = response.status();
        let body = Limited::new(response.into_body(), 1 << 20).collect().await;
        let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        Err(refusal(code, &body))
    }

    fn unanswered(&self, error: anyhow::Error) -> Refusal {
        Refusal::Unanswered(error.context(self.origin.clone()))
    }

    fn unreachable(&self, error: &(dyn std::error::Error + 'static)) -> Refusal {
        Refusal::Unanswered(anyhow!("{}", unreachable(&self.origin, error)))
    }
}

/// The Status in an error's body, or one made of what is there instead.
pub(crate) fn refusal(code: StatusCode, body: &[u8]) -> Refusal {
    let mut status = serde_json::from_slice::<Status>(body).unwrap_or_else(|_| {
        let text: String = String::from_utf8_lossy(body).trim().chars().take(200).collect();
        let reason = code.canonical_reason().unwrap_or("an error");
        Status::failure(
            &format!("the server answered {}: {reason}: {text}", code.as_u16()),
            reason,
        )
    });
    status.code = code.as_u16();
    if status.message.is_empty() {
        status.message = format!("the server answered {code}");
    }
    Refusal::Status(Box::new(status))
}

/// What to say when a connection could not be made.
pub(crate) fn unreachable(origin: &str, error: &(dyn std::error::Error + 'static)) -> String {
    let cause = root(error);
    let lower = cause.to_lowercase();
    let hint = if lower.contains("refused") {
        "nothing listens there; is `skiff server` running?"
    } else if lower.contains("unknownissuer") || lower.contains("unknown issuer") {
        "the certificate there is not of this kubeconfig's authority; use the kubeconfig that this server wrote"
    } else if lower.contains("notvalidforname") || lower.contains("not valid for name") {
        "the server's certificate does not have this name; start it with --advertise NAME"
    } else if lower.contains("certificate") {
        "the server's certificate was not accepted; are the clocks of both machines right?"
    } else if lower.contains("lookup") || lower.contains("name or service") || lower.contains("dns") {
        "the name does not resolve; is the server's address in the kubeconfig right?"
    } else {
        "is the server's address in the kubeconfig right, and the network up?"
    };
    format!("cannot reach {origin}: {cause}: {hint}")
}

/// The innermost cause, where the facts are.
fn root(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
