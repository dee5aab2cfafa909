//! The `Authorization` header, read strictly: two of them, or one in other bytes than ASCII, are nobody's.

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::error::ApiError;

/// An id and a secret as shown, not yet believed.
pub(super) struct Credentials {
    pub(super) id: Zeroizing<String>,
    pub(super) secret: Zeroizing<String>,
}

/// Scheme and the rest of the header, `None` where there is no header at all.
fn parts(headers: &HeaderMap) -> Result<Option<(&str, &str)>, Unreadable> {
    let mut shown = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = shown.next() else { return Ok(None) };
    // With two, a proxy and we might each believe another.
    if shown.next().is_some() {
        return Err(Unreadable);
    }
    let (scheme, rest) = value.to_str().ok().and_then(|value| value.split_once(' ')).ok_or(Unreadable)?;
    Ok(Some((scheme, rest.trim_matches(' '))))
}

/// The header is there and says nothing that can be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unreadable;

/// The bearer token that the request shows.
pub(super) fn bearer(headers: &HeaderMap) -> Result<&str, ApiError> {
    match parts(headers) {
        Ok(Some((scheme, token))) if scheme.eq_ignore_ascii_case("bearer") => Ok(token),
        Ok(_) => Err(ApiError::token_missing()),
        Err(Unreadable) => Err(ApiError::invalid_token()),
    }
}

/// Id and secret by HTTP Basic (RFC 7617), `None` where there is no header at all.
pub(super) fn basic(headers: &HeaderMap) -> Result<Option<Credentials>, Unreadable> {
    let Some((scheme, code)) = parts(headers)? else { return Ok(None) };
    if !scheme.eq_ignore_ascii_case("basic") {
        return Err(Unreadable);
    }
    let pair = STANDARD.decode(code).map(Zeroizing::new).map_err(|_| Unreadable)?;
    let pair = std::str::from_utf8(&pair).map_err(|_| Unreadable)?;
    // Ids and secrets are of characters that form coding leaves as they are, so there is nothing to decode.
    let (id, secret) = pair.split_once(':').ok_or(Unreadable)?;
    Ok(Some(Credentials { id: Zeroizing::new(id.to_owned()), secret: Zeroizing::new(secret.to_owned()) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn headers(values: &[&[u8]]) -> HeaderMap {
        let values =
            values.iter().map(|value| (AUTHORIZATION, HeaderValue::from_bytes(value).expect("a header value")));
        values.collect()
    }

    pub(super) fn read(value: &str) -> Option<(String, String)> {
        let read = basic(&headers(&[value.as_bytes()])).ok().flatten()?;
        Some((read.id.to_string(), read.secret.to_string()))
    }

    #[test]
    fn one_header_counts_and_two_do_not() {
        assert_eq!(bearer(&headers(&[b"Bearer abc"])).ok(), Some("abc"));
        assert_eq!(bearer(&headers(&[b"bEARER   abc"])).ok(), Some("abc"));
        for values in [
            &[b"Bearer abc".as_slice(), b"Bearer abc"][..],
            &[b"Basic YTpi", b"Bearer abc"],
            &[],
            &[b"Bearer"],
            &[b"Bearerabc"],
            &[b"Basic YTpi"],
            &[b"Bearer \xff"],
            &[b"Bearer\tabc"],
        ] {
            assert!(bearer(&headers(values)).is_err(), "{values:?}");
        }
        assert!(basic(&headers(&[])).is_ok_and(|credentials| credentials.is_none()));
        assert!(basic(&headers(&[b"Basic YTpi", b"Basic YTpi"])).is_err());
    }

    #[test]
    fn basic_is_read_to_the_letter() {
        let pair = Some(("a".to_owned(), "b".to_owned()));
        assert_eq!(read("Basic YTpi"), pair);
        assert_eq!(read("BASIC  YTpi"), pair);
        // Spare bits, other padding, the other alphabet, white space inside, no colon, not UTF-8, nothing.
        for bad in [
            "Basic YTpj=",
            "Basic YTo",
            "Basic YT-_",
            "Basic YT pi",
            "Basic YWI=",
            "Basic gDpi",
            "Basic ",
            "Basic",
            "Bearer YTpi",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
        // Only the first colon parts them.
        assert_eq!(read("Basic YTpiOmM="), Some(("a".to_owned(), "b:c".to_owned())));
    }
}

#[cfg(test)]
mod fuzz {
    use proptest::prelude::*;

    use super::tests::read;
    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(value in prop::collection::vec(prop_oneof![Just(b'\t'), 0x20_u8..0x7f, 0x80_u8..], 0..200)) {
            super::super::fuzz::authorization(&value);
        }

        #[test]
        fn what_was_coded_is_read(id in "[^:]{0,40}", secret in ".{0,80}") {
            let code = STANDARD.encode(format!("{id}:{secret}"));
            prop_assert_eq!(read(&format!("Basic {code}")), Some((id, secret)));
        }
    }
}
