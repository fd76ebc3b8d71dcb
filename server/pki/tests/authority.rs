//! The authority's certificates in real TLS handshakes, and joining and renewing in tables.
//!
//! Always holds: every refusal stands beside the same thing accepted, so that a test cannot pass by refusing all.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::sync::Arc;

use ring::signature::{ED25519, UnparsedPublicKey};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use skiff_pki::{
    BACKDATE, FleetAuthority, Grant, Issued, JoinError, MASTERS, NODES, SERVER_CN, Stored, TokenRecord, User,
    Validity, kubeconfig, subject,
};
use skiff_protocol::enrol::{JoinRequest, JoinResponse, JoinToken, RenewRequest, to_base64};
use skiff_protocol::topic::NodeName;
use skiff_transport::NodeKey;
use skiff_transport::tls::{Clock, Identity, client_config, pinned_client_config};
use tokio_rustls::{TlsAcceptor, TlsConnector};

const NOW: u64 = 1_800_000_000;
const DAY: u64 = 24 * 3600;

fn authority() -> FleetAuthority {
    FleetAuthority::create("test", NOW, 20).unwrap()
}

fn node(name: &str) -> NodeName {
    NodeName::parse(name).unwrap()
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

fn urls() -> Vec<String> {
    vec!["https://fleet.example:6443".to_owned()]
}

fn grant(urls: &[String]) -> Grant<'_> {
    Grant {
        broker_url: "mqtts://fleet.example:8883",
        server_urls: urls,
        password_serial: 3,
        seconds: 30 * DAY,
    }
}

fn request(token: &JoinToken, key: &NodeKey) -> JoinRequest {
    let payload = JoinRequest::payload(&token.node, &token.secret, &key.public_key());
    JoinRequest::new(token, &key.public_key(), &key.sign(&payload).unwrap())
}

fn joined(authority: &FleetAuthority, name: &str, key: &NodeKey) -> JoinResponse {
    let (token, mut record) = authority.join_token(&node(name), &urls(), NOW + DAY).unwrap();
    authority
        .join(&mut record, &request(&token, key), grant(&urls()), NOW)
        .unwrap()
}

#[test]
fn an_authority_survives_its_text_and_damage_is_named() {
    let first = authority();
    let text = serde_json::to_string(first.stored()).unwrap();
    let again = FleetAuthority::open(serde_json::from_str(&text).unwrap()).unwrap();
    assert_eq!(first.ca_sha256(), again.ca_sha256());
    let key = UnparsedPublicKey::new(&ED25519, first.signing_public_key());
    assert!(key.verify(b"spec", &again.sign(b"spec")).is_ok());
    assert!(key.verify(b"spek", &again.sign(b"spec")).is_err());
    assert!(key.verify(b"spec", &authority().sign(b"spec")).is_err());

    let check = |what: &str, change: fn(&mut Stored)| {
        let mut stored = first.stored().clone();
        change(&mut stored);
        let error = FleetAuthority::open(stored).unwrap_err().to_string();
        assert!(error.starts_with(what), "{what}: {error}");
    };
    check("fleet authority", |s| s.version = 2);
    check("CA certificate", |s| s.ca_certificate.truncate(100));
    check("CA key", |s| s.ca_key.truncate(60));
    check("CA key: does not belong", |s| {
        s.ca_key = authority().stored().ca_key.clone();
    });
    check("signing key", |s| s.signing_key.truncate(8));
    check("token key", |s| s.token_key.truncate(8));
}

#[test]
fn certificates_name_whom_they_should_for_as_long_as_they_should() {
    let authority = authority();
    let check = |pem: &str, common_name: &str, groups: &[&str], seconds: u64| {
        let found = subject(&der(pem)).unwrap();
        assert_eq!(found.common_name, common_name);
        assert_eq!(found.organizations, groups);
        assert_eq!(found.not_before as u64, NOW - BACKDATE);
        assert_eq!(found.not_after as u64, NOW + seconds);
    };
    let validity = Validity::default();
    check(authority.ca_certificate(), "test CA", &[], 20 * 365 * DAY);
    let server = authority
        .issue_server(&["fleet.example".into(), "10.0.0.1".into()], NOW, validity.server)
        .unwrap();
    check(&server.chain, "fleet.example", &[], 2 * 365 * DAY);
    check(
        &authority.issue_admin("kim", NOW, validity.admin).unwrap().chain,
        "kim",
        &[MASTERS],
        365 * DAY,
    );
    check(
        &authority.issue_mqtt_client(NOW, DAY).unwrap().chain,
        SERVER_CN,
        &[],
        DAY,
    );
    check(
        &joined(&authority, "pump-1", &NodeKey::generate().unwrap()).certificate,
        "pump-1",
        &[NODES],
        30 * DAY,
    );
    // Never longer than the CA.
    check(
        &authority.issue_admin("kim", NOW, 100 * 365 * DAY).unwrap().chain,
        "kim",
        &[MASTERS],
        20 * 365 * DAY,
    );
    assert!(authority.issue_server(&[], NOW, DAY).is_err());
    assert!(authority.issue_server(&["ünicode".into()], NOW, DAY).is_err());
    assert!(FleetAuthority::create("test", u64::MAX - 5, 20).is_err());
    assert!(subject(b"not a certificate").is_err());
}

