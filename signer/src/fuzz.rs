//! What every reader of a stranger's bytes must keep to, whatever they are. `infra/fuzz` feeds these with inputs that reach ever
//! more of the code; the tests feed them with what lies in `tests/fuzz/kept`.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cidr::Cidr;
use crate::claims::{AccessClaims, EmbedClaims, GrantClaims, RevocationClaims};
use crate::header::{is_kid, kid_of};
use crate::keys::KeySet;

/// Reads an input, and panics where what comes of it is not as it must be.
pub type Target = fn(&[u8]);

/// Readers by name.
pub const TARGETS: &[(&str, Target)] = &[
    ("authorization", crate::server::fuzz::authorization),
    ("cidr", cidr),
    ("claims", claims),
    ("form", crate::server::fuzz::form),
    ("jwks", jwks),
    ("jwt_header", jwt_header),
    ("order", crate::server::fuzz::order),
];

/// Whatever passes as the header of a token says exactly what a header of ours says.
pub(crate) fn jwt_header(json: &[u8]) {
    let token = format!("{}.e30.AA", URL_SAFE_NO_PAD.encode(json));
    if let Ok(kid) = kid_of(&token, "at+jwt") {
        assert!(is_kid(&kid));
        let value: serde_json::Value = serde_json::from_slice(json).expect("JSON");
        assert_eq!(value, serde_json::json!({ "alg": "EdDSA", "typ": "at+jwt", "kid": kid }));
    }
    // And as a whole token.
    let _ = kid_of(&String::from_utf8_lossy(json), "at+jwt");
}

/// What was read as claims is written and read again as the same.
pub(crate) fn claims(json: &[u8]) {
    fn survive<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(json: &[u8]) {
        if let Ok(read) = serde_json::from_slice::<T>(json) {
            let written = serde_json::to_vec(&read).expect("JSON");
            assert_eq!(serde_json::from_slice::<T>(&written).expect("claims"), read);
        }
    }
    survive::<GrantClaims>(json);
    survive::<AccessClaims>(json);
    survive::<EmbedClaims>(json);
    survive::<RevocationClaims>(json);
}

/// A set of keys that was read is written and read again as the same.
pub(crate) fn jwks(json: &[u8]) {
    if let Ok(keys) = KeySet::from_jwks(json) {
        assert_eq!(KeySet::from_jwks(keys.to_jwks().to_string().as_bytes()), Ok(keys));
    }
}

/// A range that was read is written and read again as the same, and holds its own address.
pub(crate) fn cidr(text: &[u8]) {
    if let Ok(range) = String::from_utf8_lossy(text).parse::<Cidr>() {
        let written = range.to_string();
        assert_eq!(written.parse(), Ok(range));
        let address = written.split('/').next().expect("an address").parse().expect("an address");
        assert!(range.contains(address), "{written}");
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Good inputs to begin from, and such as have shown a fault, here or in a library.
    #[test]
    fn every_input_that_is_kept_is_read_or_refused() {
        for (name, target) in super::TARGETS {
            let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/kept").join(name);
            let mut inputs = 0;
            for input in std::fs::read_dir(&kept).unwrap_or_else(|error| panic!("{}: {error}", kept.display())) {
                target(&std::fs::read(input.expect("an entry").path()).expect("a file"));
                inputs += 1;
            }
            assert!(inputs > 0, "{}", kept.display());
        }
    }
}
