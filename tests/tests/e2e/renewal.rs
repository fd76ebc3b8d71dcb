//! A node's certificate is renewed before it ends, and nobody notices.
//!
//! Always holds: certificates live for half a minute here, so that two of them end within the test.

use serde_json::Value;

use crate::harness::pods::IDLE;
use crate::harness::process::read;
use crate::harness::{Cluster, Said, Setup, pod, programs, shell, wait};

/// How long a certificate is valid, as `skiff server` is told.
const LIFE: &str = "30s";

fn joined(cluster: &Cluster) -> Value {
    serde_json::from_str(&read(&cluster.node.state.join("identity/joined.json"))).unwrap()
}

#[test]
fn a_certificate_is_renewed_and_the_link_made_anew() {
    let mut cluster = Cluster::start(&Setup {
        images: &["busybox"],
        server: &["--node-cert-life", LIFE],
        ..Setup::default()
    });
    cluster.run(&pod("idle", &shell(IDLE), Value::Null));
    let (first, inits) = (joined(&cluster), cluster.node.inits());
    let renewed = |count: usize| {
        wait("the certificate to be renewed", 60, || {
            let log = cluster.node.log();
            let seen = log.matches("the node's certificate is renewed").count();
            if seen >= count { Ok(()) } else { Err(log) }
        });
    };
    // The second is got with the first, long after the one that the node joined with has ended.
    renewed(2);
    cluster.is_ready();
    let second = joined(&cluster);
    assert_ne!(first["certificate"], second["certificate"]);
    assert!(second["notAfter"].as_u64() > first["notAfter"].as_u64());
    for name in [
        "node",
        "caCertificate",
        "signingKey",
        "brokerUrl",
        "brokerPassword",
        "serverUrls",
    ] {
        assert_eq!(first[name], second[name], "{name}");
    }
    assert_eq!(cluster.node.inits(), inits, "other processes than before");

    // The server's certificate is checked against what the node knows of the time, and not against the system's clock:
    // a board whose clock is behind must get through, so one that knows more must not.
    let state = cluster.node.state.display().to_string();
    let in_2100 = ["renew", &state, "4102444800"];
    Said::of(&programs::agent(), &in_2100, &[], "")
        .fails(1, &["no server renewed the certificate", "expired"]);

    // What comes after that is let in by the new certificate alone.
    cluster.node.stop();
    cluster.node.start();
    cluster.is_ready();
    cluster.run(&pod("second", &shell(IDLE), Value::Null));
    cluster
        .kubectl(&["delete", "pods", "--all", "--grace-period=1"])
        .ok();
    cluster.is_empty();
}
