//! Who asks: an API key, exchanged at the signer for an access token that is kept for its few minutes, or an access token.
//! Either way the token is verified here at every request, so what was revoked is heard of within seconds.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use vecmill_signer::claims::Scope;
use vecmill_signer::client::{AccessToken, AddressError, ApiKey, ClientError, EmbedToken, SignerClient};
use vecmill_signer::edge::{ClientTls, FailedLogins};
use vecmill_signer::verify::{VerifiedAccess, Verifier};
use zeroize::Zeroizing;

use super::error::ApiError;
use super::ids;

/// Keys whose tokens are kept: each some 2 KiB.
const TOKENS_MAX: usize = 10_000;
/// A token is exchanged anew when it has less than this left: a request must not outlive it on its way.
const LEFT_S_MIN: u64 = 90;

/// A token with less than this left is used by nobody, also while the signer is away.
const LEFT_S_LEAST: u64 = 5;
/// Longest that a request waits for a new token while its old one is good.
const RENEWED_WITHIN: Duration = Duration::from_secs(2);
/// Keys of one address that are exchanged at the signer at once; the next wait for these. Enough for an office behind one
/// address, and few enough that wrong keys from one address are no load for the signer.
const EXCHANGES_OF_ADDRESS_MAX: usize = 8;

/// Checks credentials.
#[derive(Debug)]
pub(super) struct Auth {
    signer_url: String,
    tls: ClientTls,
    verifier: Verifier,
    failed_logins: FailedLogins,
    /// By the digest of the API key, for a map of keys would be a list of secrets.
    tokens: Mutex<HashMap<[u8; 32], Kept>>,
    /// Who asks the signer at the moment, by address. Bounded by the connections.
    exchanging: Mutex<HashMap<IpAddr, Arc<Semaphore>>>,
}

#[derive(Clone, Debug)]
struct Kept {
    token: Zeroizing<String>,
    expires_at: u64,
}

/// Who asks, and the token to ask others with.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) access: VerifiedAccess,
    pub(super) token: Zeroizing<String>,
    /// The API key, where it was one: for work that outlives the token.
    key: Option<ApiKey>,
    peer: SocketAddr,
}

impl Caller {
    fn access_token(&self) -> AccessToken {
        AccessToken {
            token: self.token.clone(),
            tenant: self.access.tenant().clone(),
            scopes: self.access.scope().split(' ').filter_map(|scope| scope.parse().ok()).collect(),
            expires_at: self.access.expires_at(),
        }
    }
}

impl Auth {
    pub(super) fn new(signer_url: String, tls: ClientTls, verifier: Verifier, failed_logins_per_minute: u32) -> Self {
        let failed_logins = FailedLogins::new(failed_logins_per_minute);
        Self { signer_url, tls, verifier, failed_logins, tokens: Mutex::default(), exchanging: Mutex::default() }
    }

    /// Whether keys and revocations are at hand.
    pub(super) async fn ready(&self) -> Result<(), String> {
        self.verifier.ready().await.map_err(|refusal| refusal.to_string())
    }

