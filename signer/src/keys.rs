//! Ed25519 keys: the signing key that only the signer holds, and the public keys that everyone else holds.

use std::collections::BTreeMap;
use std::fmt;

use aws_lc_rs::encoding::AsBigEndian;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::EncodingKey;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::header::is_kid;

/// Most keys in one set. A rotation has two live keys; 64 leaves room for years of retired ones and bounds a hostile set.
const KEYS_MAX: usize = 64;

/// Why a key or a key set can't be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The bytes are no Ed25519 key.
    #[error("not an Ed25519 key")]
    NotEd25519,
    /// The system's random source failed, or the crypto library refused to work.
    #[error("the crypto library could not make a key")]
    Crypto,
    /// Not a JWK Set, or one with a repeated, oversized or malformed entry.
    #[error("not a usable JWK Set")]
    BadKeySet,
}

/// A private signing key. Its `kid` is the RFC 7638 thumbprint of its public key, so two keys never share one.
pub struct SigningKey {
    kid: String,
    public: [u8; 32],
    seed: Zeroizing<[u8; 32]>,
    encoding: EncodingKey,
}

impl SigningKey {
    /// A new key from the system's random source.
    pub fn generate() -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::generate().map_err(|_| KeyError::Crypto)?;
        let seed = pair.seed().and_then(|seed| seed.as_be_bytes()).map_err(|_| KeyError::Crypto)?;
        Self::from_seed(seed.as_ref())
    }

    /// The key that a 32-byte seed stands for.
    pub fn from_seed(seed: &[u8]) -> Result<Self, KeyError> {
        let seed = Zeroizing::new(<[u8; 32]>::try_from(seed).map_err(|_| KeyError::NotEd25519)?);
        let pair = Ed25519KeyPair::from_seed_unchecked(seed.as_ref()).map_err(|_| KeyError::NotEd25519)?;
        let public = <[u8; 32]>::try_from(pair.public_key().as_ref()).map_err(|_| KeyError::NotEd25519)?;
        let pkcs8 = pair.to_pkcs8v1().map_err(|_| KeyError::Crypto)?;
        Ok(Self { kid: thumbprint(&public), public, seed, encoding: EncodingKey::from_ed_der(pkcs8.as_ref()) })
    }

    /// The key in a PKCS#8 file in PEM: what `openssl genpkey -algorithm ed25519` makes.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let body = pem
            .trim()
            .strip_prefix("-----BEGIN PRIVATE KEY-----")
            .and_then(|rest| rest.strip_suffix("-----END PRIVATE KEY-----"));
        let body: Zeroizing<String> = Zeroizing::new(body.ok_or(KeyError::NotEd25519)?.split_whitespace().collect());
        let der = STANDARD.decode(body.as_bytes()).map(Zeroizing::new).map_err(|_| KeyError::NotEd25519)?;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).map_err(|_| KeyError::NotEd25519)?;
        let seed = pair.seed().and_then(|seed| seed.as_be_bytes()).map_err(|_| KeyError::Crypto)?;
        Self::from_seed(seed.as_ref())
    }

    /// The same key once more. Not `Clone`: a copy of a private key is made on purpose.
    pub(crate) fn duplicate(&self) -> Result<Self, KeyError> {
        Self::from_seed(self.seed.as_ref())
    }

    /// The key's id.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The 32 bytes of the public key.
    pub fn public(&self) -> &[u8; 32] {
        &self.public
    }

    /// The seed, for sealing at rest.
    pub(crate) fn seed(&self) -> &[u8; 32] {
        &self.seed
    }

    pub(crate) fn encoding(&self) -> &EncodingKey {
        &self.encoding
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("kid", &self.kid).finish_non_exhaustive()
    }
}

/// The 32 bytes of an Ed25519 public key (RFC 8032).
pub(crate) type PublicKey = [u8; 32];

/// Public keys by `kid`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeySet(BTreeMap<String, PublicKey>);

impl KeySet {
    /// Adds a public key under the `kid` that [`SigningKey::kid`] gives the same key.
    pub fn insert(&mut self, public: [u8; 32]) {
        self.0.insert(thumbprint(&public), public);
    }

    /// Whether the set has this key.
    pub fn contains(&self, kid: &str) -> bool {
        self.0.contains_key(kid)
    }

