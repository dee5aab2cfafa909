//! Checking tokens. The only place where a [`VerifiedAccess`] or [`VerifiedGrant`] is made, so that holding one is proof.
//!
//! The order is fixed, cheap and untrusting first: length, header (pinned algorithm, exact type, no field that steers the
//! check), key from the pinned set, signature, then typed claims, issuer and audience, then times, then revocation. Of an access or embed
//! token that was seen before, signature and claims are remembered; the rest is checked at every sight.

mod verified;

use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use serde::de::DeserializeOwned;

use crate::claims::{
    ACCESS_AUDIENCE, ACCESS_TYPE, AccessClaims, EMBED_AUDIENCE, EMBED_TYPE, EmbedClaims, GRANT_AUDIENCE, GRANT_TYPE,
    GrantClaims, JobId, REVOCATIONS_AUDIENCE, RevocationClaims, SUBMISSION_AUDIENCE, SUBMISSION_TYPE, Scope,
};
use crate::genuine::{Genuine, Print};
use crate::header::{is_kid, kid_of};
pub use crate::http::AddressError;
pub use crate::keys::KeySet;
use crate::keys::PublicKey;
use crate::mint::{EMBED_LIFETIME_S, SUBMISSION_LIFETIME_S, install_crypto};
pub use crate::refusal::Refusal;
pub use crate::remote_keys::RemoteKeys;
use crate::revocations::{Feed, Subject};
use crate::time::unix_now;
pub use verified::{RevokedGrant, VerifiedAccess, VerifiedEmbed, VerifiedGrant, VerifiedSubmission};

/// Longest token that is parsed at all. Ours are under 1 KiB; a 20 MB claim would cost seconds to refuse.
const TOKEN_LEN_MAX: usize = 8 * 1024;
/// Clocks of two machines may differ by this much. NTP keeps them far closer.
pub(crate) const LEEWAY_S: u64 = 30;
/// An access token never lives longer: twice what we mint, to allow for a setting.
pub(crate) const ACCESS_LIFETIME_S_MAX: u64 = 600;
/// A grant never lives longer: a completion window of a week, and a day for what was submitted late.
pub(crate) const GRANT_LIFETIME_S_MAX: u64 = 8 * 24 * 3600;

/// Where public keys come from.
#[derive(Debug, Clone)]
pub enum Keys {
    /// Known at start: local mode, tests, and the signer itself.
    Fixed(KeySet),
    /// Fetched from the signer and cached.
    Remote(RemoteKeys),
}

/// How old the signer's statement of revocations may be where nothing else is set: an outage of the signer of this length
/// stops nobody, and a revocation that can't reach a verifier counts after it at the latest.
pub const STALENESS_MAX: Duration = Duration::from_secs(300);

/// Checks tokens of one issuer. Cheap to clone; clones share what they know. With [`Keys::Remote`] it also follows what
/// the signer revokes: whoever verifies tokens can't forget to.
#[derive(Debug, Clone)]
pub struct Verifier {
    issuer: String,
    keys: Keys,
    feed: Option<Feed>,
    genuine: Genuine<AccessClaims>,
    genuine_embed: Genuine<EmbedClaims>,
}

impl Verifier {
    /// A verifier of the tokens that `issuer` signs with `keys`.
    pub fn new(issuer: String, keys: Keys) -> Self {
        install_crypto();
        let feed = match &keys {
            Keys::Fixed(_) => None,
            Keys::Remote(remote) => Some(Feed::new(issuer.clone(), remote.clone(), STALENESS_MAX)),
        };
        Self { issuer, keys, feed, genuine: Genuine::default(), genuine_embed: Genuine::default() }
    }

    /// The same with another bound than [`STALENESS_MAX`] on the age of the statement of revocations.
    pub fn with_staleness_max(mut self, staleness_max: Duration) -> Self {
        if let Keys::Remote(remote) = &self.keys {
            self.feed = Some(Feed::new(self.issuer.clone(), remote.clone(), staleness_max));
        }
        self
    }

    /// Checks an access token against the clock.
    pub async fn access(&self, token: &str) -> Result<VerifiedAccess, Refusal> {
        self.access_at(token, unix_now()).await
    }

