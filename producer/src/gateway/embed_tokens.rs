//! The tokens that go with requests to the workers: for each caller's access token one embed token, which opens the model and
//! nothing else. The access token itself is never sent.
//!
//! One is good for a minute and a half. It is renewed in the background from its last minute on, so that no request waits for
//! the signer, and what there is of it is used while the signer is away.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vecmill_signer::claims::Digest;
use vecmill_signer::client::EmbedToken;

use super::auth::Caller;
use super::error::ApiError;
use super::{App, ids};

/// Access tokens whose embed tokens are kept: each some 2 KiB.
const KEPT_MAX: usize = 10_000;
/// A token with less than this left is renewed, and used meanwhile.
const RENEWED_AT_S: u64 = 60;
/// A token with less than this left is not begun with, unless there is no other: a request is to be answered while it is good.
/// Where a request may take longer, it ends with its token.
const LEFT_S_MAX: u64 = 45;
/// A token with less than this left is of no use: a worker would find it expired.
const LEFT_S_LEAST: u64 = 5;
/// How long the signer is left alone after it could not be asked.
const AWAY_FOR: Duration = Duration::from_secs(1);
/// How long a refusal holds: a tenant that may not use the model asks the gateway, and not the signer, for this long.
const REFUSED_FOR: Duration = Duration::from_secs(5);

/// The tokens at hand.
#[derive(Debug, Default)]
pub(super) struct EmbedTokens {
    /// By the digest of the access token, for a map of tokens would be a list of secrets.
    kept: Mutex<HashMap<Digest, Arc<Kept>>>,
}

/// What is known for one access token.
#[derive(Debug, Default)]
struct Kept {
    known: Mutex<Known>,
    /// Held by whoever asks the signer: one at a time.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Known {
    token: Option<EmbedToken>,
    /// Why not, and when that was said.
    refused: Option<(Instant, ApiError)>,
}

/// What there is for a request that comes now.
enum Look {
    /// A token, and whether it is to be renewed.
    Good(EmbedToken, bool),
    /// No token will come of asking now. One that is short will do.
    Refused(ApiError, Option<EmbedToken>),
    /// The signer must be asked. One that is short will do if it can't be.
    Ask(Option<EmbedToken>),
}

impl App {
    /// A token for requests of this caller's.
    pub(super) async fn embed_token(self: &Arc<Self>, caller: &Caller) -> Result<EmbedToken, ApiError> {
        let kept = self.embed_tokens.of(caller);
        let short = match kept.look(self.left_s_min()) {
            Look::Good(token, false) => return Ok(token),
            Look::Good(token, true) => {
                if kept.asking.try_lock().is_ok() {
                    let (app, caller) = (Arc::clone(self), caller.clone());
                    tokio::spawn(async move { kept.renew(&app, &caller, RENEWED_AT_S).await });
                }
                return Ok(token);
            }
            Look::Refused(refusal, short) => return short.ok_or(refusal),
            Look::Ask(short) => short,
        };
        // Who has one that will do does not stand in line behind who asks already.
        if let Some(short) = &short
            && kept.asking.try_lock().is_err()
        {
            return Ok(short.clone());
        }
        match kept.renew(self, caller, self.left_s_min()).await {
            Err(refusal) if refusal.is_transient() => short.ok_or(refusal),
            renewed => renewed,
        }
    }

    fn left_s_min(&self) -> u64 {
        self.answer_within.as_secs().clamp(LEFT_S_LEAST, LEFT_S_MAX)
    }
}

impl EmbedTokens {
    fn of(&self, caller: &Caller) -> Arc<Kept> {
        let digest = Digest::of(caller.token.as_bytes());
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT_MAX && !kept.contains_key(&digest) {
            let now_s = ids::unix_s();
            kept.retain(|_, kept| kept.known().token.as_ref().is_some_and(|token| token.expires_at > now_s));
            // Still too many: each is asked for again when it is next needed.
            if kept.len() >= KEPT_MAX {
                kept.clear();
            }
        }
        Arc::clone(kept.entry(digest).or_default())
    }
}

impl Kept {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is of a token of which so many seconds must be left.
    fn look(&self, left_s_min: u64) -> Look {
        let known = self.known();
        let left_s = known.token.as_ref().map_or(0, |token| token.expires_at.saturating_sub(ids::unix_s()));
        let usable = known.token.clone().filter(|_| left_s >= LEFT_S_LEAST);
        let recent = known
            .refused
            .as_ref()
            .filter(|(at, refusal)| at.elapsed() < if refusal.is_transient() { AWAY_FOR } else { REFUSED_FOR });
        match (usable, recent) {
            (Some(token), recent) if left_s >= left_s_min => {
                Look::Good(token, left_s < RENEWED_AT_S && recent.is_none())
            }
            (short, Some((_, refusal))) => Look::Refused(refusal.clone(), short),
            (short, None) => Look::Ask(short),
        }
    }

    /// Asks the signer, unless somebody else just has.
    async fn renew(&self, app: &App, caller: &Caller, left_s_min: u64) -> Result<EmbedToken, ApiError> {
        let _asking = self.asking.lock().await;
        match self.look(left_s_min) {
            Look::Good(token, _) => return Ok(token),
            Look::Refused(refusal, _) => return Err(refusal),
            Look::Ask(_) => {}
        }
        let asked = app.auth.embed_token(caller, &app.model).await;
        let mut known = self.known();
        match &asked {
            Ok(token) => *known = Known { token: Some(token.clone()), refused: None },
            Err(refusal) => known.refused = Some((Instant::now(), refusal.clone())),
        }
        asked
    }
}