#[test]
fn a_node_joins_once_and_every_deviation_is_refused() {
    let authority = authority();
    let key = NodeKey::generate().unwrap();
    let (token, fresh) = authority.join_token(&node("pump-1"), &urls(), NOW + DAY).unwrap();
    let token = JoinToken::parse(&token.to_text().unwrap()).unwrap();
    assert!(
        !serde_json::to_string(&fresh)
            .unwrap()
            .contains(&to_base64(&token.secret))
    );

    let check =
        |name: &str, now: u64, change: &dyn Fn(&mut JoinRequest), expected: &dyn Fn(&JoinError) -> bool| {
            let mut record = fresh.clone();
            let mut request = request(&token, &key);
            change(&mut request);
            let error = authority
                .join(&mut record, &request, grant(&urls()), now)
                .unwrap_err();
            assert!(expected(&error), "{name}: {error:?}");
            assert_eq!(record, fresh, "{name}: the record changed");
            assert!(!error.public().is_empty());
        };
    let other = NodeKey::generate().unwrap();
    check("version", NOW, &|r| r.version = 2, &|e| {
        matches!(e, JoinError::Request(_))
    });
    check("name", NOW, &|r| r.node = "pump-2".into(), &|e| {
        matches!(e, JoinError::Name { .. })
    });
    check("secret", NOW, &|r| r.secret = to_base64(&[1; 24]), &|e| {
        *e == JoinError::Secret
    });
    check("short secret", NOW, &|r| r.secret.truncate(4), &|e| {
        matches!(e, JoinError::Request(_))
    });
    check("expired", NOW + DAY + 1, &|_| {}, &|e| {
        *e == JoinError::Expired(NOW + DAY)
    });
    check(
        "another's key",
        NOW,
        &|r| r.public_key = to_base64(&other.public_key()),
        &|e| *e == JoinError::Possession,
    );
    check("no point", NOW, &|r| r.public_key = to_base64(&[4; 65]), &|e| {
        *e == JoinError::Possession
    });
    check("no signature", NOW, &|r| r.signature.clear(), &|e| {
        *e == JoinError::Possession
    });
    let elsewhere = FleetAuthority::create("test", NOW, 20).unwrap();
    let foreign = elsewhere.join(&mut fresh.clone(), &request(&token, &key), grant(&urls()), NOW);
    assert_eq!(foreign.unwrap_err(), JoinError::Secret);

    let mut record = fresh.clone();
    let response = authority
        .join(&mut record, &request(&token, &key), grant(&urls()), NOW)
        .unwrap();
    assert_eq!((response.node.as_str(), response.server_time), ("pump-1", NOW));
    assert_eq!(response.signing_key, to_base64(&authority.signing_public_key()));
    assert!(authority.is_broker_password(&node("pump-1"), 3, response.broker_password.as_bytes()));
    let mut record: TokenRecord = serde_json::from_str(&serde_json::to_string(&record).unwrap()).unwrap();
    let again = authority.join(&mut record, &request(&token, &key), grant(&urls()), NOW + 60);
    assert!(
        again.is_ok(),
        "the same key may repeat: the answer may have been lost"
    );
    let thief = authority.join(&mut record, &request(&token, &other), grant(&urls()), NOW);
    assert_eq!(thief.unwrap_err(), JoinError::Used);
}

