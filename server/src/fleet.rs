//! The fleet: its authority, and who belongs to it.
//!
//! What always holds: a node is a member from its first join until it is removed, over restarts; its broker password
//! changes when it joins with another key, so that the former key's owner is out; secrets lie in files of mode 0600
//! that are written whole or not at all.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use skiff_broker::{Attempt, Credentials, Role};
use skiff_pki::{FleetAuthority, SERVER_CN, Stored};
use skiff_protocol::topic::NodeName;

use crate::store::{Store, StoreError};

/// The bucket of the key-value table that holds the members.
const MEMBERS: &str = "members";

/// What the server keeps of a node that has joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Member {
    /// The serial of its broker password.
    pub(crate) serial: u64,
    /// SHA-256 of its public key, base64url.
    pub(crate) key_sha256: String,
}

/// See the module.
pub(crate) struct Fleet {
    pub(crate) authority: FleetAuthority,
    members: RwLock<BTreeMap<NodeName, Member>>,
    store: Arc<dyn Store>,
}

impl Fleet {
    /// Loads the members.
    pub(crate) async fn open(authority: FleetAuthority, store: Arc<dyn Store>) -> anyhow::Result<Self> {
        let mut members = BTreeMap::new();
        for (name, value) in store.kv_list(MEMBERS).await? {
            let node = NodeName::parse(&name).with_context(|| format!("stored member {name:?}"))?;
            let member = serde_json::from_slice(&value).with_context(|| format!("stored member {name}"))?;
            members.insert(node, member);
        }
        Ok(Self {
            authority,
            members: RwLock::new(members),
            store,
        })
    }

    /// The member of this name.
    pub(crate) fn member(&self, node: &NodeName) -> Option<Member> {
        self.members
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(node)
            .cloned()
    }

    /// What a node that joins with this key will be; the same as before where the key is.
    pub(crate) fn joining(&self, node: &NodeName, key_sha256: &str) -> Member {
        match self.member(node) {
            Some(member) if member.key_sha256 == key_sha256 => member,
            before => Member {
                serial: before.map_or(1, |member| member.serial.saturating_add(1)),
                key_sha256: key_sha256.to_owned(),
            },
        }
    }

    /// Takes a node in; on disk when this returns.
    pub(crate) async fn admit(&self, node: &NodeName, member: Member) -> Result<(), StoreError> {
        let value = serde_json::to_vec(&member).map_err(|_| StoreError::Closed)?;
        self.store.kv_put(MEMBERS, node.as_str(), &value).await?;
        self.members
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(node.clone(), member);
        Ok(())
    }

    /// Takes a node out; whether it was in.
    pub(crate) async fn remove(&self, node: &NodeName) -> Result<bool, StoreError> {
        self.store.kv_delete(MEMBERS, node.as_str()).await?;
        Ok(self
            .members
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(node)
            .is_some())
    }
}

impl crate::link::Fleet for Fleet {
    fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.authority.sign(message)
    }

    fn is_member(&self, node: &NodeName) -> bool {
        self.member(node).is_some()
    }
}

impl Credentials for Fleet {
    fn verify(&self, attempt: &Attempt<'_>) -> Option<Role> {
        let password = attempt.password?;
        if attempt.username != Some(attempt.certificate_name) {
            return None;
        }
        if attempt.certificate_name == SERVER_CN {
            return self
                .authority
                .is_server_password(password)
                .then_some(Role::Server);
        }
        let node = NodeName::parse(attempt.certificate_name).ok()?;
        let member = self.member(&node)?;
        let right = self.authority.is_broker_password(&node, member.serial, password);
        right.then_some(Role::Node(node))
    }
}

/// Loads the authority, or makes it at the very first start.
pub(crate) fn authority(path: &Path, fleet: &str, now: u64, years: u16) -> anyhow::Result<FleetAuthority> {
    match fs::read(path) {
        Ok(bytes) => {
            let stored: Stored =
                serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?;
            FleetAuthority::open(stored).with_context(|| format!("{} is damaged", path.display()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let database = path.with_file_name("skiff.db");
            if database.exists() {
                // A new authority would lock every node out for ever.
                bail!(
                    "{} is missing beside {}: restore it from a backup, for no node trusts another authority",
                    path.display(),
                    database.display()
                );
            }
            let authority = FleetAuthority::create(fleet, now, years)?;
            write_secret(path, &serde_json::to_vec_pretty(authority.stored())?)?;
            Ok(authority)
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Makes a directory that only its owner sees into.
pub(crate) fn private_dir(path: &Path) -> anyhow::Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("cannot make {}", path.display()))
}

/// Writes a file of mode 0600, whole or not at all.
pub(crate) fn write_secret(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let failed = || format!("cannot write {}", path.display());
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).with_context(failed),
        _ => {}
    }
    let file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new);
    let mut file = file.with_context(failed)?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .with_context(failed)?;
    fs::rename(&new, path).with_context(failed)?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    fs::File::open(parent)
        .and_then(|dir| dir.sync_all())
        .with_context(failed)
}
