//! Who this node is: its key, its certificate, whom it trusts.
//!
//! Always holds: the private key never leaves the node; files are mode 0600 and written by rename, so a power cut
//! leaves the old identity or the new one.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use skiff_protocol::enrol::{self, JoinResponse};
use skiff_protocol::topic::NodeName;
use skiff_transport::tls;

use crate::config::Config;

/// What enrolment left behind.
#[derive(Clone)]
pub(crate) struct Identity {
    /// The node's name.
    pub node: NodeName,
    /// The node's key, PKCS#8 PEM.
    pub key_pem: String,
    /// Everything that the server said at enrolment, or when it renewed the certificate last.
    pub joined: JoinResponse,
    /// The server's Ed25519 public key.
    pub server_key: Vec<u8>,
    /// Who joined the node named its broker.
    pub broker_chosen: bool,
}

/// `joined.json`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kept {
    #[serde(flatten)]
    joined: JoinResponse,
    /// Who joined the node named its broker, so the server's is not taken over.
    #[serde(default)]
    broker_chosen: bool,
}

fn dir(state: &Path) -> PathBuf {
    state.join("identity")
}

impl Identity {
    /// Reads the identity.
    ///
    /// # Errors
    /// When the node has not joined, or a file is damaged.
    pub(crate) fn load(state: &Path) -> Result<Self> {
        let path = dir(state).join("joined.json");
        if !path.exists() {
            bail!(
                "this node has not joined a fleet: {} is not there; run `skiff node enrol NAME` where the server \
                 is, and the `skiff-agent join` command that it prints here",
                path.display()
            );
        }
        let read =
            |path: &Path| fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
        let kept: Kept = serde_json::from_str(&read(&path)?)
            .with_context(|| format!("{} is damaged; join again", path.display()))?;
        let node = NodeName::parse(&kept.joined.node).with_context(|| format!("{}", path.display()))?;
        let server_key = enrol::from_base64(&kept.joined.signing_key)
            .with_context(|| format!("{}: signing_key is damaged; join again", path.display()))?;
        Ok(Self {
            node,
            key_pem: read(&dir(state).join("node.key"))?,
            joined: kept.joined,
            server_key,
            broker_chosen: kept.broker_chosen,
        })
    }

    /// The identity; that of a node by itself where it has not joined and has static Pods to run.
    ///
    /// # Errors
    /// As [`Identity::load`], and when the machine's name is no name for a node.
    pub(crate) fn load_or_alone(config: &Config) -> Result<Self> {
        let joined = dir(&config.state_dir).join("joined.json").exists();
        if joined || config.static_pods_dir.as_os_str().is_empty() || !config.static_pods_dir.is_dir() {
            return Self::load(&config.state_dir);
        }
        let hostname = || fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let name = config.node_name.clone().unwrap_or_else(hostname);
        let name = name.trim().to_ascii_lowercase();
        let node = NodeName::parse(&name).with_context(|| {
            format!(
                "node_name: this node has not joined a fleet, and {name:?} is no name for a node; give it one"
            )
        })?;
        Ok(Self {
            joined: JoinResponse {
                node: node.to_string(),
                not_after: u64::MAX,
                ..JoinResponse::default()
            },
            node,
            key_pem: String::new(),
            server_key: Vec::new(),
            broker_chosen: false,
        })
    }

    /// Whether there is a fleet that it belongs to.
    #[must_use]
    pub(crate) fn has_joined(&self) -> bool {
        !self.joined.broker_url.is_empty()
    }

