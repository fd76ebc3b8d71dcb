//! Every bound of the image store and of a pull, each with why it is that number.
//!
//! What a node's configuration may change is in [`Limits`]; the rest are facts about formats.

use serde::{Deserialize, Serialize};

/// Largest manifest, index or config blob, in bytes: the distribution specification asks registries for 4 MiB.
pub const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// Most layers of one image. Docker's overlay driver stops at 128, so images are built for that.
pub const MAX_LAYERS: usize = 128;
/// Most manifests that are looked at in an index: the largest public ones list some dozens of platforms.
pub const MAX_INDEX_ENTRIES: usize = 1024;
/// Longest path in a layer, in bytes: Linux' `PATH_MAX`.
pub const MAX_PATH_BYTES: usize = 4096;
/// Longest path component, in bytes: Linux' `NAME_MAX`.
pub const MAX_NAME_BYTES: usize = 255;
/// Deepest nesting of directories in a layer. Removing a tree holds a descriptor for each level, and a process may
/// have as few as 1024.
pub const MAX_DEPTH: usize = 256;
/// Largest PAX or GNU long-name record: a path, a link and file capabilities with room to spare.
pub const MAX_EXTENSION_BYTES: u64 = 1 << 20;
/// Most bytes of directory names and whiteouts that an unpack remembers to the end of a layer.
pub const MAX_REMEMBERED_BYTES: usize = 16 << 20;
/// Most symbolic links that are followed while one path is resolved: Linux' own 40.
pub const MAX_SYMLINKS: usize = 40;
/// Largest window of a zstd frame. `zstd -19` uses 8 MiB; beyond 64 MiB a node's memory is at stake.
pub const MAX_ZSTD_WINDOW: u64 = 64 << 20;
/// Largest answer to a token request, in bytes: tokens of large registries are some KiB.
pub const MAX_TOKEN_BYTES: u64 = 256 << 10;
/// As much of a registry's error answer is read as a person would.
pub const MAX_ERROR_BODY_BYTES: u64 = 16 << 10;
/// Longest error text that a pull reports, in bytes; it travels over MQTT in a status.
pub const MAX_MESSAGE_BYTES: usize = 4096;
/// Redirects that one request follows. Registries need one, to their blob storage.
pub const MAX_REDIRECTS: usize = 5;
/// Broken connections in a row, without a byte between them, before a layer is given up.
pub const MAX_STALLED_RETRIES: u32 = 5;
/// Broken connections of one layer, beside one for each [`BYTES_PER_RETRY`] that have come: a link that is this bad gets the
/// next source.
pub const MAX_RETRIES: u64 = 100;
/// Bytes with which a connection has been worth it, in a row of those that break: two seconds of a slow mobile link.
pub const BYTES_PER_RETRY: u64 = 64 << 10;
/// Largest pull request on standard input, in bytes: certificates make up most of it.
pub const MAX_REQUEST_BYTES: u64 = 1 << 20;
/// Most sources in one pull request.
pub const MAX_SOURCES: usize = 16;
/// Largest `/etc/passwd` or `/etc/group` that is read from an image, in bytes.
pub const MAX_PASSWD_BYTES: u64 = 4 << 20;
/// Most supplementary groups of one user: Linux' `NGROUPS_MAX` is 65536, no image needs a hundredth.
pub const MAX_GROUPS: usize = 512;
/// Largest metadata file of the store: a manifest's worth of config and as much again.
pub const MAX_METADATA_BYTES: u64 = 2 * MAX_MANIFEST_BYTES;

/// What an operator may bound per pull.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Limits {
    /// Most bytes that one image's new layers may unpack to, tar headers included.
    pub max_unpacked_bytes: u64,
    /// Most entries (files, directories, links, whiteouts) in one layer.
    pub max_entries: u64,
    /// Seconds to wait for a connection, TLS included.
    pub connect_timeout_seconds: u64,
    /// Seconds without a byte after which a connection counts as broken.
    pub stall_timeout_seconds: u64,
    /// Bytes of the disk that stay free: below that the node would be short of it, and end Pods.
    pub keep_free_bytes: u64,
}

impl Default for Limits {
    /// 16 GiB and a million entries: above the largest CUDA images, below what fills a board's flash unseen.
    fn default() -> Self {
        Self {
            max_unpacked_bytes: 16 << 30,
            max_entries: 1_000_000,
            connect_timeout_seconds: 15,
            stall_timeout_seconds: 30,
            keep_free_bytes: 0,
        }
    }
}
