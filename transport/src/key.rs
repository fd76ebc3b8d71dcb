//! The node's own key: made on the node, and never leaves it.
//!
//! Always holds: ECDSA on P-256; the text form is PKCS#8 PEM, which the TLS configuration takes as it is.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;

/// Why there is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The operating system gave no randomness.
    #[error("node key: no randomness from the operating system")]
    Random,
    /// The stored text is not a P-256 key in PKCS#8 PEM.
    #[error("node key: {0}")]
    Damaged(String),
}

/// The node's key.
pub struct NodeKey {
    pair: EcdsaKeyPair,
    pkcs8: Vec<u8>,
    random: SystemRandom,
}

impl NodeKey {
    /// Makes a new key.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn generate() -> Result<Self, KeyError> {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random)
            .map_err(|_| KeyError::Random)?;
        Self::load(pkcs8.as_ref().to_vec(), random)
    }

    /// Reads a key.
    ///
    /// # Errors
    /// When it is not a P-256 key in PKCS#8 PEM.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes())
            .map_err(|e| KeyError::Damaged(e.to_string()))?;
        Self::load(der.secret_pkcs8_der().to_vec(), SystemRandom::new())
    }

    fn load(pkcs8: Vec<u8>, random: SystemRandom) -> Result<Self, KeyError> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &pkcs8, &random)
            .map_err(|e| KeyError::Damaged(e.to_string()))?;
        Ok(Self { pair, pkcs8, random })
    }

    /// The key's text. Secret: mode 0600.
    #[must_use]
    pub fn to_pem(&self) -> String {
        let mut pem = String::from("-----BEGIN PRIVATE KEY-----\n");
        let text = BASE64.encode(&self.pkcs8);
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (line, tail) = rest.split_at(rest.len().min(64));
            pem.push_str(line);
            pem.push('\n');
            rest = tail;
        }
        pem.push_str("-----END PRIVATE KEY-----\n");
        pem
    }

    /// The public key, an uncompressed point.
    #[must_use]
    pub fn public_key(&self) -> [u8; 65] {
        let mut out = [0; 65];
        out.copy_from_slice(self.pair.public_key().as_ref());
        out
    }

    /// Signs `message`: ECDSA-P256-SHA256, ASN.1.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let signature = self
            .pair
            .sign(&self.random, message)
            .map_err(|_| KeyError::Random)?;
        Ok(signature.as_ref().to_vec())
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeKey").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_text_and_signs_as_itself() {
        let key = NodeKey::generate().unwrap();
        let again = NodeKey::from_pem(&key.to_pem()).unwrap();
        assert_eq!(key.public_key(), again.public_key());
        assert_eq!(key.public_key()[0], 4);
        let signature = again.sign(b"message").unwrap();
        let verify = |message: &[u8]| {
            ring::signature::UnparsedPublicKey::new(
                &ring::signature::ECDSA_P256_SHA256_ASN1,
                key.public_key(),
            )
            .verify(message, &signature)
            .is_ok()
        };
        assert!(verify(b"message") && !verify(b"massage"));
        assert_ne!(NodeKey::generate().unwrap().public_key(), key.public_key());
        assert!(NodeKey::from_pem("").is_err());
        assert!(!format!("{key:?}").contains(&BASE64.encode(&key.pkcs8)[60..80]));
    }
}
