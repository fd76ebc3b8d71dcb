//! Whom a certificate names. Kubernetes reads the common name as the user and the organizations as the groups.

use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::PkiError;

/// Whom a certificate names, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The common name: user, node name, or server.
    pub common_name: String,
    /// The organizations: groups.
    pub organizations: Vec<String>,
    /// First second of validity, since 1970.
    pub not_before: i64,
    /// Last second of validity, since 1970.
    pub not_after: i64,
}

/// Reads the subject of a certificate (DER). It does not check who signed it: the TLS handshake has done that.
///
/// # Errors
/// When it is not a certificate, or has not exactly one common name.
pub fn subject(der: &[u8]) -> Result<Subject, PkiError> {
    let (rest, certificate) =
        X509Certificate::from_der(der).map_err(|e| PkiError::Certificate(format!("not X.509: {e}")))?;
    if !rest.is_empty() {
        return Err(PkiError::Certificate(format!("{} bytes follow it", rest.len())));
    }
    let text = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| value.as_str().map(ToOwned::to_owned);
    let mut names = certificate.subject().iter_common_name();
    let (Some(Ok(common_name)), None) = (names.next().map(text), names.next()) else {
        return Err(PkiError::Certificate(
            "has not exactly one common name".to_owned(),
        ));
    };
    let organizations = certificate
        .subject()
        .iter_organization()
        .map(text)
        .collect::<Result<Vec<_>, _>>();
    Ok(Subject {
        common_name,
        organizations: organizations.map_err(|e| PkiError::Certificate(format!("organization: {e}")))?,
        not_before: certificate.validity().not_before.timestamp(),
        not_after: certificate.validity().not_after.timestamp(),
    })
}
