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
    words
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
