//! Issues certificates: who is named, for which use, for how long.
//!
//! Always holds: ECDSA P-256; a random serial number of 127 bits; never longer than the CA; client and server uses
//! are not mixed, except for the one certificate that the API server shows.

use std::time::Duration;

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
    PublicKeyData, SerialNumber, SignatureAlgorithm,
};
use ring::rand::{SecureRandom, SystemRandom};
use skiff_protocol::enrol::PUBLIC_KEY;
use skiff_protocol::topic::NodeName;

use crate::authority::FleetAuthority;
use crate::error::PkiError;
use crate::subject::subject;

/// How long before its issue a certificate begins, in seconds: ten years. A node without a clock checks against its
/// agent's build time; agents older than this cannot join without one.
pub const BACKDATE: u64 = 10 * YEAR;
/// The group of administrators (Kubernetes' `system:masters`).
pub const MASTERS: &str = "system:masters";
/// The group of nodes (Kubernetes' `system:nodes`).
pub const NODES: &str = "system:nodes";
/// The common name of the server's own MQTT client, its client id, and its user name at the broker. A node cannot have
/// it: it has a dot.
pub const SERVER_CN: &str = "skiff.server";

const YEAR: u64 = 365 * 24 * 3600;

/// How long certificates are valid, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// The API server, the broker, and the server's MQTT client.
    pub server: u64,
    /// Administrators.
    pub admin: u64,
    /// Nodes.
    pub node: u64,
}

impl Default for Validity {
    fn default() -> Self {
        Self {
            server: 2 * YEAR,
            admin: YEAR,
            node: YEAR,
        }
    }
}

/// A certificate with its key.
#[derive(Clone, PartialEq, Eq)]
pub struct Issued {
    /// The certificate and then the CA's, PEM. The CA's is there for joining nodes, which know only its digest.
    pub chain: String,
    /// The key, PKCS#8 PEM.
    pub key: String,
    /// Last second of validity, since 1970.
    pub not_after: u64,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued")
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// A node's public key: a point on P-256, uncompressed.
pub(crate) struct NodeKey<'a>(pub(crate) &'a [u8; PUBLIC_KEY]);

impl PublicKeyData for NodeKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl FleetAuthority {
    /// A certificate for a TLS server: the API server or the broker. `names` are DNS names and IP addresses.
    ///
    /// # Errors
    /// When `names` is empty or one is neither, or there is no randomness.
    pub fn issue_server(&self, names: &[String], now: u64, seconds: u64) -> Result<Issued, PkiError> {
        let Some(first) = names.first() else {
            return Err(PkiError::Issue {
                subject: "server".to_owned(),
                why: "no names".to_owned(),
            });
        };
        self.with_key(
            first,
            None,
            names,
            &[ExtendedKeyUsagePurpose::ServerAuth],
            now,
            seconds,
        )
    }

    /// A client certificate for an administrator, in the group [`MASTERS`].
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn issue_admin(&self, user: &str, now: u64, seconds: u64) -> Result<Issued, PkiError> {
        self.with_key(
            user,
            Some(MASTERS),
            &[],
            &[ExtendedKeyUsagePurpose::ClientAuth],
            now,
            seconds,
        )
    }

    /// The server's own MQTT client certificate, named [`SERVER_CN`].
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn issue_mqtt_client(&self, now: u64, seconds: u64) -> Result<Issued, PkiError> {
        self.with_key(
            SERVER_CN,
            None,
            &[],
            &[ExtendedKeyUsagePurpose::ClientAuth],
            now,
            seconds,
        )
    }

    /// A node's client certificate over its own public key: PEM without the CA's, and the last second of validity.
    /// The caller has checked that the node holds the key.
    pub(crate) fn issue_node(
        &self,
        node: &NodeName,
        key: &[u8; PUBLIC_KEY],
        now: u64,
        seconds: u64,
    ) -> Result<(String, u64), PkiError> {
        let usage = [ExtendedKeyUsagePurpose::ClientAuth];
        self.sign_certificate(
            node.as_str(),
            Some(NODES),
            &[],
            &usage,
            &NodeKey(key),
            now,
            seconds,
        )
    }

    fn with_key(
        &self,
        common_name: &str,
        group: Option<&str>,
        names: &[String],
        usage: &[ExtendedKeyUsagePurpose],
        now: u64,
        seconds: u64,
    ) -> Result<Issued, PkiError> {
        let key = KeyPair::generate().map_err(|e| PkiError::Issue {
            subject: common_name.to_owned(),
            why: e.to_string(),
        })?;
        let (pem, not_after) = self.sign_certificate(common_name, group, names, usage, &key, now, seconds)?;
        Ok(Issued {
            chain: pem + self.ca_certificate(),
            key: key.serialize_pem(),
            not_after,
        })
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the fields of one certificate, each named at the two callers"
    )]
    fn sign_certificate(
        &self,
        common_name: &str,
        group: Option<&str>,
        names: &[String],
        usage: &[ExtendedKeyUsagePurpose],
        key: &impl PublicKeyData,
        now: u64,
        seconds: u64,
    ) -> Result<(String, u64), PkiError> {
        let failed = |e: rcgen::Error| PkiError::Issue {
            subject: common_name.to_owned(),
            why: e.to_string(),
        };
        let mut params = CertificateParams::new(names.to_vec()).map_err(failed)?;
        let mut name = DistinguishedName::new();
        if let Some(group) = group {
            name.push(DnType::OrganizationName, group);
        }
        name.push(DnType::CommonName, common_name);
        params.distinguished_name = name;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usage.to_vec();
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial(&self.random)?);
        // A certificate that outlives its CA only looks valid.
        let ca_end = u64::try_from(subject(&self.ca_der)?.not_after).unwrap_or(0);
        let seconds = seconds.min(ca_end.saturating_sub(now));
        set_dates(&mut params, common_name, now, seconds)?;
        let certificate = params.signed_by(key, &self.issuer).map_err(failed)?;
        Ok((certificate.pem(), now + seconds))
    }
}

/// Sets when a certificate begins and ends.
pub(crate) fn set_dates(
    params: &mut CertificateParams,
    subject: &str,
    now: u64,
    seconds: u64,
) -> Result<(), PkiError> {
    let bad = || PkiError::Issue {
        subject: subject.to_owned(),
        why: format!("no date is {seconds} s after {now}"),
    };
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    // The calendar of X.509 ends with the year 9999.
    let end = now
        .checked_add(seconds)
        .filter(|end| *end < 8000 * YEAR)
        .ok_or_else(bad)?;
    let begin = now.saturating_sub(BACKDATE);
    params.not_before = epoch + Duration::from_secs(begin);
    params.not_after = epoch + Duration::from_secs(end);
    Ok(())
}

pub(crate) fn serial(random: &SystemRandom) -> Result<SerialNumber, PkiError> {
    let mut bytes = [0u8; 16];
    random.fill(&mut bytes).map_err(|_| PkiError::Random)?;
    // Positive in DER, and never zero.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}
