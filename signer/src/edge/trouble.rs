//! What a failed connection means, in a sentence with the remedy.

use std::error::Error;
use std::io;
use std::sync::Arc;

use rustls::{AlertDescription, CertificateError};

/// The sentence for a TLS failure somewhere in `error`'s causes; for other failures, the causes' own words.
pub fn explain(error: &(dyn Error + 'static)) -> String {
    if let Some(tls) = find(error) {
        return sentence(tls);
    }
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !words.contains(&more) {
            words = format!("{words}: {more}");
        }
        cause = error.source();
    }
    // The Redis client keeps of the TLS error only its words.
    read_from(&words).map_or(words, |tls| sentence(&tls))
}

/// The TLS error that these words came from, as rustls puts it.
fn read_from(words: &str) -> Option<rustls::Error> {
    let bad = |reason| Some(rustls::Error::InvalidCertificate(reason));
    match words.split_once("invalid peer certificate: ")?.1 {
        why if why.starts_with("UnknownIssuer") => bad(CertificateError::UnknownIssuer),
        why if why.contains("expired") || why.contains("Expired") => bad(CertificateError::Expired),
        why if why.contains("not valid for name") || why.contains("NotValidForName") => {
            bad(CertificateError::NotValidForName)
        }
        why if why.contains("not valid yet") || why.contains("NotValidYet") => bad(CertificateError::NotValidYet),
        _ => None,
    }
}

fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(tls);
        }
        // An I/O error's source is its content's source: the content itself would be passed over.
        let io =
            error.downcast_ref::<io::Error>().or_else(|| error.downcast_ref::<Arc<io::Error>>().map(AsRef::as_ref));
        if let Some(content) = io.and_then(io::Error::get_ref) {
            let content: &(dyn Error + 'static) = content;
            if let Some(tls) = find(content) {
                return Some(tls);
            }
        }
        next = error.source();
    }
    None
}

fn sentence(error: &rustls::Error) -> String {
    use AlertDescription as Alert;
    use CertificateError as Bad;
    let sentence = match error {
        rustls::Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => {
            "its certificate is signed by an authority that is not trusted here; name the file with that authority's \
             certificate (VECMILL_CA_FILE; for S3, VECMILL_S3_CA_FILE)"
        }
        rustls::Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => {
            "its certificate has expired; renew it there, or correct this machine's clock"
        }
        rustls::Error::InvalidCertificate(Bad::NotValidYet | Bad::NotValidYetContext { .. }) => {
            "its certificate is not valid yet; correct this machine's clock, or the server's certificate"
        }
        rustls::Error::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => {
            "its certificate is for another host name; connect to the name that stands in it, or have one issued for this \
             name"
        }
        rustls::Error::AlertReceived(Alert::CertificateRequired) => {
            "it asks for a client certificate; give one with VECMILL_CLIENT_CERT_FILE and VECMILL_CLIENT_KEY_FILE"
        }
        rustls::Error::AlertReceived(
            Alert::UnknownCA
            | Alert::BadCertificate
            | Alert::CertificateExpired
            | Alert::CertificateRevoked
            | Alert::CertificateUnknown
            | Alert::UnsupportedCertificate
            | Alert::DecryptError,
        ) => {
            "it does not take our client certificate; give one that its authority signed (VECMILL_CLIENT_CERT_FILE, \
             VECMILL_CLIENT_KEY_FILE)"
        }
        rustls::Error::InvalidMessage(_) => "what listens there does not speak TLS; is the port right?",
        other => return format!("TLS failed: {other}"),
    };
    sentence.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tls_error_is_found_behind_others_and_in_mere_words() {
        let unknown = || rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let told = explain(&io::Error::other(io::Error::other(unknown())));
        assert!(told.contains("not trusted here"), "{told}");
        assert_eq!(explain(&io::Error::other(format!("no connection: {}", unknown()))), told);
        for (error, says) in [
            (CertificateError::Expired, "has expired"),
            (CertificateError::NotValidForName, "another host name"),
            (CertificateError::NotValidYet, "not valid yet"),
        ] {
            let error = rustls::Error::InvalidCertificate(error);
            assert!(explain(&io::Error::other(error.to_string())).contains(says), "{error}");
        }
        assert_eq!(explain(&io::Error::other("connection refused")), "connection refused");
    }
}
