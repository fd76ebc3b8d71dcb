//! What can go wrong with certificates and keys.

/// Why a certificate or key cannot be made or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PkiError {
    /// The operating system gave no randomness.
    #[error("no randomness from the operating system")]
    Random,
    /// A stored key or certificate is damaged, or does not belong to the others.
    #[error("{what}: {why}")]
    Stored {
        /// Which one.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A certificate cannot be issued.
    #[error("certificate for {subject}: {why}")]
    Issue {
        /// Its common name.
        subject: String,
        /// What is wrong.
        why: String,
    },
    /// A certificate cannot be read.
    #[error("certificate: {0}")]
    Certificate(String),
}

pub(crate) fn stored<W: std::fmt::Display>(what: &'static str) -> impl FnOnce(W) -> PkiError {
    move |why| PkiError::Stored {
        what,
        why: why.to_string(),
    }
}