    /// The caller, if its credentials are good, come from where they may, and have `scope`.
    pub(super) async fn caller(&self, headers: &HeaderMap, scope: Scope, peer: SocketAddr) -> Result<Caller, ApiError> {
        let mut shown = headers.get_all(AUTHORIZATION).iter();
        // With two, a proxy and we might each believe another.
        let (Some(value), None) = (shown.next(), shown.next()) else { return Err(ApiError::unauthorized()) };
        let (scheme, credential) =
            value.to_str().ok().and_then(|value| value.split_once(' ')).ok_or_else(ApiError::unauthorized)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(ApiError::unauthorized());
        }
        let credential = credential.trim_matches(' ');
        let key = credential.parse::<ApiKey>().ok();
        let (token, access) = match &key {
            Some(key) => self.verified_of(key, peer).await?,
            None => {
                let token = Zeroizing::new(credential.to_owned());
                let access = self.verified(&token, peer).await?;
                (token, access)
            }
        };
        if !access.may_come_from(peer.ip()) {
            tracing::warn!(key_id = access.key_id(), client_addr = %peer.ip(), "address refused");
            return Err(ApiError::forbidden("address_denied", "this tenant's requests may not come from this address"));
        }
        if !access.has_scope(scope) {
            let sentence = format!("the API key's role lacks the scope {scope}");
            return Err(ApiError::forbidden("insufficient_scope", sentence));
        }
        Ok(Caller { access, token, key, peer })
    }

    /// Whether a caller who was let in once still would be.
    pub(super) async fn still_good(&self, caller: &Caller) -> Result<(), ApiError> {
        match &caller.key {
            Some(key) => self.verified_of(key, caller.peer).await.map(drop),
            None => self.verified(&caller.token, caller.peer).await.map(drop),
        }
    }

    /// What to tell a caller that was let in here and refused behind: that its key is good no more, or that its token was taken
    /// back while the key is good.
    pub(super) async fn refused_elsewhere(&self, caller: &Caller) -> ApiError {
        let Some(key) = &caller.key else { return ApiError::unauthorized() };
        self.forget(key, &caller.token);
        match self.exchanged(key.clone(), caller.peer).await {
            Ok(_) => {
                ApiError::unavailable("token_renewed", "the access token of this API key was taken back; ask again")
            }
            Err(refusal) => refusal,
        }
    }

    /// A key's access token, verified. One that was taken back is exchanged anew: many revocations of a tenant are told as one,
    /// which voids tokens of keys that are good.
    async fn verified_of(
        &self,
        key: &ApiKey,
        peer: SocketAddr,
    ) -> Result<(Zeroizing<String>, VerifiedAccess), ApiError> {
        let kept = self.exchanged(key.clone(), peer).await?;
        match self.verified(&kept, peer).await {
            Ok(access) => return Ok((kept, access)),
            Err(refusal) if refusal.is_transient() => return Err(refusal),
            Err(_) => self.forget(key, &kept),
        }
        let token = self.exchanged(key.clone(), peer).await?;
        let access = self.verified(&token, peer).await?;
        Ok((token, access))
    }

    async fn verified(&self, token: &str, peer: SocketAddr) -> Result<VerifiedAccess, ApiError> {
        self.verifier.access(token).await.map_err(|refusal| {
            if refusal.is_transient() {
                return ApiError::unavailable("signer_unavailable", "credentials can't be verified at the moment");
            }
            tracing::warn!(reason = refusal.code(), client_addr = %peer.ip(), "access token refused");
            ApiError::unauthorized()
        })
    }

    /// The signer, asked in the caller's name.
    pub(super) fn signer(&self, caller: &Caller) -> Result<SignerClient, ApiError> {
        match &caller.key {
            Some(key) => SignerClient::with_tls(&self.signer_url, key.clone(), &self.tls).map_err(signer_away),
            None => self.signer_with(caller.access_token()),
        }
    }

    /// The signer, asked with a token.
    pub(super) fn signer_with(&self, token: AccessToken) -> Result<SignerClient, ApiError> {
        SignerClient::with_access_token(&self.signer_url, token, &self.tls).map_err(signer_away)
    }

    /// What goes on asking for grants in the caller's name when the access token at hand is over.
    pub(super) async fn submission(&self, caller: &Caller) -> Result<AccessToken, ApiError> {
        let access = caller.access_token();
        Ok(self.signer_with(access.clone())?.submission(&access).await?)
    }

    /// What goes with the caller's requests to the workers.
    pub(super) async fn embed_token(&self, caller: &Caller, model: &str) -> Result<EmbedToken, ApiError> {
        let access = caller.access_token();
        Ok(self.signer_with(access.clone())?.embed_token(&access, model).await?)
    }

    /// An access token for the key: the one kept, or a new one from the signer.
    async fn exchanged(&self, key: ApiKey, peer: SocketAddr) -> Result<Zeroizing<String>, ApiError> {
        let digest = digest(key.expose());
        if let Some(token) = self.kept(&digest, LEFT_S_MIN) {
            return Ok(token);
        }
        let places = self.exchanging(peer.ip());
        if let Some(kept) = self.kept(&digest, LEFT_S_LEAST) {
            // It still does: it is renewed if that can be had soon.
            let Ok(_place) = places.try_acquire() else { return Ok(kept) };
            return match timeout(RENEWED_WITHIN, self.exchange(key, digest, peer)).await {
                Ok(Err(refusal)) if refusal.is_transient() => Ok(kept),
                Ok(exchanged) => exchanged,
                Err(_) => Ok(kept),
            };
        }
        let _place = places.acquire().await.map_err(|_| ApiError::unauthorized())?;
        // Whoever was before may have had the same key.
        match self.kept(&digest, LEFT_S_MIN) {
            Some(token) => Ok(token),
            None => self.exchange(key, digest, peer).await,
        }
    }

    /// The token that is kept for a key, if it has so many seconds left.
    fn kept(&self, digest: &[u8; 32], left_s: u64) -> Option<Zeroizing<String>> {
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.get(digest).filter(|kept| kept.expires_at > ids::unix_s() + left_s).map(|kept| kept.token.clone())
    }

    fn exchanging(&self, address: IpAddr) -> Arc<Semaphore> {
        let mut exchanging = self.exchanging.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody's any more.
        exchanging.retain(|_, places| Arc::strong_count(places) > 1);
        Arc::clone(exchanging.entry(address).or_insert_with(|| Arc::new(Semaphore::new(EXCHANGES_OF_ADDRESS_MAX))))
    }

    /// Asks the signer for an access token.
    async fn exchange(&self, key: ApiKey, digest: [u8; 32], peer: SocketAddr) -> Result<Zeroizing<String>, ApiError> {
        if let Some(wait_s) = self.failed_logins.wait_s(peer.ip(), Some(&key), Instant::now()) {
            let sentence =
                format!("too many logins from this address or with this API key have failed; wait {wait_s} s");
            return Err(ApiError::limited("too_many_failed_logins", sentence, wait_s * 1000));
        }
        let client = SignerClient::with_tls(&self.signer_url, key.clone(), &self.tls)
            .map_err(|_| ApiError::unavailable("signer_unavailable", "API keys can't be checked at the moment"))?;
        let token = client.access_token(&[]).await.map_err(|error| {
            if matches!(error, ClientError::Refused { status: 401, .. }) {
                self.failed_logins.failed(peer.ip(), Some(&key), Instant::now());
                tracing::warn!(key_id = key.id(), client_addr = %peer.ip(), "API key refused");
            }
            ApiError::from(error)
        })?;
        self.failed_logins.worked(&key, Instant::now());
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= TOKENS_MAX {
            let now = ids::unix_s();
            tokens.retain(|_, kept| kept.expires_at > now + LEFT_S_MIN);
            // Still too many: each is exchanged again when it is next shown.
            if tokens.len() >= TOKENS_MAX {
                tokens.clear();
            }
        }
        tokens.insert(digest, Kept { token: token.token.clone(), expires_at: token.expires_at });
        Ok(token.token)
    }

    /// Drops what is kept for a key, where it is still this token, which is not good any more.
    fn forget(&self, key: &ApiKey, token: &str) {
        let digest = digest(key.expose());
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.get(&digest).is_some_and(|kept| *kept.token == *token) {
            tokens.remove(&digest);
        }
    }
}

fn signer_away(_: AddressError) -> ApiError {
    ApiError::unavailable("signer_unavailable", "the signer can't be asked at the moment")
}

fn digest(credential: &str) -> [u8; 32] {
    Sha256::digest(credential).into()
}
