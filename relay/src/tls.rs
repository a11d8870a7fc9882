//! What a TLS failure means, and what to do about it, for the broker and for the database.

use std::error::Error;

use async_nats::rustls::{AlertDescription, CertificateError, Error as TlsError};

/// The remedy for each kind of failure. The names of the settings differ between broker and database.
pub(crate) struct Remedies {
    pub(crate) unknown_issuer: &'static str,
    pub(crate) other_name: &'static str,
    pub(crate) certificate_wanted: &'static str,
    pub(crate) certificate_refused: &'static str,
    pub(crate) no_tls: &'static str,
    pub(crate) other: &'static str,
}

/// The remedy, if TLS failed. `certified`: whether the client presented a certificate.
pub(crate) fn remedy(
    error: &(dyn Error + 'static),
    certified: bool,
    remedies: &Remedies,
) -> Option<&'static str> {
    Some(match tls_error(error)? {
        TlsError::InvalidCertificate(CertificateError::UnknownIssuer) => remedies.unknown_issuer,
        TlsError::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => remedies.other_name,
        TlsError::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        ) => "the server's certificate is not valid now: renew it, or set the clock",
        TlsError::InvalidCertificate(_) => "the server's certificate is not valid: replace it",
        TlsError::AlertReceived(AlertDescription::ProtocolVersion)
        | TlsError::PeerIncompatible(_) => "the server must offer TLS 1.2 or 1.3",
        TlsError::AlertReceived(_) if certified => remedies.certificate_refused,
        TlsError::AlertReceived(_) => remedies.certificate_wanted,
        TlsError::InvalidMessage(_) => remedies.no_tls,
        _ => remedies.other,
    })
}

/// The TLS library's error in the source chain.
fn tls_error<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e TlsError> {
    let mut next = Some(error);
    while let Some(error) = next {
        // An I/O error's source is not what it wraps, but the source of that.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let wrapped = wrapped.and_then(|wrapped| wrapped.downcast_ref::<TlsError>());
        if let Some(found) = error.downcast_ref::<TlsError>().or(wrapped) {
            return Some(found);
        }
        next = error.source();
    }
    None
}
