//! The command line: what can be asked, and the help that says so.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::connect::Target;

/// Drive a fleet of small machines that run Kubernetes Pods.
#[derive(Debug, Parser)]
#[command(name = "skiff", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = "Examples:
  skiff up                          try it out: a server and a node on this machine
  skiff server --data /var/lib/skiff-server --advertise fleet.example.org
  skiff node enrol rover-7          let a device join
  skiff apply -f pod.yaml           what kubectl does, where there is no kubectl
  skiff get pods -w

`skiff COMMAND --help` tells more of each.")]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) target: Target,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the server
    Server(Box<ServerArgs>),
    /// Run a server and one node on this machine, to try things out
    Up(UpArgs),
    /// Enrol and list nodes
    #[command(subcommand)]
    Node(NodeCommand),
    /// Import and list images that the server gives to its nodes
    #[command(subcommand)]
    Image(ImageCommand),
    /// Make objects as files describe them, or change them to that
    Apply(ApplyArgs),
    /// Show objects
    Get(GetArgs),
    /// Show what a container wrote
    Logs(LogsArgs),
    /// Delete objects, and wait until they are gone
    Delete(DeleteArgs),
    /// Print a shell's completion script
    #[command(after_help = "Examples:
  skiff completion bash > /etc/bash_completion.d/skiff
  skiff completion zsh > ~/.zfunc/_skiff
  skiff completion fish > ~/.config/fish/completions/skiff.fish")]
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// `skiff server`.
#[derive(Debug, Args)]
#[command(
    after_help = "The first start makes the fleet's keys and certificates under the data directory, and a kubeconfig for
kubectl and skiff; its path is printed. Whoever has the data directory has the fleet: keep it private
and back it up.

Examples:
  skiff server --data /var/lib/skiff-server --advertise fleet.example.org
  skiff server --data ./data --listen 127.0.0.1:6443
  skiff server --data ./data --broker mqtts://broker.example.org:8883 \\
      --broker-user skiff --broker-password-file secret

A broker of your own shows a certificate that the fleet's authority signed; what it needs for that lies in
broker/ in the data directory."
)]
pub(crate) struct ServerArgs {
    /// Where keys, certificates, objects and images are kept
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Where the API listens
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:6443")]
    pub(crate) listen: SocketAddr,
    /// A name or address by which nodes and users reach this server; may be given again
    #[arg(long, value_name = "NAME")]
    pub(crate) advertise: Vec<String>,
    /// Where the embedded MQTT broker listens
    #[arg(
        long,
        value_name = "ADDR:PORT",
        default_value = "0.0.0.0:8883",
        conflicts_with = "broker"
    )]
    pub(crate) broker_listen: SocketAddr,
    /// Use this MQTT broker rather than the embedded one [with the fleet's own user and password]
    #[arg(long, value_name = "mqtts://HOST:PORT")]
    pub(crate) broker: Option<String>,
    /// The user to log in to that broker as
    #[arg(long, value_name = "NAME", requires = "broker")]
    pub(crate) broker_user: Option<String>,
    /// A file with the password for that broker
    #[arg(long, value_name = "FILE", requires = "broker_user")]
    pub(crate) broker_password_file: Option<PathBuf>,
    /// How long a node's certificate is valid; nodes renew it at two thirds of that [default: a year]
    #[arg(long, value_name = "TIME", value_parser = crate::time::seconds)]
    pub(crate) node_cert_life: Option<u64>,
}

/// `skiff up`.
#[derive(Debug, Args)]
#[command(
    after_help = "Ctrl-C ends both, and removes the Pods that the node ran. What the server stored stays in the data
directory, and the next `skiff up` goes on with it.

Examples:
  sudo skiff up
  sudo skiff up --data /tmp/skiff-trial --agent target/release/skiff-agent"
)]
pub(crate) struct UpArgs {
    /// Where server and node keep what they have
    #[arg(long, value_name = "DIR", default_value = "/var/lib/skiff-up")]
    pub(crate) data: PathBuf,
    /// Where the API listens
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:6443")]
    pub(crate) listen: SocketAddr,
    /// Where the MQTT broker listens
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8883")]
    pub(crate) broker_listen: SocketAddr,
    /// The node's name
    #[arg(long, value_name = "NAME", default_value = "local")]
    pub(crate) node: String,
    /// The node's agent [default: skiff-agent beside this program, or on PATH]
    #[arg(long, value_name = "FILE")]
    pub(crate) agent: Option<PathBuf>,
}

/// `skiff node`.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Make a join token, and print the command that the device needs
    #[command(
        after_help = "The token lets one device join under this name, once. Enrolling the same name again makes a new token
and voids the one before; a node that has joined goes on as it is until the new token is used.

Example:
  skiff node enrol rover-7 --valid-for 2h"
    )]
    Enrol {
        /// The node's name: at most 23 of a-z, 0-9 and '-'
        name: String,
        /// How long the token can be used
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = crate::time::seconds)]
        valid_for: u64,
        /// Print the token only
        #[arg(long)]
        token_only: bool,
    },
    /// Take a node out of the fleet for good
    #[command(
        after_help = "Its certificate and its password open nothing any more, and its Pods count as failed and go. What runs on the
device goes on until somebody ends it there: `skiff-agent stop`. Under the same name another device, or the
same one, can join with a new token.

Example:
  skiff node remove rover-7"
    )]
    Remove {
        /// The node's name
        name: String,
    },
    /// Show which images a node has
    #[command(
        after_help = "The largest 50, as the node last told; `skiff-agent images` on the device shows all, and why each stays.