    /// Whether the set has no key.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The kids, in order.
    pub fn kids(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    pub(crate) fn public(&self, kid: &str) -> Option<PublicKey> {
        self.0.get(kid).copied()
    }

    /// Reads a JWK Set. Keys of other kinds than Ed25519 signing keys are passed over, as RFC 7517 asks; a repeated `kid`
    /// refuses the whole set, for it would leave open which of the two is meant.
    pub fn from_jwks(json: &[u8]) -> Result<Self, KeyError> {
        let document: JwkSet = serde_json::from_slice(json).map_err(|_| KeyError::BadKeySet)?;
        if document.keys.len() > KEYS_MAX {
            return Err(KeyError::BadKeySet);
        }
        let mut keys = BTreeMap::new();
        for jwk in document.keys.into_iter().filter(Jwk::is_ed25519_signing_key) {
            let (Some(kid), Some(x)) = (jwk.kid, jwk.x) else { return Err(KeyError::BadKeySet) };
            let x = URL_SAFE_NO_PAD.decode(x).map_err(|_| KeyError::BadKeySet)?;
            let public = <[u8; 32]>::try_from(x).map_err(|_| KeyError::BadKeySet)?;
            if !is_kid(&kid) || keys.insert(kid, public).is_some() {
                return Err(KeyError::BadKeySet);
            }
        }
        Ok(Self(keys))
    }

    /// The set as a JWK Set document.
    pub fn to_jwks(&self) -> serde_json::Value {
        let keys = self.0.iter().map(|(kid, public)| {
            serde_json::json!({
                "kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA",
                "kid": kid, "x": URL_SAFE_NO_PAD.encode(public),
            })
        });
        serde_json::json!({ "keys": keys.collect::<Vec<_>>() })
    }
}

#[derive(Serialize, Deserialize)]
struct JwkSet {
    keys: Vec<Jwk>,
}

/// The members of a JWK that matter to us. Foreign keys may have others.
#[derive(Serialize, Deserialize)]
struct Jwk {
    kty: String,
    crv: Option<String>,
    #[serde(rename = "use")]
    public_use: Option<String>,
    alg: Option<String>,
    kid: Option<String>,
    x: Option<String>,
}

impl Jwk {
    fn is_ed25519_signing_key(&self) -> bool {
        self.kty == "OKP"
            && self.crv.as_deref() == Some("Ed25519")
            && self.public_use.as_deref().is_none_or(|public_use| public_use == "sig")
            && self.alg.as_deref().is_none_or(|alg| alg == "EdDSA")
    }
}

/// RFC 7638: the SHA-256 of the key's required members, in order of their names, without white space.
fn thumbprint(public: &[u8; 32]) -> String {
    let canonical = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, URL_SAFE_NO_PAD.encode(public));
    URL_SAFE_NO_PAD.encode(Sha256::digest(canonical))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key pair of RFC 8037, appendix A.1, and its thumbprint from A.3.
    #[test]
    fn thumbprint_is_that_of_rfc_8037() {
        let x = URL_SAFE_NO_PAD.decode("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo").expect("base64url");
        let public = <[u8; 32]>::try_from(x).expect("32 bytes");
        assert_eq!(thumbprint(&public), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
        let seed = URL_SAFE_NO_PAD.decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A").expect("base64url");
        assert_eq!(SigningKey::from_seed(&seed).expect("a key").public(), &public);
    }

    #[test]
    fn key_sets_survive_the_wire() {
        let mut keys = KeySet::default();
        keys.insert(*SigningKey::generate().expect("random source").public());
        keys.insert(*SigningKey::generate().expect("random source").public());
        let json = keys.to_jwks().to_string();
        assert_eq!(KeySet::from_jwks(json.as_bytes()), Ok(keys));
    }

    #[test]
    fn foreign_keys_are_passed_over_and_ambiguous_sets_refused() {
        let ed = r#"{"kty":"OKP","crv":"Ed25519","kid":"a","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
        let rsa = r#"{"kty":"RSA","kid":"b","n":"AQAB","e":"AQAB"}"#;
        let set = |keys: &str| KeySet::from_jwks(format!(r#"{{"keys":[{keys}]}}"#).as_bytes());
        assert!(set(&format!("{ed},{rsa}")).is_ok_and(|keys| keys.contains("a") && !keys.contains("b")));
        assert_eq!(set(&format!("{ed},{ed}")), Err(KeyError::BadKeySet));
        assert_eq!(set(&ed.replace("\"a\"", "\"../a\"")), Err(KeyError::BadKeySet));
        assert_eq!(set(&[ed; 65].join(",")), Err(KeyError::BadKeySet));
        assert_eq!(KeySet::from_jwks(b"[]"), Err(KeyError::BadKeySet));
    }

    #[test]
    fn debug_shows_no_private_key() {
        let key = SigningKey::from_seed(&[7; 32]).expect("a key");
        assert_eq!(format!("{key:?}"), format!("SigningKey {{ kid: {:?}, .. }}", key.kid()));
    }
}

#[cfg(test)]
mod fuzz {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_document_is_a_key_set_or_refused(
            kty in "OKP|RSA|", kid in "[a-z/]{0,3}", x in prop_oneof!["[A-Za-z0-9_-]{0,44}", "[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]"], copies in 0_usize..70,
        ) {
            let key = format!(r#"{{"kty":"{kty}","crv":"Ed25519","kid":"{kid}","x":"{x}"}}"#);
            let document = format!(r#"{{"keys":[{}]}}"#, vec![key; copies].join(","));
            crate::fuzz::jwks(document.as_bytes());
            if let Ok(keys) = KeySet::from_jwks(document.as_bytes()) {
                prop_assert!(keys.is_empty() || copies == 1);
            }
        }

        #[test]
        fn any_bytes_are_a_key_set_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            crate::fuzz::jwks(&bytes);
        }
    }
}
