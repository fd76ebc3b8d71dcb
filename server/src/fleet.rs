//! The fleet: its authority, and who belongs to it.
//!
//! What always holds: a node is a member from its first join until it is removed, over restarts; the serial of its
//! broker password only goes up, over removals too, so that no password comes back to life; a member is who holds the
//! key that joined last, whatever certificates of its name are still valid; secrets lie in files of mode 0600 that are
//! written whole or not at all.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use skiff_broker::{Attempt, Credentials, Role};
use skiff_pki::{FleetAuthority, SERVER_CN, Stored};
use skiff_protocol::enrol::to_base64;
use skiff_protocol::sha256;
use skiff_protocol::topic::NodeName;

use crate::store::{Store, StoreError};

/// The bucket of the key-value table that holds the members, those that were removed among them.
const MEMBERS: &str = "members";

/// What the server keeps of a node that has joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Member {
    /// The serial of its broker password.
    pub(crate) serial: u64,
    /// SHA-256 of its public key, base64url.
    pub(crate) key_sha256: String,
    /// It was removed: what is kept of it is the serial that its successor must exceed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    removed: bool,
}

/// SHA-256 of a certificate's public key, as [`Member::key_sha256`] has it. The key is the bits of the
/// SubjectPublicKeyInfo, which for a node are its point on the curve.
pub(crate) fn key_sha256(key: &[u8]) -> String {
    to_base64(&sha256(key))
}

/// See the module.
pub(crate) struct Fleet {
    pub(crate) authority: FleetAuthority,
    /// With those that were removed.
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

    fn record(&self, node: &NodeName) -> Option<Member> {
        self.members
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(node)
            .cloned()
    }

    /// The member of this name.
    pub(crate) fn member(&self, node: &NodeName) -> Option<Member> {
        self.record(node).filter(|member| !member.removed)
    }

    /// Whether whoever holds this key is the member of this name.
    pub(crate) fn holds(&self, node: &NodeName, key_sha256: &str) -> bool {
        self.member(node)
            .is_some_and(|member| member.key_sha256 == key_sha256)
    }

    /// What a node that joins with this key will be; the same as before where the key is.
    pub(crate) fn joining(&self, node: &NodeName, key_sha256: &str) -> Member {
        match self.record(node) {
            Some(member) if member.key_sha256 == key_sha256 && !member.removed => member,
            before => Member {
                serial: before.map_or(1, |member| member.serial.saturating_add(1)),
                key_sha256: key_sha256.to_owned(),
                removed: false,
            },
        }
    }

    /// Takes a node in; on disk when this returns.
    pub(crate) async fn admit(&self, node: &NodeName, member: Member) -> Result<(), StoreError> {
        self.keep(node, member).await
    }

    async fn keep(&self, node: &NodeName, member: Member) -> Result<(), StoreError> {
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
        let Some(mut member) = self.member(node) else {
            return Ok(false);
        };
        member.removed = true;
        self.keep(node, member).await?;
        Ok(true)
    }
}

impl crate::link::Fleet for Fleet {
    fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.authority.sign(message)
    }

    fn is_member(&self, node: &NodeName) -> bool {
        self.member(node).is_some()
    }

    fn was_removed(&self, node: &NodeName) -> bool {
        self.record(node).is_some_and(|member| member.removed)
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
        // Without the key a certificate of the name is not enough: an older one may be valid still.
        let right = member.key_sha256 == key_sha256(attempt.certificate_key)
            && self.authority.is_broker_password(&node, member.serial, password);
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

/// Makes a directory that only its owner sees into; closes one that is there already and is open to others.
pub(crate) fn private_dir(path: &Path) -> anyhow::Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("cannot make {}", path.display()))?;
    let metadata = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mode = metadata.permissions().mode();
    if mode & 0o077 == 0 {
        return Ok(());
    }
    if mode & 0o1000 != 0 {
        // As /tmp: it is everybody's, and must stay so.
        bail!(
            "{} is shared by all users; give a directory of its own",
            path.display()
        );
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
        .with_context(|| format!("cannot close {} to others", path.display()))
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

#[cfg(test)]
mod tests {
    use crate::store::SqliteStore;

    use super::*;

    async fn open(dir: &Path) -> Fleet {
        let authority = authority(&dir.join("fleet.json"), "test", 1_700_000_000, 20).unwrap();
        let store = SqliteStore::open(&dir.join("skiff.db")).await.unwrap();
        Fleet::open(authority, Arc::new(store)).await.unwrap()
    }

    /// The password that the node is given when it joins with this key.
    async fn join(fleet: &Fleet, node: &NodeName, key: &[u8]) -> String {
        let member = fleet.joining(node, &key_sha256(key));
        let password = fleet.authority.broker_password(node, member.serial);
        fleet.admit(node, member).await.unwrap();
        password
    }

    #[tokio::test]
    async fn what_a_key_was_given_is_worth_nothing_once_another_has_joined() {
        let dir = tempfile::tempdir().unwrap();
        let node = NodeName::parse("rover-7").unwrap();
        let enters = |fleet: &Fleet, key: &[u8], password: &str| {
            let attempt = Attempt {
                certificate_name: node.as_str(),
                certificate_key: key,
                client_id: node.as_str(),
                username: Some(node.as_str()),
                password: Some(password.as_bytes()),
            };
            fleet.verify(&attempt) == Some(Role::Node(node.clone())) && fleet.holds(&node, &key_sha256(key))
        };
        let fleet = open(dir.path()).await;
        let first = join(&fleet, &node, b"first").await;
        assert!(enters(&fleet, b"first", &first));
        assert_eq!(
            join(&fleet, &node, b"first").await,
            first,
            "an answer can get lost"
        );
        assert!(fleet.remove(&node).await.unwrap());
        assert!(!fleet.remove(&node).await.unwrap(), "it is out already");
        assert!(!enters(&fleet, b"first", &first));
        drop(fleet);

        let fleet = open(dir.path()).await;
        assert!(fleet.member(&node).is_none(), "a removed node is no member");
        let second = join(&fleet, &node, b"second").await;
        assert!(enters(&fleet, b"second", &second));
        for (key, password) in [
            (b"first".as_slice(), &first),
            (b"first", &second),
            (b"second", &first),
        ] {
            assert!(!enters(&fleet, key, password), "{key:?}");
        }
        // The same key again after a removal is a new member too.
        fleet.remove(&node).await.unwrap();
        let third = join(&fleet, &node, b"second").await;
        assert!(enters(&fleet, b"second", &third) && third != second);
    }

    #[test]
    fn directories_are_closed_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let check = |name: &str, before: Option<u32>, after: Option<u32>| {
            let path = dir.path().join(name);
            if let Some(mode) = before {
                fs::create_dir(&path).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            }
            let made = private_dir(&path).ok();
            let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
            assert_eq!(made.map(|()| mode), after, "{name}");
        };
        check("new/below", None, Some(0o700));
        check("open", Some(0o755), Some(0o700));
        check("group", Some(0o750), Some(0o700));
        check("closed", Some(0o500), Some(0o500));
        check("everybodys", Some(0o1777), None);
    }
}