    /// Checks an access token as of a stated time, Unix seconds.
    pub async fn access_at(&self, token: &str, now: u64) -> Result<VerifiedAccess, Refusal> {
        self.access_of(token, ACCESS_TYPE, ACCESS_AUDIENCE, ACCESS_LIFETIME_S_MAX, now).await
    }

    /// Checks a submission token against the clock. Only the signer takes them.
    pub async fn submission(&self, token: &str) -> Result<VerifiedSubmission, Refusal> {
        self.submission_at(token, unix_now()).await
    }

    /// Checks a submission token as of a stated time, Unix seconds.
    pub async fn submission_at(&self, token: &str, now: u64) -> Result<VerifiedSubmission, Refusal> {
        let submission =
            self.access_of(token, SUBMISSION_TYPE, SUBMISSION_AUDIENCE, SUBMISSION_LIFETIME_S, now).await?;
        if submission.scope() != Scope::JobsSubmit.as_str() {
            return Err(Refusal::BadClaims);
        }
        Ok(VerifiedSubmission(submission))
    }

    /// Checks an embed token against the clock: what a worker's synchronous path takes.
    pub async fn embed(&self, token: &str) -> Result<VerifiedEmbed, Refusal> {
        self.embed_at(token, unix_now()).await
    }

    /// Checks an embed token as of a stated time, Unix seconds.
    pub async fn embed_at(&self, token: &str, now: u64) -> Result<VerifiedEmbed, Refusal> {
        let (kid, key) = self.key_for(token, EMBED_TYPE).await?;
        let claims = self.genuine(&self.genuine_embed, token, &key, EMBED_AUDIENCE, |claims: &EmbedClaims| {
            self.check(&claims.iss, &claims.aud, EMBED_AUDIENCE)?;
            let named = is_token_id(&claims.jti) && is_token_id(&claims.parent) && is_kid(&claims.client_id);
            if named && !claims.model.is_empty() && claims.dimensions_max > 0 {
                Ok(())
            } else {
                Err(Refusal::BadClaims)
            }
        })?;
        Times { iat: claims.iat, nbf: claims.nbf, exp: claims.exp }.check(EMBED_LIFETIME_S, now)?;
        let embed = VerifiedEmbed { kid, claims };
        self.judge(&embed.subject())?;
        Ok(embed)
    }

    async fn access_of(
        &self,
        token: &str,
        typ: &str,
        audience: &str,
        lifetime_s_max: u64,
        now: u64,
    ) -> Result<VerifiedAccess, Refusal> {
        let (kid, key) = self.key_for(token, typ).await?;
        let claims = self.genuine(&self.genuine, token, &key, audience, |claims: &AccessClaims| {
            self.check(&claims.iss, &claims.aud, audience)?;
            // Only what is made with an access token has a parent.
            let parent = claims.parent.as_deref().is_none_or(|parent| typ == SUBMISSION_TYPE && is_token_id(parent));
            if is_token_id(&claims.jti) && is_kid(&claims.client_id) && parent {
                Ok(())
            } else {
                Err(Refusal::BadClaims)
            }
        })?;
        Times { iat: claims.iat, nbf: claims.nbf, exp: claims.exp }.check(lifetime_s_max, now)?;
        let access = VerifiedAccess { kid, claims };
        self.judge(&access.subject())?;
        Ok(access)
    }

    /// What a token says that `key` signed: everything that is the same at every sight of it. Its type is in what was signed,
    /// so one that is remembered was remembered under this audience.
    fn genuine<C: DeserializeOwned>(
        &self,
        known: &Genuine<C>,
        token: &str,
        key: &PublicKey,
        audience: &str,
        check: impl FnOnce(&C) -> Result<(), Refusal>,
    ) -> Result<Arc<C>, Refusal> {
        let print = Print::of(key, token);
        if let Some(claims) = known.get(&print) {
            return Ok(claims);
        }
        let claims: C = self.checked(token, key, audience)?;
        check(&claims)?;
        let claims = Arc::new(claims);
        known.insert(print, Arc::clone(&claims));
        Ok(claims)
    }

