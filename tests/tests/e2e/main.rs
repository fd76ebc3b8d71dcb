//! Everything together on real parts: server, agent, broker, containers, registry, kubectl.
//!
//! Always holds: a test that ends leaves nothing on the machine, and checks that. Each test is one fleet, because
//! starting one costs more than asking it; the steps within are named by their functions.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "the helpers of tests are tests too"
)]

mod budgets;
mod commands;
mod confinement;
mod crashes;
mod degraded;
mod fields;
mod harness;
mod images;
mod lifecycle;
mod outages;
mod privileges;
mod pulls;
mod refusals;
mod renewal;
mod room;
mod startup;
mod statics;
mod survival;
mod users;
mod volumes;
mod wire;
mod workloads;
