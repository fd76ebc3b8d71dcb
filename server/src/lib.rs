//! The Skiff server: Kubernetes API and store.

pub mod api;
pub mod store;
