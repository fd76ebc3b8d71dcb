//! What every test stands on: a server, a broker and a node of their own, and kubectl to drive them.
//!
//! Always holds: a test touches only its own directories, cgroup, bridge and loopback ports, and ends only processes
//! that it started, by their ids.

pub(crate) mod cluster;
pub(crate) mod kernel;
pub(crate) mod middle;
pub(crate) mod node;
pub(crate) mod payload;
pub(crate) mod pods;
pub(crate) mod process;
pub(crate) mod programs;
pub(crate) mod relay;
pub(crate) mod wait;

pub(crate) use cluster::{Cluster, Setup};
pub(crate) use kernel::Init;
pub(crate) use pods::{pod, shell};
pub(crate) use process::{Process, Said};
pub(crate) use wait::{until, wait};
