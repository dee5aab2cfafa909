//! What both HTTP clients of the signer (keys and tokens) share: bounds on time and size, and the check of its address.

use std::time::Duration;

use reqwest::{Client, Response, Url, redirect};

/// The signer is near; a connection that takes longer than this will not come.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// Whole exchange. The signer answers in milliseconds; its own request timeout is longer.
const EXCHANGE_MAX: Duration = Duration::from_secs(5);
/// Largest answer: 64 keys are about 12 KiB, a token under 8.
const BODY_LEN_MAX: usize = 64 * 1024;

/// The signer's address can't be used. It is not repeated here: it may carry a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not an http or https address, or one with a user, query or fragment.
    #[error("the signer's address must be http://HOST[:PORT] or https://HOST[:PORT], without user, query or fragment")]
    NotAnAddress,
    /// The TLS stack could not start.
    #[error("the HTTP client could not be built")]
    NoClient,
}

/// The signer's address, ready to be extended by a path.
pub(crate) fn base_url(text: &str) -> Result<Url, AddressError> {
    let url = Url::parse(text).map_err(|_| AddressError::NotAnAddress)?;
    let plain = matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    if plain { Ok(url) } else { Err(AddressError::NotAnAddress) }
}

/// `path` below the signer's address, whether that ends in a slash or not.
pub(crate) fn join(base: &Url, path: &str) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}/{path}", base.path().trim_end_matches('/')));
    url
}

/// A client that goes straight to the signer: an API key must not pass a proxy or follow a redirect.
pub(crate) fn client() -> Result<Client, AddressError> {
    Client::builder()
        .connect_timeout(CONNECT_MAX)
        .timeout(EXCHANGE_MAX)
        .redirect(redirect::Policy::none())
        .no_proxy()
        .build()
        .map_err(|_| AddressError::NoClient)
}

/// The body, or `None` if it is longer than any honest answer.
pub(crate) async fn body(mut response: Response) -> Result<Option<Vec<u8>>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await? {
        if body.len() + piece.len() > BODY_LEN_MAX {
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
        for good in ["http://127.0.0.1:8700", "https://signer.example/", "https://example/signer"] {
            assert!(base_url(good).is_ok(), "{good}");
        }
        for bad in ["", "signer", "ftp://x", "http://u:p@x", "http://x?a", "http://x#a", "file:///etc/passwd"] {
            assert_eq!(base_url(bad), Err(AddressError::NotAnAddress), "{bad}");
        }
    }

    #[test]
    fn paths_are_appended() {
        for (base, want) in [
            ("http://x", "http://x/v1/grants"),
            ("http://x/", "http://x/v1/grants"),
            ("http://x/signer", "http://x/signer/v1/grants"),
            ("http://x/signer/", "http://x/signer/v1/grants"),
        ] {
            let base = base_url(base).expect("an address");
            assert_eq!(join(&base, "v1/grants").as_str(), want);
        }
    }
}
