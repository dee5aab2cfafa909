//! The signer's public keys, fetched and cached.
//!
//! A key the cache knows is served without waiting. A `kid` it doesn't know causes at most one fetch in ten seconds, so a
//! flood of invented `kid`s can't be turned against the signer. While the signer is down the last set serves for an hour.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use reqwest::{Client, StatusCode, Url};

use crate::edge::{self, ClientTls};
use crate::http::{self, AddressError};
use crate::keys::{KeySet, PublicKey};
use crate::refusal::Refusal;

/// Age at which the set is fetched again. The signer publishes a new key this long before it signs with it, so every
/// verifier has seen it by then.
const FRESH_FOR: Duration = Duration::from_secs(300);
/// Age past which a set that could not be renewed is no longer believed. A withdrawn key is refused long before, by the
/// statement of revocations.
const STALE_FOR_MAX: Duration = Duration::from_secs(3600);
/// At most one fetch in this time, whatever tokens come in.
const FETCH_EVERY_MIN: Duration = Duration::from_secs(10);

/// A cached view of the signer's JWK Set. Clones share the cache.
#[derive(Debug, Clone)]
pub struct RemoteKeys(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    http: Client,
    url: Url,
    revocations_url: Url,
    cache: Mutex<Cache>,
    /// Held while fetching: one fetch at a time, however many wait for it.
    flight: tokio::sync::Mutex<()>,
}

impl RemoteKeys {
    /// Keys of the signer at `signer_url`, such as `https://signer.internal:8700`. Connects at first use.
    pub fn new(signer_url: &str) -> Result<Self, AddressError> {
        Self::with_tls(signer_url, &ClientTls::default())
    }

    /// The same, trusting and showing what `tls` says.
    pub fn with_tls(signer_url: &str, tls: &ClientTls) -> Result<Self, AddressError> {
        let base = http::base_url(signer_url, tls)?;
        let (url, revocations_url) =
            (http::join(&base, ".well-known/jwks.json"), http::join(&base, "v1/revocations/2"));
        let http = http::client(tls)?;
        Ok(Self(Arc::new(Shared { http, url, revocations_url, cache: Mutex::default(), flight: <_>::default() })))
    }

    /// The client, and where the same signer publishes what it has revoked.
    pub(crate) fn revocations(&self) -> (&Client, &Url) {
        (&self.0.http, &self.0.revocations_url)
    }

    /// The key named `kid`, asking the signer now if it is not at hand, however short a time ago it was asked: only for
    /// what the signer itself names, and for who asks seldom.
    pub(crate) async fn public_now(&self, kid: &str) -> Result<PublicKey, Refusal> {
        if !self.0.cache().knows(kid, Instant::now()) {
            let _flight = self.0.flight.lock().await;
            let outcome = self.0.fetch().await;
            self.0.cache().record(outcome, Instant::now());
        }
        self.0.cache().answer(kid, Instant::now())
    }

    /// Whether there is a believable set, fetching one if need be.
    pub(crate) async fn ready(&self) -> Result<(), Refusal> {
        if self.0.cache().believable(Instant::now()) {
            return Ok(());
        }
        // The empty kid is never in a set: the answer is about the set alone.
        match self.public("").await {
            Err(unavailable @ Refusal::KeysUnavailable(_)) => Err(unavailable),
            _ => Ok(()),
        }
    }

    /// The key named `kid`.
    pub(crate) async fn public(&self, kid: &str) -> Result<PublicKey, Refusal> {
        let choice = self.0.cache().choose(kid, Instant::now());
        match choice {
            Choice::Done(answer) => answer,
            Choice::FetchFirst => self.fetched(kid, false).await,
            Choice::FetchThenUse => self.fetched(kid, true).await,
        }
    }

    /// Fetches in a task of its own: a caller that goes away must not undo the fetch, or leaving early would defeat the
    /// limit on fetches.
    async fn fetched(&self, kid: &str, only_if_idle: bool) -> Result<PublicKey, Refusal> {
        let shared = Arc::clone(&self.0);
        let name = kid.to_owned();
        let fetch = tokio::spawn(async move {
            let _flight = if only_if_idle {
                match shared.flight.try_lock() {
                    Ok(flight) => flight,
                    // Someone is fetching; the key at hand is still good.
                    Err(_) => return,
                }
            } else {
                shared.flight.lock().await
            };
            // Whoever held the flight before may have fetched already.
            if !matches!(shared.cache().choose(&name, Instant::now()), Choice::Done(_)) {
                let outcome = shared.fetch().await;
                shared.cache().record(outcome, Instant::now());
            }
        });
        if fetch.await.is_err() {
            return Err(Refusal::KeysUnavailable("the fetch was aborted".to_owned()));
        }
        self.0.cache().answer(kid, Instant::now())
    }
}

