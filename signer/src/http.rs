//! What both HTTP clients of the signer (keys and tokens) share: bounds on time and size, and the check of its address.

use std::time::Duration;

use reqwest::{Client, Response, Url, redirect};

use crate::edge::{self, ClientTls};

/// The signer is near; a connection that takes longer than this will not come.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// Whole exchange. The signer answers in milliseconds; its own request timeout is longer.
const EXCHANGE_MAX: Duration = Duration::from_secs(5);
/// Largest answer but one: 64 keys are about 12 KiB, a token under 8.
pub(crate) const BODY_LEN_MAX: usize = 64 * 1024;

/// The signer's address can't be used. It is not repeated here: it may carry a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not an http or https address, or one with a user, query or fragment.
    #[error("the signer's address must be http://HOST[:PORT] or https://HOST[:PORT], without user, query or fragment")]
    NotAnAddress,
    /// Plain http to another machine.
    #[error(
        "the signer's address is plain http to another machine, where API keys could be read and public keys swapped on \
         the way: use https://, or --insecure-signer (VECMILL_INSECURE_SIGNER=true) on a network you trust"
    )]
    Insecure,
    /// The TLS stack could not start.
    #[error("the HTTP client could not be built: do the client certificate and its key belong together?")]
    NoClient,
}

/// The signer's address, ready to be extended by a path.
pub(crate) fn base_url(text: &str, tls: &ClientTls) -> Result<Url, AddressError> {
    let url = Url::parse(text).map_err(|_| AddressError::NotAnAddress)?;
    let plain = matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    if !plain {
        return Err(AddressError::NotAnAddress);
    }
    let here = url.host_str().is_some_and(edge::is_loopback);
    if url.scheme() == "http" && !here && !tls.takes_plain_http() { Err(AddressError::Insecure) } else { Ok(url) }
}

/// `path` below the signer's address, whether that ends in a slash or not.
pub(crate) fn join(base: &Url, path: &str) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}/{path}", base.path().trim_end_matches('/')));
    url
}

/// A client that goes straight to the signer: an API key must not pass a proxy or follow a redirect.
pub(crate) fn client(tls: &ClientTls) -> Result<Client, AddressError> {
    tls.apply(Client::builder())
        .ok_or(AddressError::NoClient)?
        .connect_timeout(CONNECT_MAX)
        .timeout(EXCHANGE_MAX)
        .redirect(redirect::Policy::none())
        .no_proxy()
        .build()
        .map_err(|_| AddressError::NoClient)
}

/// The body, or `None` if it is longer than any honest answer, which is `len_max`.
pub(crate) async fn body(mut response: Response, len_max: usize) -> Result<Option<Vec<u8>>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await? {
        if body.len() + piece.len() > len_max {
            return Ok(None);
        }
        body.extend_from_slice(&piece);
    }
    Ok(Some(body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_plain() {
        let tls = ClientTls::default();
        for good in [
            "http://127.0.0.1:8700",
            "http://[::1]:8700",
            "http://localhost",
            "https://signer.example/",
            "https://example/signer",
        ] {
            assert!(base_url(good, &tls).is_ok(), "{good}");
        }
        for bad in ["", "signer", "ftp://x", "http://u:p@x", "http://x?a", "http://x#a", "file:///etc/passwd"] {
            assert_eq!(base_url(bad, &tls), Err(AddressError::NotAnAddress), "{bad}");
        }
    }

    #[test]
    fn plain_http_goes_no_further_than_this_machine() {
        let told = crate::edge::ClientTlsArgs { insecure_signer: true, ..<_>::default() }.load().expect("no files");
        for away in [
            "http://192.0.2.1:8700",
            "http://signer",
            "http://localhost.example",
            "http://127.0.0.1.example",
            "http://[::2]",
        ] {
            assert_eq!(base_url(away, &ClientTls::default()), Err(AddressError::Insecure), "{away}");
            assert!(base_url(away, &told).is_ok(), "{away}");
        }
    }

    #[test]
    fn paths_are_appended() {
        for (base, want) in [
            ("https://x", "https://x/v1/grants"),
            ("https://x/", "https://x/v1/grants"),
            ("https://x/signer", "https://x/signer/v1/grants"),
            ("https://x/signer/", "https://x/signer/v1/grants"),
        ] {
            let base = base_url(base, &ClientTls::default()).expect("an address");
            assert_eq!(join(&base, "v1/grants").as_str(), want);
        }
    }
}
