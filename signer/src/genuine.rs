//! Access and embed tokens found genuine: a client shows the same one for minutes, and its signature is most of what a check costs.
//!
//! What is remembered is what can't change: that this key signed this token, and what it says. Whether the key is still
//! one of ours, the times, and what has been revoked are asked at every sight of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha2::{Digest as _, Sha256};

use crate::keys::PublicKey;

/// Tokens remembered, each about 1 KiB. Only what the signer minted gets in, so nobody can fill it with inventions; full,
/// it is emptied, which costs each token one more check of its signature.
const TOKENS_MAX: usize = 10_000;

/// What tokens of one kind say. Clones share what they know.
#[derive(Debug, Clone)]
pub(crate) struct Genuine<C>(Arc<Mutex<HashMap<Print, Arc<C>>>>);

impl<C> Default for Genuine<C> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

/// A key and a token of it, as a digest: a list of tokens would be one of secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Print([u8; 32]);

impl Print {
    pub(crate) fn of(key: &PublicKey, token: &str) -> Self {
        Self(Sha256::new_with_prefix(key).chain_update(token).finalize().into())
    }
}

impl<C> Genuine<C> {
    pub(crate) fn get(&self, print: &Print) -> Option<Arc<C>> {
        self.known().get(print).cloned()
    }

    pub(crate) fn insert(&self, print: Print, claims: Arc<C>) {
        let mut known = self.known();
        if known.len() >= TOKENS_MAX {
            known.clear();
        }
        known.insert(print, claims);
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Print, Arc<C>>> {
        // Entries are whole or absent, so the map is sound even after a panic elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claims::AccessClaims;

    fn claims() -> Arc<AccessClaims> {
        let claims = serde_json::json!({
            "iss": "i", "sub": "acme", "aud": "a", "jti": "j", "iat": 1, "nbf": 1, "exp": 2, "scope": "", "client_id": "k", "epoch": 0,
            "limits": {
                "requests_per_minute": 1, "tokens_per_minute": 1, "tokens_burst": 1, "tokens_per_day": 1, "queued_tokens": 1,
                "concurrent_jobs": 1,
            },
        });
        Arc::new(serde_json::from_value(claims).expect("claims"))
    }

    #[test]
    fn a_token_is_known_under_its_own_key_alone() {
        let genuine = Genuine::default();
        genuine.insert(Print::of(&[1; 32], "a.b.c"), claims());
        assert!(genuine.get(&Print::of(&[1; 32], "a.b.c")).is_some());
        assert!(genuine.get(&Print::of(&[2; 32], "a.b.c")).is_none(), "a kid that names another key by now");
        assert!(genuine.get(&Print::of(&[1; 32], "a.b.d")).is_none());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (genuine, claims) = (Genuine::default(), claims());
        for token in 0..=TOKENS_MAX {
            genuine.insert(Print::of(&[1; 32], &token.to_string()), Arc::clone(&claims));
        }
        assert_eq!(genuine.known().len(), 1);
        assert!(genuine.get(&Print::of(&[1; 32], &TOKENS_MAX.to_string())).is_some());
    }
}