    /// Makes the key that the journal is sealed with, unless it is there.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn ensure_seal(state: &Path) -> Result<()> {
        let dir = dir(state);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .with_context(|| format!("cannot make {}", dir.display()))?;
        // A journal that was sealed when this node joined before must still open.
        if !dir.join("seal.key").exists() {
            let mut seal = [0; 32];
            let filled = SystemRandom::new().fill(&mut seal);
            filled.map_err(|_| anyhow::anyhow!("the system gives no randomness for a key"))?;
            write(&dir.join("seal.key"), &seal)?;
        }
        Ok(())
    }

    /// Keeps what a join gave. `broker` takes the place of the broker that the server named.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(crate) fn make(
        state: &Path,
        key_pem: &str,
        mut joined: JoinResponse,
        broker: Option<&str>,
    ) -> Result<()> {
        Self::ensure_seal(state)?;
        if let Some(broker) = broker {
            broker.clone_into(&mut joined.broker_url);
        }
        write(&dir(state).join("node.key"), key_pem.as_bytes())?;
        keep(state, joined, broker.is_some())
    }

    /// Keeps what a renewal gave: one file, so that key and certificate always belong together.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn renew(&self, state: &Path, mut renewed: JoinResponse) -> Result<()> {
        if self.broker_chosen {
            renewed.broker_url.clone_from(&self.joined.broker_url);
        }
        keep(state, renewed, self.broker_chosen)
    }

    /// The TLS identity for broker and server.
    #[must_use]
    pub(crate) fn tls(&self) -> tls::Identity<'_> {
        tls::Identity {
            certificates_pem: &self.joined.certificate,
            key_pem: &self.key_pem,
        }
    }
}

fn keep(state: &Path, joined: JoinResponse, broker_chosen: bool) -> Result<()> {
    let kept = Kept {
        joined,
        broker_chosen,
    };
    write(
        &dir(state).join("joined.json"),
        &serde_json::to_vec_pretty(&kept)?,
    )
}

/// Writes a file of mode 0600 so that a power cut leaves the old content or the new.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = || format!("cannot write {}", path.display());
    let new = path.with_extension("new");
    let _ = fs::remove_file(&new);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)
        .with_context(failed)?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .with_context(failed)?;
    fs::rename(&new, path).with_context(failed)?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    fs::File::open(parent)
        .and_then(|dir| dir.sync_all())
        .with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(broker_url: &str, certificate: &str) -> JoinResponse {
        JoinResponse {
            version: enrol::VERSION,
            node: "rover-7".to_owned(),
            ca_certificate: "ca".to_owned(),
            certificate: certificate.to_owned(),
            signing_key: "AAAA".to_owned(),
            broker_url: broker_url.to_owned(),
            broker_username: "rover-7".to_owned(),
            broker_password: "secret".to_owned(),
            server_urls: vec!["https://fleet.example".to_owned()],
            server_time: 1,
            not_after: 2,
        }
    }

    #[test]
    fn a_renewal_changes_the_certificate_and_a_broker_that_nobody_chose() {
        for (chosen, expected) in [(None, "mqtts://new"), (Some("mqtts://mine"), "mqtts://mine")] {
            let dir = tempfile::tempdir().unwrap();
            Identity::make(dir.path(), "key", joined("mqtts://old", "first"), chosen).unwrap();
            let before = Identity::load(dir.path()).unwrap();
            assert_eq!(before.joined.broker_url, chosen.unwrap_or("mqtts://old"));
            before.renew(dir.path(), joined("mqtts://new", "second")).unwrap();
            let after = Identity::load(dir.path()).unwrap();
            assert_eq!(after.joined.certificate, "second");
            assert_eq!(
                (after.joined.broker_url.as_str(), after.key_pem.as_str()),
                (expected, "key")
            );
        }
    }

    #[test]
    fn what_an_earlier_version_wrote_is_read() {
        let dir = tempfile::tempdir().unwrap();
        Identity::make(dir.path(), "key", joined("mqtts://old", "first"), None).unwrap();
        let path = dir.path().join("identity/joined.json");
        fs::write(
            &path,
            serde_json::to_vec(&joined("mqtts://old", "first")).unwrap(),
        )
        .unwrap();
        assert!(!Identity::load(dir.path()).unwrap().broker_chosen);
    }
}