#[test]
fn a_certificate_is_renewed_over_the_same_key_only() {
    let authority = authority();
    let key = NodeKey::generate().unwrap();
    let old = joined(&authority, "pump-1", &key).certificate;
    let nonce = [5; 32];
    let renewal = |name: &str, certificate: &str, key: &NodeKey| {
        let digest = skiff_protocol::sha256(&der(certificate));
        let signature = key
            .sign(&RenewRequest::payload(&node(name), &nonce, &digest))
            .unwrap();
        RenewRequest {
            version: 1,
            node: name.to_owned(),
            certificate: certificate.to_owned(),
            nonce: to_base64(&nonce),
            signature: to_base64(&signature),
        }
    };
    let end = NOW + 30 * DAY;
    let renew = |request: &RenewRequest, now| authority.renew(request, &nonce, grant(&urls()), now, 7 * DAY);
    for now in [NOW + DAY, end, end + 7 * DAY] {
        let renewed = renew(&renewal("pump-1", &old, &key), now).unwrap();
        assert_eq!(renewed.node, node("pump-1"));
        assert_eq!(renewed.response.not_after, now + 30 * DAY);
        assert_ne!(renewed.response.certificate, old);
        // The new one can be renewed in turn: it is over the same key.
        assert!(renew(&renewal("pump-1", &renewed.response.certificate, &key), now + DAY).is_ok());
    }
    let other = NodeKey::generate().unwrap();
    let foreign = FleetAuthority::create("test", NOW, 20).unwrap();
    let admin = authority.issue_admin("pump-1", NOW, 30 * DAY).unwrap().chain;
    let check = |name: &str, request: RenewRequest, now, expected: fn(&JoinError) -> bool| {
        let error = renew(&request, now).unwrap_err();
        assert!(expected(&error), "{name}: {error:?}");
    };
    check(
        "too late",
        renewal("pump-1", &old, &key),
        end + 7 * DAY + 1,
        |e| matches!(e, JoinError::Certificate(_)),
    );
    check("another key", renewal("pump-1", &old, &other), NOW, |e| {
        *e == JoinError::Possession
    });
    check("another name", renewal("pump-2", &old, &key), NOW, |e| {
        matches!(e, JoinError::Certificate(_))
    });
    let theirs = joined(&foreign, "pump-1", &key).certificate;
    check("another CA", renewal("pump-1", &theirs, &key), NOW, |e| {
        matches!(e, JoinError::Certificate(_))
    });
    check("an administrator's", renewal("pump-1", &admin, &key), NOW, |e| {
        matches!(e, JoinError::Certificate(_))
    });
    let mut replayed = renewal("pump-1", &old, &key);
    replayed.nonce = to_base64(&[6; 32]);
    check("another nonce", replayed, NOW, |e| *e == JoinError::Nonce);
}

#[test]
fn broker_passwords_are_for_one_node_and_one_serial() {
    let authority = authority();
    let password = authority.broker_password(&node("pump-1"), 1);
    assert_eq!(password.len(), 43);
    assert!(authority.is_broker_password(&node("pump-1"), 1, password.as_bytes()));
    assert!(!authority.is_broker_password(&node("pump-1"), 2, password.as_bytes()));
    assert!(!authority.is_broker_password(&node("pump-2"), 1, password.as_bytes()));
    assert!(!authority.is_server_password(password.as_bytes()));
    assert!(authority.is_server_password(authority.server_password().as_bytes()));
    for bad in [&b""[..], b"\xff\xfe", &[b'A'; 43], &[b'A'; 4096]] {
        assert!(!authority.is_broker_password(&node("pump-1"), 1, bad));
    }
}

fn server(issued: &Issued, client_ca: Option<&str>) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let mut roots = RootCertStore::empty();
            roots.add(der(pem)).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .unwrap();
            builder.with_client_cert_verifier(verifier)
        }
    };
    let chain = CertificateDer::pem_slice_iter(issued.chain.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .unwrap();
    let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
    builder.with_single_cert(chain, key).unwrap()
}

/// One handshake and one byte each way; the error of whichever side refused, or the client's common name.
async fn handshake(
    server: ServerConfig,
    client: Arc<ClientConfig>,
    name: &str,
) -> Result<Option<String>, String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (near, far) = tokio::io::duplex(64 * 1024);
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let serve = async {
        let mut stream = TlsAcceptor::from(Arc::new(server))
            .accept(far)
            .await
            .map_err(|e| e.to_string())?;
        let shown = stream
            .get_ref()
            .1
            .peer_certificates()
            .and_then(|chain| chain.first().cloned());
        stream.write_all(b"x").await.map_err(|e| e.to_string())?;
        stream.flush().await.map_err(|e| e.to_string())?;
        Ok::<_, String>(shown.map(|cert| subject(&cert).unwrap().common_name))
    };
    let connect = async {
        let mut stream = TlsConnector::from(client)
            .connect(name, near)
            .await
            .map_err(|e| e.to_string())?;
        stream.read_u8().await.map_err(|e| e.to_string())?;
        Ok::<_, String>(())
    };
    let (served, connected) = tokio::join!(serve, connect);
    connected.map_err(|e| format!("client: {e}"))?;
    served.map_err(|e| format!("server: {e}"))
}