    /// Checks a job grant against the clock. The manifest's digest is the caller's next step.
    pub async fn grant(&self, token: &str) -> Result<VerifiedGrant, Refusal> {
        self.grant_at(token, unix_now()).await
    }

    /// Checks a job grant as of a stated time, Unix seconds: what a replay of an audit asks.
    pub async fn grant_at(&self, token: &str, now: u64) -> Result<VerifiedGrant, Refusal> {
        let grant = self.genuine_grant(token, now).await?;
        self.judge(&grant.subject())?;
        Ok(grant)
    }

    /// Checks a job grant like [`Verifier::grant`], and of one that is in order but for its revocation gives what is needed
    /// to tell its job so.
    pub async fn grant_or_revoked(&self, token: &str) -> Result<Result<VerifiedGrant, RevokedGrant>, Refusal> {
        let grant = self.genuine_grant(token, unix_now()).await?;
        match self.judge(&grant.subject()) {
            Ok(()) => Ok(Ok(grant)),
            // Whoever has a withdrawn key may have made the grant: it says nothing about any job.
            Err(refusal) if refusal.is_transient() || refusal == Refusal::SigningKeyWithdrawn => Err(refusal),
            Err(refusal) => Ok(Err(RevokedGrant { grant, refusal })),
        }
    }

    /// Everything but whether it was revoked.
    async fn genuine_grant(&self, token: &str, now: u64) -> Result<VerifiedGrant, Refusal> {
        let (kid, key) = self.key_for(token, GRANT_TYPE).await?;
        let claims: GrantClaims = self.checked(token, &key, GRANT_AUDIENCE)?;
        self.check(&claims.iss, &claims.aud, GRANT_AUDIENCE)?;
        Times { iat: claims.iat, nbf: claims.nbf, exp: claims.exp }.check(GRANT_LIFETIME_S_MAX, now)?;
        // A run is one of a life: the one without the other names nothing.
        let half_a_run = claims.life.is_some() != claims.run.is_some();
        if claims.dimensions == 0 || claims.model.is_empty() || !is_kid(&claims.key_id) || half_a_run {
            return Err(Refusal::BadClaims);
        }
        Ok(VerifiedGrant { kid, claims })
    }

    /// Whether a grant that passed was revoked since, as far as is known now: no I/O, for a last look before work on it
    /// begins and before its results are written. That little is known of late is no reason to throw finished work away.
    pub fn recheck(&self, grant: &VerifiedGrant) -> Result<(), Refusal> {
        self.judge(&grant.subject()).or_else(|refusal| if refusal.is_transient() { Ok(()) } else { Err(refusal) })
    }

    /// Whether keys and a statement of revocations are at hand, fetching them if need be: for a readiness probe, and to
    /// fail early at start.
    pub async fn ready(&self) -> Result<(), Refusal> {
        match &self.keys {
            Keys::Fixed(keys) if keys.is_empty() => Err(Refusal::KeysUnavailable("no key is configured".to_owned())),
            Keys::Fixed(_) => Ok(()),
            Keys::Remote(remote) => {
                remote.ready().await?;
                match &self.feed {
                    Some(feed) => {
                        feed.heard().await;
                        feed.fresh()
                    }
                    None => Ok(()),
                }
            }
        }
    }

    fn judge(&self, subject: &Subject<'_>) -> Result<(), Refusal> {
        self.feed.as_ref().map_or(Ok(()), |feed| feed.judge(subject))
    }

    /// Length and header, then the pinned key that the header names.
    async fn key_for(&self, token: &str, typ: &str) -> Result<(String, PublicKey), Refusal> {
        if token.len() > TOKEN_LEN_MAX {
            return Err(Refusal::TooLong);
        }
        let kid = kid_of(token, typ)?;
        if let Some(feed) = &self.feed {
            feed.heard().await;
            // Before the keys are asked: a withdrawn one may be gone from them, and this is the better reason.
            feed.judge_kid(&kid)?;
        }
        let key = match &self.keys {
            Keys::Fixed(keys) => keys.public(&kid).ok_or(Refusal::UnknownKey)?,
            Keys::Remote(remote) => remote.public(&kid).await?,
        };
        Ok((kid, key))
    }