Example:
  skiff node images rover-7"
    )]
    Images {
        /// The node's name
        name: String,
    },
    /// List the nodes
    Ls {
        /// More columns
        #[arg(long)]
        wide: bool,
    },
}

/// `skiff image`.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Give the server an image: an archive of `docker save` or `skopeo copy`, or an OCI layout
    #[command(
        after_help = "Nodes look for an image on their server before they ask a registry, so that a fleet without internet
runs on what was imported.

Examples:
  docker save nginx:latest -o nginx.tar && skiff image import nginx.tar
  skiff image import ./oci-layout --name registry.example/team/app:1.2"
    )]
    Import {
        /// A tar archive (it may be gzipped), a directory with an OCI layout, or - for standard input
        file: PathBuf,
        /// The image's name, where the archive has none or another
        #[arg(long, value_name = "REF")]
        name: Option<String>,
    },
    /// List the images that were imported
    Ls,
}

/// `skiff apply`.
#[derive(Debug, Args)]
#[command(
    after_help = "All files are read and checked before anything is sent; a mistake anywhere is shown with its file, line
and column, and nothing is stored. `kubectl apply` may go on with what `skiff apply` made, and the
other way round.

Examples:
  skiff apply -f pod.yaml -f config.yaml
  skiff apply -f manifests/
  generate-manifests | skiff apply -f -"
)]
pub(crate) struct ApplyArgs {
    /// A file, a directory with .yaml, .yml and .json files, or - for standard input; may be given again
    #[arg(short, long, value_name = "FILE", required = true)]
    pub(crate) filename: Vec<PathBuf>,
    /// Ask the server what it would do, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// How `get` shows objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// A table with more columns
    Wide,
    /// The whole objects
    Yaml,
    /// The whole objects
    Json,
    /// kind/name, a line each
    Name,
}

/// `skiff get`.
#[derive(Debug, Args)]
#[command(
    after_help = "Kinds: pods (po), configmaps (cm), secrets, nodes (no), namespaces (ns), events (ev).

Examples:
  skiff get pods -o wide
  skiff get pod nginx -o yaml
  skiff get pods -A -l app=web -w"
)]
pub(crate) struct GetArgs {
    /// The kind, or kind/name
    pub(crate) kind: String,
    /// The object; without it, all of them
    pub(crate) name: Option<String>,
    /// Of all namespaces
    #[arg(short = 'A', long)]
    pub(crate) all_namespaces: bool,
    /// Only those whose labels fit, such as app=web,tier!=cache
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub(crate) selector: Option<String>,
    /// Only those whose fields fit, such as status.phase=Running
    #[arg(long, value_name = "SELECTOR")]
    pub(crate) field_selector: Option<String>,
    /// How to show them
    #[arg(short, long, value_enum, value_name = "FORM")]
    pub(crate) output: Option<Output>,
    /// Go on showing what changes
    #[arg(short, long)]
    pub(crate) watch: bool,
    /// Leave the table's head out
    #[arg(long)]
    pub(crate) no_headers: bool,
}

/// `skiff logs`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  skiff logs nginx
  skiff logs -f counter -c app --tail 20
  skiff logs crashing --previous --since 1h30m --timestamps")]
pub(crate) struct LogsArgs {
    /// The Pod, or pod/NAME
    pub(crate) pod: String,
    /// The container [default: the Pod's only one]
    #[arg(short, long, value_name = "NAME")]
    pub(crate) container: Option<String>,
    /// Go on as the container writes
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only the last lines; -1 for all
    #[arg(long, value_name = "LINES", default_value_t = -1, allow_negative_numbers = true)]
    pub(crate) tail: i64,
    /// Only lines younger than this, such as 90s, 5m or 1h30m
    #[arg(long, value_name = "TIME", value_parser = crate::time::seconds)]
    pub(crate) since: Option<u64>,
    /// Of the container's run before this one
    #[arg(short, long)]
    pub(crate) previous: bool,
    /// Each line with its time
    #[arg(long)]
    pub(crate) timestamps: bool,
    /// At most so many bytes
    #[arg(long, value_name = "BYTES")]
    pub(crate) limit_bytes: Option<u64>,
}

/// `skiff delete`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  skiff delete pod nginx
  skiff delete pod/nginx configmap/settings
  skiff delete -f manifests/
  skiff delete pod stuck --force")]
pub(crate) struct DeleteArgs {
    /// KIND NAME..., or KIND/NAME...
    #[arg(
        value_name = "KIND NAME",
        required_unless_present = "filename",
        conflicts_with = "filename"
    )]
    pub(crate) what: Vec<String>,
    /// The objects of a file, a directory, or - for standard input; may be given again
    #[arg(short, long, value_name = "FILE")]
    pub(crate) filename: Vec<PathBuf>,
    /// Give the Pod one second to end
    #[arg(long, conflicts_with = "force")]
    pub(crate) now: bool,
    /// Take the object away without waiting for its node; the Pod may run on where the node is out of reach
    #[arg(long)]
    pub(crate) force: bool,
    /// Seconds that the Pod has to end [default: its own]
    #[arg(long, value_name = "SECONDS", conflicts_with_all = ["now", "force"])]
    pub(crate) grace_period: Option<u32>,
    /// Do not wait until the object is gone
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// Nothing to delete is no error
    #[arg(long)]
    pub(crate) ignore_not_found: bool,
}