#[tokio::test]
async fn handshakes_succeed_with_what_is_ours_and_fail_with_all_else() {
    let real_now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let ours = FleetAuthority::create("ours", real_now, 20).unwrap();
    let theirs = FleetAuthority::create("theirs", real_now, 20).unwrap();
    let names = ["fleet.example".to_owned(), "127.0.0.1".to_owned()];
    let issued = ours.issue_server(&names, real_now, DAY).unwrap();
    let ca = ours.ca_certificate();
    let at = |seconds: u64| Clock::new(move || seconds);
    let trusting = |roots: &str, seconds| client_config(roots, None, &at(seconds)).unwrap();
    let refused = |result: Result<Option<String>, String>, text: &str| {
        let error = result.unwrap_err();
        assert!(error.contains(text), "{error}");
    };

    for name in ["fleet.example", "127.0.0.1"] {
        assert_eq!(
            handshake(server(&issued, None), trusting(ca, real_now), name).await,
            Ok(None)
        );
    }
    // A node without a clock checks against its agent's build time, long before the certificate was issued.
    let built = trusting(ca, real_now - 9 * 365 * DAY);
    assert_eq!(
        handshake(server(&issued, None), built, "fleet.example").await,
        Ok(None)
    );
    refused(
        handshake(server(&issued, None), trusting(ca, 0), "fleet.example").await,
        "not valid yet",
    );
    refused(
        handshake(
            server(&issued, None),
            trusting(ca, real_now + 2 * DAY),
            "fleet.example",
        )
        .await,
        "expired",
    );
    refused(
        handshake(server(&issued, None), trusting(ca, real_now), "other.example").await,
        "not valid for name",
    );
    let stranger = trusting(theirs.ca_certificate(), real_now);
    refused(
        handshake(server(&issued, None), stranger, "fleet.example").await,
        "UnknownIssuer",
    );

    // Joining: only the digest of the CA is known.
    let pin = |digest, seconds| pinned_client_config(digest, &at(seconds)).unwrap();
    let pinned = pin(ours.ca_sha256(), real_now);
    assert_eq!(
        handshake(server(&issued, None), pinned.clone(), "fleet.example").await,
        Ok(None)
    );
    refused(
        handshake(server(&issued, None), pinned, "other.example").await,
        "not valid for name",
    );
    refused(
        handshake(
            server(&issued, None),
            pin(theirs.ca_sha256(), real_now),
            "fleet.example",
        )
        .await,
        "UnknownIssuer",
    );
    refused(
        handshake(
            server(&issued, None),
            pin(ours.ca_sha256(), real_now + 2 * DAY),
            "fleet.example",
        )
        .await,
        "expired",
    );
    // The pinned certificate alone is worth nothing: the leaf must be signed by it.
    let forged = theirs.issue_server(&names, real_now, DAY).unwrap();
    let forged = Issued {
        chain: format!("{}{ca}", forged.chain),
        ..forged
    };
    assert!(
        handshake(
            server(&forged, None),
            pin(ours.ca_sha256(), real_now),
            "fleet.example"
        )
        .await
        .is_err()
    );

    // The server's view of clients.
    let mutual = async |chain: &str, key: &str| {
        let identity = Identity {
            certificates_pem: chain,
            key_pem: key,
        };
        let client = client_config(ca, Some(identity), &at(real_now)).unwrap();
        handshake(server(&issued, Some(ca)), client, "fleet.example").await
    };
    let admin = ours.issue_admin("kim", real_now, DAY).unwrap();
    assert_eq!(mutual(&admin.chain, &admin.key).await, Ok(Some("kim".to_owned())));
    let foreign = theirs.issue_admin("kim", real_now, DAY).unwrap();
    refused(mutual(&foreign.chain, &foreign.key).await, "nknown");
    let expired = ours.issue_admin("kim", real_now - 2 * DAY, DAY).unwrap();
    refused(mutual(&expired.chain, &expired.key).await, "xpired");
    // A server's certificate is no client's.
    assert!(mutual(&issued.chain, &issued.key).await.is_err());
    let none = trusting(ca, real_now);
    assert!(
        handshake(server(&issued, Some(ca)), none, "fleet.example")
            .await
            .is_err()
    );
}

#[test]
fn a_kubeconfig_has_everything_in_it_and_nothing_breaks_out() {
    let text = kubeconfig(
        "fleet",
        "https://fleet.example:6443",
        "CA",
        User::Certificate { chain: "C", key: "K" },
    );
    let expected = r#"apiVersion: v1
kind: Config
clusters:
- name: "fleet"
  cluster:
    server: "https://fleet.example:6443"
    certificate-authority-data: Q0E=
users:
- name: "fleet"
  user:
    client-certificate-data: Qw==
    client-key-data: Sw==
contexts:
- name: "fleet"
  context:
    cluster: "fleet"
    user: "fleet"
    namespace: default
current-context: "fleet"
"#;
    assert_eq!(text, expected);
    let text = kubeconfig("a\"b\nc", "u", "CA", User::Token("t\\k"));
    assert!(
        text.contains(r#"name: "a\"b\u000ac""#) && text.contains(r#"    token: "t\\k""#),
        "{text}"
    );
}
