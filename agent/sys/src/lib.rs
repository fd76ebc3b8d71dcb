//! The one place that talks to the kernel: namespaces, cgroups, mounts, devices, system call filters and containers.
//!
//! Always holds: this crate imports no sibling; it is the only one with `unsafe`; it never reads configuration and never
//! decides policy. Whatever may leave descriptors, zombies or changed process state behind (all of libcontainer) runs in
//! a forked child of a single-threaded process: see [`process::fork_child`].

mod apparmor;
pub mod cap;
pub mod cgroup;
pub mod config;
pub mod container;
pub mod devices;
pub mod doctor;
mod error;
pub mod fs;
pub mod mount;
pub mod netlink;
pub mod nft;
pub mod process;
pub mod sandbox;
pub mod seccomp;
pub mod terminal;
mod tree;
mod users;
pub mod volume;
pub mod watchdog;

pub use error::{KernelError, Result};

pub use config::{
    ContainerConfig, Device, ExecConfig, Hook, IDS, IdRange, IoLimit, IpNet, Limits, Mount, MountKind,
    Namespaces, NetworkConfig, Overlay, PodCgroup, Propagation, RecursiveReadOnly, Rlimit, RunError,
    SandboxConfig, Seccomp, Started, User, default_capabilities,
};
