//! The JWT header, read strictly before anything else of a token is believed.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

use crate::refusal::Refusal;

/// The header of a token, exactly as we mint it. Fields that would let the token choose its own key or its own rules are
/// listed so that they are refused by name; every other field is refused by `deny_unknown_fields`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHeader {
    alg: String,
    typ: String,
    kid: String,
    #[serde(default, deserialize_with = "present")]
    crit: bool,
    #[serde(default, deserialize_with = "present")]
    jku: bool,
    #[serde(default, deserialize_with = "present")]
    jwk: bool,
    #[serde(default, deserialize_with = "present")]
    x5u: bool,
    #[serde(default, deserialize_with = "present")]
    x5c: bool,
    #[serde(default, deserialize_with = "present")]
    x5t: bool,
    #[serde(default, rename = "x5t#S256", deserialize_with = "present")]
    x5t_s256: bool,
}

/// A field that is there counts, even as `null`.
fn present<'de, D: Deserializer<'de>>(field: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(field).map(|_| true)
}

/// Checks the header of `token` for a token of type `typ` and gives back the `kid`, whose shape is checked but whose key
/// may not exist.
pub(crate) fn kid_of(token: &str, typ: &str) -> Result<String, Refusal> {
    let mut parts = token.split('.');
    let (Some(header), Some(_), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(Refusal::Malformed);
    };
    let json = URL_SAFE_NO_PAD.decode(header).map_err(|_| Refusal::Malformed)?;
    // serde would also read a struct from a JSON array; a JWT header is an object.
    if json.first() != Some(&b'{') {
        return Err(Refusal::Malformed);
    }
    let header: RawHeader = serde_json::from_slice(&json).map_err(|_| Refusal::Malformed)?;

    let forbidden = [
        ("crit", header.crit),
        ("jku", header.jku),
        ("jwk", header.jwk),
        ("x5u", header.x5u),
        ("x5c", header.x5c),
        ("x5t", header.x5t),
        ("x5t#S256", header.x5t_s256),
    ];
    if let Some((name, _)) = forbidden.into_iter().find(|(_, present)| *present) {
        return Err(Refusal::ForbiddenHeader(name));
    }
    if header.alg != "EdDSA" {
        return Err(Refusal::WrongAlgorithm);
    }
    if header.typ != typ {
        return Err(Refusal::WrongType);
    }
    if !is_kid(&header.kid) {
        return Err(Refusal::Malformed);
    }
    Ok(header.kid)
}

/// Whether `kid` has the shape of a key id: `[A-Za-z0-9_-]{1,64}`. It is only ever a key into a map, never a path.
pub(crate) fn is_kid(kid: &str) -> bool {
    (1..=64).contains(&kid.len()) && kid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

#[cfg(test)]
mod fuzz {
    use proptest::prelude::*;

    use super::*;

    /// Texts that are nearly headers.
    fn nearly() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(
            &[
                "{",
                "}",
                "\"alg\"",
                "\"typ\"",
                "\"kid\"",
                "\"crit\"",
                "\"jku\"",
                ":",
                ",",
                "\"EdDSA\"",
                "\"at+jwt\"",
                "\"k1\"",
                "null",
                "[",
                "]",
                " ",
                "\\u0061",
                "\"none\"",
                "1e999",
                "\u{feff}",
                "\0",
            ][..],
        );
        prop::collection::vec(prop_oneof![6 => piece.prop_map(str::to_owned), 1 => ".{0,4}"], 0..40)
            .prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn only_our_header_passes(json in prop_oneof![nearly(), ".{0,300}"]) {
            crate::fuzz::jwt_header(json.as_bytes());
        }

        #[test]
        fn a_header_with_any_member_more_is_refused(name in "[a-zA-Z0-9#_]{1,12}", value in "[a-z]{0,8}") {
            prop_assume!(!["alg", "typ", "kid"].contains(&name.as_str()));
            let json = serde_json::json!({ "alg": "EdDSA", "typ": "at+jwt", "kid": "k1", name: value });
            let token = format!("{}.e30.AA", URL_SAFE_NO_PAD.encode(json.to_string()));
            prop_assert!(kid_of(&token, "at+jwt").is_err());
        }

        #[test]
        fn every_kid_of_the_right_shape_is_given_back(kid in "[A-Za-z0-9_-]{1,64}") {
            let json = serde_json::json!({ "alg": "EdDSA", "typ": "at+jwt", "kid": kid });
            let token = format!("{}.e30.AA", URL_SAFE_NO_PAD.encode(json.to_string()));
            prop_assert_eq!(kid_of(&token, "at+jwt"), Ok(kid));
        }
    }
}
