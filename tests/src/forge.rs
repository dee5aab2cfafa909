//! Tokens as an attacker, or a broken signer, would make them: any header, any claims, any key.

use aws_lc_rs::{
    hmac,
    signature::{Ed25519KeyPair, KeyPair},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::Value;
use vecmill_signer::keys::KeySet;

/// An Ed25519 key whose private half the test holds.
pub struct ForgeKey {
    pair: Ed25519KeyPair,
    keys: KeySet,
    kid: String,
}

impl ForgeKey {
    /// A key from a seed.
    pub fn new(seed: u8) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).expect("32 bytes are a seed");
        let public = <[u8; 32]>::try_from(pair.public_key().as_ref()).expect("an Ed25519 public key");
        let mut keys = KeySet::default();
        keys.insert(public);
        let kid = keys.to_jwks()["keys"][0]["kid"].as_str().expect("a kid").to_owned();
        Self { pair, keys, kid }
    }

    /// The key's JWK Set, as a signer would publish it.
    pub fn jwks(&self) -> Value {
        self.keys.to_jwks()
    }

    /// The key's id.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The 32 bytes of the public key, which everybody knows.
    pub fn public(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    /// A token with this header and these claims, signed by the key.
    pub fn sign(&self, header: &Value, claims: &Value) -> String {
        self.sign_text(header, &claims.to_string())
    }

    /// The same with the claims as a text, for JSON that `Value` can't hold: repeated names.
    pub fn sign_text(&self, header: &Value, claims: &str) -> String {
        token(header, claims, |signed| self.pair.sign(signed).as_ref().to_vec())
    }

    /// A header as the signer would write it for a job grant.
    pub fn grant_header(&self) -> Value {
        serde_json::json!({ "alg": "EdDSA", "typ": "job-grant+jwt", "kid": self.kid })
    }
}

/// A token "signed" with HMAC-SHA256.
pub fn sign_hs256(secret: &[u8], header: &Value, claims: &Value) -> String {
    let secret = hmac::Key::new(hmac::HMAC_SHA256, secret);
    token(header, &claims.to_string(), |signed| hmac::sign(&secret, signed).as_ref().to_vec())
}

/// A token with no signature.
pub fn unsigned(header: &Value, claims: &Value) -> String {
    token(header, &claims.to_string(), |_| Vec::new())
}

fn token(header: &Value, claims: &str, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims));
    let signature = URL_SAFE_NO_PAD.encode(sign(signed.as_bytes()));
    format!("{signed}.{signature}")
}