    /// Signature, then claims into a struct that refuses unknown, missing, repeated and mistyped ones.
    fn checked<C: DeserializeOwned>(&self, token: &str, key: &PublicKey, audience: &str) -> Result<C, Refusal> {
        decode::<C>(token, &DecodingKey::from_ed_der(key), &pins(&self.issuer, audience))
            .map(|data| data.claims)
            .map_err(refusal)
    }

    /// Issuer and audience once more, on typed values: the library skips an `iss` or `aud` that it can't read.
    fn check(&self, iss: &str, aud: &str, audience: &str) -> Result<(), Refusal> {
        if iss != self.issuer {
            return Err(Refusal::WrongIssuer);
        }
        if aud != audience {
            return Err(Refusal::WrongAudience);
        }
        Ok(())
    }
}

/// Whether `text` has the shape of a token's own id, which is that of a job's.
fn is_token_id(text: &str) -> bool {
    text.parse::<JobId>().is_ok()
}

/// The library's error as one of ours.
fn refusal(error: jsonwebtoken::errors::Error) -> Refusal {
    match error.kind() {
        ErrorKind::InvalidSignature => Refusal::BadSignature,
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => Refusal::WrongAlgorithm,
        ErrorKind::InvalidIssuer => Refusal::WrongIssuer,
        ErrorKind::InvalidAudience => Refusal::WrongAudience,
        ErrorKind::Base64(_) | ErrorKind::InvalidToken | ErrorKind::Utf8(_) => Refusal::Malformed,
        _ => Refusal::BadClaims,
    }
}

/// Reads a statement of revocations that `key` must have signed. Its age and number are the caller's next step.
pub(crate) fn statement(token: &str, key: &PublicKey, issuer: &str) -> Result<RevocationClaims, Refusal> {
    let mut pins = pins(issuer, REVOCATIONS_AUDIENCE);
    // It has no subject and no end of its own.
    pins.set_required_spec_claims(&["iss", "aud"]);
    let claims = decode::<RevocationClaims>(token, &DecodingKey::from_ed_der(key), &pins).map_err(refusal)?.claims;
    if claims.iss != issuer {
        return Err(Refusal::WrongIssuer);
    }
    if claims.aud != REVOCATIONS_AUDIENCE {
        return Err(Refusal::WrongAudience);
    }
    Ok(claims)
}

/// What the library checks: every field is set, none is left to a default. Times are off here because [`Times::check`]
/// does them, with exact boundaries and a stated clock.
fn pins(issuer: &str, audience: &str) -> Validation {
    let mut pins = Validation::new(Algorithm::EdDSA);
    pins.algorithms = vec![Algorithm::EdDSA];
    pins.set_issuer(&[issuer]);
    pins.set_audience(&[audience]);
    pins.set_required_spec_claims(&["exp", "nbf", "iss", "aud", "sub"]);
    pins.sub = None;
    pins.validate_aud = true;
    pins.validate_exp = false;
    pins.validate_nbf = false;
    pins.leeway = 0;
    pins.reject_tokens_expiring_in_less_than = 0;
    pins
}

/// The three times of a token, Unix seconds.
#[derive(Clone, Copy)]
struct Times {
    iat: u64,
    nbf: u64,
    exp: u64,
}

impl Times {
    fn check(self, lifetime_s_max: u64, now: u64) -> Result<(), Refusal> {
        let begin = self.iat.min(self.nbf);
        if self.exp <= self.iat.max(self.nbf) {
            return Err(Refusal::BadClaims);
        }
        if self.exp - begin > lifetime_s_max {
            return Err(Refusal::LifetimeTooLong);
        }
        // RFC 7519: "on or after" `exp` it must not be accepted. Leeway moves the edge, not its kind.
        if now >= self.exp.saturating_add(LEEWAY_S) {
            return Err(Refusal::Expired);
        }
        if now.saturating_add(LEEWAY_S) < self.iat.max(self.nbf) {
            return Err(Refusal::NotYetValid);
        }
        Ok(())
    }
}
