//! The fleet's certificates and keys: one authority signs the server, the broker, administrators and nodes; one
//! Ed25519 key signs desired state; one symmetric key makes join tokens and broker passwords.
//!
//! Always holds: no I/O and no clock (`now` is an argument, in seconds since 1970; only the operating system's
//! randomness is read). Storage is the caller's: [`Stored`] goes to disk and back. A [`FleetAuthority`] is usable by
//! construction.
//!
//! A certificate begins [`BACKDATE`] before it is issued. A node may have no clock: it checks certificates against
//! the larger of its clock, the last time it knew, and its agent's build time, so what it is shown must have begun by
//! then. An end in the past is still refused.

mod authority;
mod credentials;
mod error;
mod issue;
mod join;
mod kubeconfig;
mod subject;

pub use authority::{FleetAuthority, Stored};
pub use error::PkiError;
pub use issue::{BACKDATE, Issued, MASTERS, NODES, SERVER_CN, Validity};
pub use join::{Grant, JoinError, Renewal, TokenRecord};
pub use kubeconfig::{User, kubeconfig};
pub use subject::{Subject, subject};