impl Shared {
    fn cache(&self) -> MutexGuard<'_, Cache> {
        // The cache is replaced whole, so it is sound even after a panic elsewhere.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn fetch(&self) -> Result<KeySet, String> {
        let response =
            self.http.get(self.url.clone()).send().await.map_err(|error| edge::explain(&error.without_url()))?;
        if response.status() != StatusCode::OK {
            return Err(format!("the signer answered {}", response.status()));
        }
        let body =
            http::body(response, http::BODY_LEN_MAX).await.map_err(|error| edge::explain(&error.without_url()))?;
        let body = body.ok_or("the signer's key set is too large")?;
        match KeySet::from_jwks(&body) {
            Ok(keys) if keys.is_empty() => Err("the signer publishes no key".to_owned()),
            Ok(keys) => Ok(keys),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// What to do about one `kid`.
enum Choice {
    /// The answer is known.
    Done(Result<PublicKey, Refusal>),
    /// Nothing can be said before a fetch.
    FetchFirst,
    /// The key is known but its set is due for renewal: fetch, and use the key if that fails.
    FetchThenUse,
}

/// The rules of the cache, free of I/O and of any clock of their own.
#[derive(Debug, Default)]
struct Cache {
    keys: KeySet,
    renewed: Option<Instant>,
    tried: Option<Instant>,
    /// What the last fetch failed with; `None` after a success.
    failure: Option<String>,
}

impl Cache {
    fn choose(&self, kid: &str, now: Instant) -> Choice {
        let age =
            |moment: Option<Instant>| moment.map_or(Duration::MAX, |moment| now.saturating_duration_since(moment));
        let known = self.knows(kid, now);
        if age(self.tried) < FETCH_EVERY_MIN || (known && age(self.renewed) < FRESH_FOR) {
            return Choice::Done(self.answer(kid, now));
        }
        if known { Choice::FetchThenUse } else { Choice::FetchFirst }
    }

    fn knows(&self, kid: &str, now: Instant) -> bool {
        self.believable(now) && self.keys.contains(kid)
    }

    fn believable(&self, now: Instant) -> bool {
        self.renewed.is_some_and(|at| now.saturating_duration_since(at) < STALE_FOR_MAX)
    }

    /// The answer from what is at hand.
    fn answer(&self, kid: &str, now: Instant) -> Result<PublicKey, Refusal> {
        let believable = self.believable(now);
        if let Some(key) = self.keys.public(kid).filter(|_| believable) {
            return Ok(key);
        }
        match &self.failure {
            // The signer could not be asked, so a kid that is not here may well be there.
            Some(failure) => Err(Refusal::KeysUnavailable(failure.clone())),
            None if believable => Err(Refusal::UnknownKey),
            None => Err(Refusal::KeysUnavailable("no key set has been fetched".to_owned())),
        }
    }

    fn record(&mut self, outcome: Result<KeySet, String>, now: Instant) {
        self.tried = Some(now);
        match outcome {
            Ok(keys) => {
                self.keys = keys;
                self.renewed = Some(now);
                self.failure = None;
            }
            Err(failure) => {
                tracing::warn!(%failure, "the signer's public keys could not be fetched");
                self.failure = Some(failure);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::SigningKey;

    const SECOND: Duration = Duration::from_secs(1);

    fn one_key() -> (String, KeySet) {
        let key = SigningKey::generate().expect("random source");
        let mut keys = KeySet::default();
        keys.insert(*key.public());
        (key.kid().to_owned(), keys)
    }

    fn fetches(cache: &Cache, kid: &str, now: Instant) -> bool {
        !matches!(cache.choose(kid, now), Choice::Done(_))
    }

    #[test]
    fn a_known_key_is_renewed_after_five_minutes_and_served_for_an_hour() {
        let (kid, keys) = one_key();
        let start = Instant::now();
        let mut cache = Cache::default();
        assert!(matches!(cache.choose(&kid, start), Choice::FetchFirst));
        cache.record(Ok(keys), start);

        assert!(matches!(cache.choose(&kid, start + FRESH_FOR - SECOND), Choice::Done(Ok(_))));
        let due = start + FRESH_FOR;
        assert!(matches!(cache.choose(&kid, due), Choice::FetchThenUse));

        cache.record(Err("down".to_owned()), due);
        assert!(matches!(cache.choose(&kid, due), Choice::Done(Ok(_))), "served while the signer is down");
        assert!(fetches(&cache, &kid, due + FETCH_EVERY_MIN), "asked again after ten seconds");
        assert!(cache.answer(&kid, start + STALE_FOR_MAX - SECOND).is_ok());
        let late = cache.answer(&kid, start + STALE_FOR_MAX).expect_err("stale");
        assert!(late.is_transient(), "{late}");
    }

    #[test]
    fn an_unknown_kid_costs_one_fetch_in_ten_seconds() {
        let (kid, keys) = one_key();
        let start = Instant::now();
        let mut cache = Cache::default();
        cache.record(Ok(keys), start);

        let soon = start + FETCH_EVERY_MIN - SECOND;
        assert!(matches!(cache.choose("other", soon), Choice::Done(Err(Refusal::UnknownKey))));
        assert!(matches!(cache.choose("other", start + FETCH_EVERY_MIN), Choice::FetchFirst));
        assert!(matches!(cache.choose(&kid, start + FETCH_EVERY_MIN), Choice::Done(Ok(_))));

        let (new_kid, new_keys) = one_key();
        cache.record(Ok(new_keys), start + FETCH_EVERY_MIN);
        assert!(cache.answer(&new_kid, start + FETCH_EVERY_MIN).is_ok(), "rotation is picked up");
        assert_eq!(
            cache.answer(&kid, start + FETCH_EVERY_MIN).err(),
            Some(Refusal::UnknownKey),
            "a withdrawn key is gone"
        );
    }

    #[test]
    fn an_unknown_kid_while_the_signer_is_down_is_not_refused_for_good() {
        let (kid, keys) = one_key();
        let start = Instant::now();
        let mut cache = Cache::default();
        cache.record(Ok(keys), start);
        cache.record(Err("down".to_owned()), start + FETCH_EVERY_MIN);
        assert!(cache.answer("other", start + FETCH_EVERY_MIN).expect_err("unknown").is_transient());
        assert!(cache.answer(&kid, start + FETCH_EVERY_MIN).is_ok());
    }
}
