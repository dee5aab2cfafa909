//! What the signer has in memory of the policy database: the keys, and the documents it publishes. Others may change
//! the database, commands and other signers, so its number is looked at twice a second.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

use axum::body::Bytes;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

use super::error::ApiError;
use crate::mint::{Minter, SigningKey};
use crate::store::{Store, StoreError};
use crate::time::unix_now;
use crate::vault::Vault;
use crate::verify::{Keys, Verifier};

/// Between two looks at the database's number.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// The statement of revocations is signed anew at this age, so that verifiers see that it is still so.
const STATEMENT_AGE_MAX_S: u64 = 5;
/// Looks between two writes of when keys were last used: five seconds.
const LOOKS_PER_FLUSH: u32 = 10;
/// Looks between two removals of revocations that can't matter any more: an hour.
const LOOKS_PER_CLEANING: u32 = 7200;

/// A document and its tag.
#[derive(Debug, Clone)]
pub(super) struct Document {
    pub(super) body: Bytes,
    pub(super) etag: String,
}

impl Document {
    fn new(body: String) -> Self {
        let etag = format!("\"{}\"", URL_SAFE_NO_PAD.encode(&Sha256::digest(&body)[..16]));
        Self { body: body.into(), etag }
    }
}

/// One state of the database.
#[derive(Debug)]
pub(super) struct Live {
    minter: Option<Minter>,
    verifier: Verifier,
    /// The JWK Set document.
    pub(super) jwks: Document,
    /// The statement of revocations.
    pub(super) revocations: Document,
    /// The same for verifiers of before, where it is asked for.
    pub(super) old_revocations: Option<Document>,
    seq: u64,
    /// When it must be made again though nothing was changed, Unix seconds.
    good_until_s: u64,
}

impl Live {
    /// What signs. For some seconds after a signing key was withdrawn there is nothing that may.
    pub(super) fn minter(&self) -> Result<&Minter, ApiError> {
        self.minter.as_ref().ok_or_else(|| StoreError::NoSigningKey.into())
    }

    pub(super) fn verifier(&self) -> &Verifier {
        &self.verifier
    }
}

/// The state in memory, kept up to date by a task that ends when this is dropped.
#[derive(Debug)]
pub(super) struct Current {
    store: Store,
    vault: Arc<Vault>,
    issuer: String,
    mounted: Option<SigningKey>,
    old_revocations: bool,
    live: RwLock<Arc<Live>>,
    /// When keys were used, until it is written. Bounded by the keys there are.
    used: Mutex<HashMap<String, u64>>,
}

impl Current {
    pub(super) async fn start(
        store: Store,
        vault: Arc<Vault>,
        issuer: String,
        mounted: Option<SigningKey>,
        old_revocations: bool,
    ) -> Result<Arc<Self>, StoreError> {
        let live = load(&store, &vault, &issuer, mounted.as_ref(), old_revocations).await?;
        let live = RwLock::new(Arc::new(live));
        let current = Arc::new(Self { store, vault, issuer, mounted, old_revocations, live, used: Mutex::default() });
        tokio::spawn(follow(Arc::downgrade(&current)));
        Ok(current)
    }

    pub(super) fn live(&self) -> Arc<Live> {
        Arc::clone(&self.live.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes that a key was used now.
    pub(super) fn used(&self, key_id: &str) {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(key_id.to_owned(), unix_now());
    }

    /// Takes up what was changed; called at once by whoever changes something here.
    pub(super) async fn refresh(&self) -> Result<(), StoreError> {
        let live = self.live();
        if self.store.seq().await? == live.seq && unix_now() < live.good_until_s {
            return Ok(());
        }
        let made = load(&self.store, &self.vault, &self.issuer, self.mounted.as_ref(), self.old_revocations).await?;
        let mut live = self.live.write().unwrap_or_else(PoisonError::into_inner);
        // Two may be at it; the older state must not win.
        if made.seq >= live.seq {
            *live = Arc::new(made);
        }
        Ok(())
    }

    /// Writes when keys were used.
    pub(super) async fn flush(&self) {
        let used = std::mem::take(&mut *self.used.lock().unwrap_or_else(PoisonError::into_inner));
        if let Err(error) = self.store.note_used(&used).await {
            // Worth a line, not a request: the next use notes it again.
            tracing::warn!(error = &error as &dyn std::error::Error, "when keys were used could not be written");
        }
    }
}

async fn follow(current: Weak<Current>) {
    let mut looks: u32 = 0;
    let mut failing = false;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(current) = current.upgrade() else { return };
        looks = looks.wrapping_add(1);
        match current.refresh().await {
            Ok(()) => failing = false,
            Err(error) if !failing => {
                failing = true;
                // What is served meanwhile ages, and verifiers see how old it is.
                tracing::error!(error = &error as &dyn std::error::Error, "the policy database could not be followed");
            }
            Err(_) => {}
        }
        if looks.is_multiple_of(LOOKS_PER_FLUSH) {
            current.flush().await;
        }
        if looks.is_multiple_of(LOOKS_PER_CLEANING)
            && let Err(error) = current.store.forget_revocations().await
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "old revocations could not be removed");
        }
    }
}

async fn load(
    store: &Store,
    vault: &Vault,
    issuer: &str,
    mounted: Option<&SigningKey>,
    old: bool,
) -> Result<Live, StoreError> {
    // The revocations' number is read first: if anything changes in between, it is looked at again.
    let (mut revoked, mut before) = store.revoked(old).await?;
    let keys = store.load_signing_keys(vault, mounted).await?;
    let seq = revoked.seq;
    revoked.kids = keys.published.kids().map(str::to_owned).collect();
    if let Some(before) = &mut before {
        before.kids.clone_from(&revoked.kids);
    }
    let jwks = Document::new(keys.published.to_jwks().to_string());
    let verifier = Verifier::new(issuer.to_owned(), Keys::Fixed(keys.published));
    let minter = |key| Minter::new(issuer.to_owned(), key);
    let (signing, next) = (keys.signing.map(minter), keys.next.map(minter));
    // In the seconds in which none may sign tokens, the next one says so: verifiers get to know it by that.
    let signer = signing.as_ref().or(next.as_ref()).ok_or(StoreError::NoSigningKey)?;
    let failed = |_| StoreError::Vault(crate::vault::VaultError::Crypto);
    let statement = signer.mint_revocations(revoked).map_err(failed)?;
    let before = before.map(|before| signer.mint_old_revocations(before)).transpose().map_err(failed)?;
    Ok(Live {
        minter: signing,
        verifier,
        jwks,
        revocations: Document::new(statement),
        old_revocations: before.map(Document::new),
        seq,
        good_until_s: keys.changes_at_s.min(unix_now() + STATEMENT_AGE_MAX_S),
    })
}
