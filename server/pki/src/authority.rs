//! The fleet's authority: what it is made of, and how it goes to disk and back.
//!
//! Always holds: the CA's key belongs to its certificate, and every key has been loaded once, so that a damaged file
//! is an error at start and not at the first join.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData,
};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use ring::{digest, hmac};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

use crate::error::{PkiError, stored};
use crate::issue;

/// The authority as it lies on disk. All of it but the certificate is secret: mode 0600, and in no log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Stored {
    /// 1.
    pub version: u8,
    /// The CA's certificate, PEM.
    pub ca_certificate: String,
    /// The CA's key, PKCS#8 PEM.
    pub ca_key: String,
    /// The Ed25519 key that signs desired state, PKCS#8 DER, base64.
    pub signing_key: String,
    /// The key of join tokens and broker passwords, 32 bytes, base64.
    pub token_key: String,
}

impl std::fmt::Debug for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stored")
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// The fleet's authority, loaded.
pub struct FleetAuthority {
    pub(crate) issuer: Issuer<'static, KeyPair>,
    pub(crate) ca_der: CertificateDer<'static>,
    signing: Ed25519KeyPair,
    pub(crate) token_key: hmac::Key,
    pub(crate) random: SystemRandom,
    stored: Stored,
}

impl FleetAuthority {
    /// Makes a new fleet. `now` in seconds since 1970; the CA is valid for `years`.
    ///
    /// # Errors
    /// When there is no randomness, or `now` and `years` give no date.
    pub fn create(fleet: &str, now: u64, years: u16) -> Result<Self, PkiError> {
        let random = SystemRandom::new();
        let failed = |e: rcgen::Error| PkiError::Issue {
            subject: fleet.to_owned(),
            why: e.to_string(),
        };
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::default();
        let mut name = DistinguishedName::new();
        name.push(DnType::CommonName, format!("{fleet} CA"));
        params.distinguished_name = name;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        params.serial_number = Some(issue::serial(&random)?);
        let lifetime = u64::from(years) * 365 * 24 * 3600;
        issue::set_dates(&mut params, fleet, now, lifetime)?;
        let certificate = params.self_signed(&key).map_err(failed)?;
        let signing = Ed25519KeyPair::generate_pkcs8(&random).map_err(|_| PkiError::Random)?;
        let mut token_key = [0u8; 32];
        random.fill(&mut token_key).map_err(|_| PkiError::Random)?;
        Self::open(Stored {
            version: 1,
            ca_certificate: certificate.pem(),
            ca_key: key.serialize_pem(),
            signing_key: BASE64.encode(signing.as_ref()),
            token_key: BASE64.encode(token_key),
        })
    }

    /// Loads an authority.
    ///
    /// # Errors
    /// Names the part that is damaged.
    pub fn open(parts: Stored) -> Result<Self, PkiError> {
        if parts.version != 1 {
            return Err(stored("fleet authority")(format!(
                "version {}, this build reads 1",
                parts.version
            )));
        }
        let ca_der = CertificateDer::from_pem_slice(parts.ca_certificate.as_bytes())
            .map_err(stored("CA certificate"))?;
        let key = KeyPair::from_pem(&parts.ca_key).map_err(stored("CA key"))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&ca_der).map_err(stored("CA certificate"))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(stored("CA key")("does not belong to the CA certificate"));
        }
        let issuer = Issuer::from_ca_cert_der(&ca_der, key).map_err(stored("CA certificate"))?;
        let signing = BASE64.decode(&parts.signing_key).map_err(stored("signing key"))?;
        let signing = Ed25519KeyPair::from_pkcs8(&signing).map_err(stored("signing key"))?;
        let token_key = BASE64.decode(&parts.token_key).map_err(stored("token key"))?;
        if token_key.len() != 32 {
            return Err(stored("token key")(format!("{} bytes, not 32", token_key.len())));
        }
        Ok(Self {
            issuer,
            ca_der: ca_der.into_owned(),
            signing,
            token_key: hmac::Key::new(hmac::HMAC_SHA256, &token_key),
            random: SystemRandom::new(),
            stored: parts,
        })
    }

    /// What to write to disk. Secret.
    #[must_use]
    pub fn stored(&self) -> &Stored {
        &self.stored
    }

    /// The CA's certificate, PEM.
    #[must_use]
    pub fn ca_certificate(&self) -> &str {
        &self.stored.ca_certificate
    }

    /// SHA-256 of the CA certificate's DER: what a join token pins.
    #[must_use]
    pub fn ca_sha256(&self) -> [u8; 32] {
        sha256(&self.ca_der)
    }

    /// The public half of the key that signs desired state: what a node pins.
    #[must_use]
    pub fn signing_public_key(&self) -> [u8; 32] {
        let mut out = [0; 32];
        out.copy_from_slice(self.signing.public_key().as_ref());
        out
    }

    /// Signs `message` (Ed25519).
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut out = [0; 64];
        out.copy_from_slice(self.signing.sign(message).as_ref());
        out
    }
}

impl std::fmt::Debug for FleetAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FleetAuthority").finish_non_exhaustive()
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}
