//! API keys: `vm_<key id>_<secret><checksum>`.
//!
//! The secret is 32 random bytes in base64url. The checksum finds typing mistakes before anything is sent, and lets secret
//! scanners tell a real key from a look-alike. 256 random bits need no slow password hash.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

const PREFIX: &str = "vm_";
/// 16 characters of `[a-z2-7]`: 80 random bits, so that ids don't collide and can't be walked through.
const KEY_ID_LEN: usize = 16;
/// 32 bytes in base64url without padding.
const SECRET_LEN: usize = 43;
/// 36 bits of SHA-256.
const CHECKSUM_LEN: usize = 6;

/// Not an API key. What was given is not repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an API key: it should read vm_<key id>_<secret>, and be whole")]
pub struct ApiKeyError;

/// An API key. Wiped from memory when dropped; `Debug` shows the id only.
#[derive(Clone)]
pub struct ApiKey {
    whole: Zeroizing<String>,
}

impl ApiKey {
    /// A new key from the system's random source.
    pub(crate) fn generate() -> Result<Self, aws_lc_rs::error::Unspecified> {
        const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        let mut id = [0; KEY_ID_LEN];
        rand::fill(&mut id)?;
        let id: String = id.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect();
        Self::with_id(&id)
    }

    /// A new secret under this id.
    pub(crate) fn with_id(id: &str) -> Result<Self, aws_lc_rs::error::Unspecified> {
        let mut secret = Zeroizing::new([0; 32]);
        rand::fill(secret.as_mut())?;
        let mut whole = Zeroizing::new(format!("{PREFIX}{id}_"));
        URL_SAFE_NO_PAD.encode_string(secret.as_ref(), &mut whole);
        let checksum = checksum(&whole);
        whole.push_str(&checksum);
        Ok(Self { whole })
    }

    /// The key's id: not a secret.
    pub fn id(&self) -> &str {
        &self.whole[PREFIX.len()..PREFIX.len() + KEY_ID_LEN]
    }

    /// How the key with this id begins.
    pub(crate) fn prefix(id: &str) -> String {
        format!("{PREFIX}{id}_")
    }

    /// The whole key, for the `Authorization` header. Secret.
    pub fn expose(&self) -> &str {
        &self.whole
    }

    /// The random part with its checksum, which is what the stored digest is made of. Secret.
    pub(crate) fn secret(&self) -> &str {
        &self.whole[PREFIX.len() + KEY_ID_LEN + 1..]
    }
}

impl FromStr for ApiKey {
    type Err = ApiKeyError;

    fn from_str(text: &str) -> Result<Self, ApiKeyError> {
        let (id, secret) = text.strip_prefix(PREFIX).and_then(|rest| rest.split_once('_')).ok_or(ApiKeyError)?;
        let is_id = |b: u8| b.is_ascii_lowercase() || matches!(b, b'2'..=b'7');
        let is_secret = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let shaped = id.len() == KEY_ID_LEN
            && id.bytes().all(is_id)
            && secret.len() == SECRET_LEN + CHECKSUM_LEN
            && secret.bytes().all(is_secret);
        // All ASCII by now, so the cut is on a character.
        if !shaped || checksum(&text[..text.len() - CHECKSUM_LEN]) != text[text.len() - CHECKSUM_LEN..] {
            return Err(ApiKeyError);
        }
        Ok(Self { whole: Zeroizing::new(text.to_owned()) })
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKey({})", self.id())
    }
}

/// The first characters of the base64url SHA-256 of everything before it.
fn checksum(text: &str) -> String {
    let mut code = URL_SAFE_NO_PAD.encode(Sha256::digest(text));
    code.truncate(CHECKSUM_LEN);
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_reads_back_and_debug_hides_it() {
        let key = ApiKey::generate().expect("random source");
        let again: ApiKey = key.expose().parse().expect("own key");
        assert_eq!(again.expose(), key.expose());
        assert_eq!(format!("{key:?}"), format!("ApiKey({})", key.id()));
        assert_eq!(key.expose(), format!("vm_{}_{}", key.id(), key.secret()));
    }

    #[test]
    fn every_single_character_counts() {
        let key = ApiKey::generate().expect("random source");
        let whole = key.expose();
        for at in 0..whole.len() {
            let mut typo = whole.as_bytes().to_vec();
            typo[at] = if typo[at] == b'a' { b'b' } else { b'a' };
            let typo = String::from_utf8(typo).expect("ASCII");
            assert!(typo.parse::<ApiKey>().is_err(), "changed at {at}");
            assert!(whole[..at].parse::<ApiKey>().is_err(), "cut at {at}");
        }
        for bad in ["", "vm_", "vm__", "vm_é", &format!("{whole} ")] {
            assert!(bad.parse::<ApiKey>().is_err(), "{bad:?}");
        }
    }
}
