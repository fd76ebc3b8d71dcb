//! `user[:group]` of an image or a Pod, as numbers.
//!
//! The rules are Docker's, which containerd and Kubernetes kept: a number is taken as it is, a name must be in the
//! image's own files, and the groups that list the user apply only where no group was asked for.

use std::path::PathBuf;

use crate::error::UserError;
use crate::limits::{MAX_GROUPS, MAX_PASSWD_BYTES};
use crate::merged;

/// Whom a container's process runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The user ID.
    pub uid: u32,
    /// The primary group ID.
    pub gid: u32,
    /// Supplementary groups from `/etc/group`, sorted, without `gid`, at most [`MAX_GROUPS`].
    pub additional_gids: Vec<u32>,
    /// The home directory from `/etc/passwd`, or `/`.
    pub home: String,
}

struct Passwd {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

pub(crate) fn resolve(layers: &[PathBuf], spec: &str) -> Result<User, UserError> {
    let (user, group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (spec, None),
    };
    if group.is_some_and(|group| group.is_empty() || group.contains(':')) || spec.contains('\n') {
        return Err(UserError::Malformed(spec.to_owned()));
    }
    let user = if user.is_empty() { "0" } else { user };
    let number = parse_id(user).map_err(|()| UserError::Malformed(spec.to_owned()))?;
    let users = parse_passwd(&read(layers, "/etc/passwd")?);
    // A name that happens to be digits is still a name, so the name is compared first.
    let by_name = users.iter().find(|entry| entry.name == user);
    let entry = by_name.or_else(|| users.iter().find(|entry| Some(entry.uid) == number));
    let uid = match (entry, number) {
        (Some(entry), _) => entry.uid,
        (None, Some(uid)) => uid,
        (None, None) => return Err(UserError::NoUser(user.to_owned())),
    };
    let home = entry
        .map(|entry| entry.home.as_str())
        .filter(|home| home.starts_with('/'))
        .unwrap_or("/");
    let groups = parse_group(&read(layers, "/etc/group")?);
    let (gid, additional_gids) = match group {
        Some(group) => (named_group(&groups, group, spec)?, Vec::new()),
        None => {
            let gid = entry.map_or(0, |entry| entry.gid);
            let name = entry.map(|entry| entry.name.as_str());
            (gid, listing(&groups, name, gid))
        }
    };
    Ok(User {
        uid,
        gid,
        additional_gids,
        home: home.to_owned(),
    })
}

fn named_group(groups: &[Group], group: &str, spec: &str) -> Result<u32, UserError> {
    let number = parse_id(group).map_err(|()| UserError::Malformed(spec.to_owned()))?;
    let named = groups
        .iter()
        .find(|entry| entry.name == group)
        .map(|entry| entry.gid);
    named
        .or(number)
        .ok_or_else(|| UserError::NoGroup(group.to_owned()))
}

fn listing(groups: &[Group], user: Option<&str>, gid: u32) -> Vec<u32> {
    let Some(user) = user else { return Vec::new() };
    let lists = |entry: &&Group| entry.gid != gid && entry.members.iter().any(|member| member == user);
    let mut gids: Vec<u32> = groups
        .iter()
        .filter(lists)
        .map(|entry| entry.gid)
        .take(MAX_GROUPS)
        .collect();
    gids.sort_unstable();
    gids.dedup();
    gids
}

/// A number, or `None` for a name. `u32::MAX` means "leave as it is" to the kernel, so it is neither.
fn parse_id(text: &str) -> Result<Option<u32>, ()> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<u32>() {
        Ok(id) if id != u32::MAX => Ok(Some(id)),
        _ => Err(()),
    }
}

fn read(layers: &[PathBuf], path: &'static str) -> Result<String, UserError> {
    let bytes =
        merged::read(layers, path, MAX_PASSWD_BYTES).map_err(|source| UserError::Io { path, source })?;
    Ok(String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned())
}

/// `name:password:uid:gid:comment:home:shell`; lines that are not so are skipped, as the C library does.
fn parse_passwd(text: &str) -> Vec<Passwd> {
    let parse = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?.to_owned();
        let uid = parse_id(fields.nth(1)?).ok()??;
        let gid = parse_id(fields.next()?).ok()??;
        let home = fields.nth(1).unwrap_or_default().to_owned();
        Some(Passwd { name, uid, gid, home })
    };
    text.lines().filter_map(parse).collect()
}

/// `name:password:gid:member,member`
fn parse_group(text: &str) -> Vec<Group> {
    let parse = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?.to_owned();
        let gid = parse_id(fields.nth(1)?).ok()??;
        let members = fields.next().unwrap_or_default();
        let members = members
            .split(',')
            .map(str::trim)
            .filter(|member| !member.is_empty());
        Some(Group {
            name,
            gid,
            members: members.map(str::to_owned).collect(),
        })
    };
    text.lines().filter_map(parse).collect()
}
