//! Who asks: an API key shown to the OAuth endpoints, or an access token everywhere else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{ConnectInfo, FromRequestParts as _, RawPathParams, Request, State};
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::authorization::{self, Credentials, Unreadable, basic};
use super::error::ApiError;
use super::tenants::TenantPlace;
use super::{Access, App};
use crate::api_key::ApiKey;
use crate::cidr::Cidr;
use crate::claims::Scope;
use crate::store::StoredKey;
use crate::time::unix_now;
use crate::verify::{Refusal, VerifiedAccess, VerifiedSubmission};

/// Who asks, once its token and the key behind it are found good. Handlers of closed routes get it from the request.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub(super) access: VerifiedAccess,
    /// Whether it administers every tenant.
    pub(super) operator: bool,
    pub(super) peer: SocketAddr,
    /// When the database was asked, Unix seconds: what is made for the caller is of that second.
    pub(super) at_s: u64,
}

impl Caller {
    /// The name in the audit.
    pub(super) fn actor(&self) -> &str {
        self.access.key_id()
    }
}

/// Lets through to a closed route who may, and tells its handler who that is.
pub(super) async fn guard(
    State((app, access)): State<(Arc<App>, Access)>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    match admit(&app, access, peer, request).await {
        Ok((request, _place)) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

async fn admit(
    app: &App,
    access: Access,
    peer: SocketAddr,
    mut request: Request,
) -> Result<(Request, Option<TenantPlace>), ApiError> {
    let scope = match access {
        Access::Open | Access::Client => return Ok((request, None)),
        Access::Scope(scope) => scope,
        Access::Submission => Scope::JobsSubmit,
        Access::TenantAdmin | Access::Operator => Scope::Admin,
    };
    let caller = bearer(app, request.headers(), scope, access == Access::Submission, peer).await?;
    let place = app.tenants.take(caller.access.tenant())?;
    let denied = || ApiError::access_denied("this is for the operator's admins, or for an admin of the tenant named");
    if access == Access::Operator && !caller.operator {
        return Err(denied());
    }
    if access == Access::TenantAdmin && !caller.operator {
        let (mut parts, body) = request.into_parts();
        let params = RawPathParams::from_request_parts(&mut parts, app).await;
        let params = params.map_err(|_| ApiError::not_found())?;
        // Another's tenant and one that isn't there: the same answer. A route without a tenant is about the caller's own.
        let mut named = params.iter().filter(|(name, _)| *name == "tenant");
        if named.any(|(_, tenant)| tenant != caller.access.tenant().as_str()) {
            return Err(denied());
        }
        request = Request::from_parts(parts, body);
    }
    request.extensions_mut().insert(caller);
    Ok((request, Some(place)))
}

/// The bearer, if its token is good (an access token, or a submission token where that will do) and has `scope`, and the key behind it may still be used. An access token lives five
/// minutes: what was revoked or narrowed since must not wait that long.
async fn bearer(
    app: &App,
    headers: &HeaderMap,
    scope: Scope,
    or_submission: bool,
    peer: SocketAddr,
) -> Result<Caller, ApiError> {
    let token = authorization::bearer(headers)?;
    let live = app.current.live();
    let access = match live.verifier().access(token).await {
        Err(Refusal::WrongType) if or_submission => {
            live.verifier().submission(token).await.map(VerifiedSubmission::into_access)
        }
        access => access,
    };
    let access = access.map_err(|refusal| token_refused(app, peer, None, refusal.code()))?;
    let at_s = unix_now();
    let standing = app.store.standing(&access).await?;
    let key = standing.map_err(|reason| token_refused(app, peer, Some(access.key_id()), reason))?;
    // A gateway asks for others, and holds them to the sources in the token.
    if !is_gateway(app, peer) && !is_source(&key.sources, peer) {
        tracing::warn!(key_id = access.key_id(), client_addr = %peer.ip(), "address refused");
        return Err(ApiError::access_denied("this tenant's requests may not come from this address"));
    }
    // The role is asked again too: it may have been narrowed since the token was minted.
    if !access.has_scope(scope) || !key.scopes.contains(&scope) {
        return Err(ApiError::insufficient_scope(format!("the access token lacks the scope {scope}")));
    }
    app.current.used(access.key_id());
    Ok(Caller { operator: key.operator, access, peer, at_s })
}

/// The one answer to a token that is not good. Why it is not is for the log, at a bounded rate: anybody can cause it.
pub(super) fn token_refused(app: &App, peer: SocketAddr, key_id: Option<&str>, reason: &str) -> ApiError {
    if let Some(unsaid) = app.log_of_floods.line(Instant::now()) {
        tracing::warn!(key_id, reason, unsaid, client_addr = %peer.ip(), "access token refused");
    }
    ApiError::invalid_token()
}

/// Whether a gateway asks.
fn is_gateway(app: &App, peer: SocketAddr) -> bool {
    app.gateways.iter().any(|gateway| gateway.contains(peer.ip()))
}

/// Whether a socket of this address may ask. The address is the socket's: headers that name another can be written by
/// anybody.
fn is_source(sources: &[Cidr], peer: SocketAddr) -> bool {
    sources.is_empty() || sources.iter().any(|source| source.contains(peer.ip()))
}

/// The API key shown with HTTP Basic or in the form, if it is genuine, may be used now, and comes from where it may.
pub(super) async fn client(
    app: &App,
    headers: &HeaderMap,
    id: Option<String>,
    secret: Option<Zeroizing<String>>,
    peer: SocketAddr,
) -> Result<StoredKey, ApiError> {
    let credentials = credentials(headers, id, secret)?;
    let key = authenticate(app, &credentials, peer).await?;
    // Told only to whoever has the key. A gateway asks for others, and holds them to the sources in the token.
    if !is_gateway(app, peer) && !is_source(&key.sources, peer) {
        tracing::warn!(key_id = key.info.id, client_addr = %peer.ip(), "address refused");
        let sentence = "this tenant's requests may not come from this address";
        return Err(ApiError::bad_request("unauthorized_client", sentence));
    }
    app.current.used(&key.info.id);
    Ok(key)
}

/// The credentials, from HTTP Basic or from the form, never from both.
pub(super) fn credentials(
    headers: &HeaderMap,
    id: Option<String>,
    secret: Option<Zeroizing<String>>,
) -> Result<Credentials, ApiError> {
    let Some(shown) = basic(headers).map_err(|Unreadable| ApiError::invalid_client())? else {
        let (Some(id), Some(secret)) = (id, secret) else { return Err(ApiError::invalid_client()) };
        return Ok(Credentials { id: Zeroizing::new(id), secret });
    };
    if secret.is_some() {
        let sentence = "the API key must come in the Authorization header or in the body, not in both";
        return Err(ApiError::bad_request("invalid_request", sentence));
    }
    if id.is_some_and(|id| id != *shown.id) {
        let sentence = "client_id in the body is not the one in the Authorization header";
        return Err(ApiError::bad_request("invalid_request", sentence));
    }
    Ok(shown)
}

/// The key, if it is genuine and may be used now.
async fn authenticate(app: &App, credentials: &Credentials, peer: SocketAddr) -> Result<StoredKey, ApiError> {
    let shown = shown_key(credentials);
    let wait_s = app.failed_logins.wait_s(peer.ip(), shown.as_ref(), Instant::now());
    // Whoever fails at a gateway must not lock out everybody else there: it counts its callers' failures itself.
    if let Some(wait_s) = wait_s.filter(|_| !is_gateway(app, peer)) {
        if let Some(unsaid) = app.log_of_floods.line(Instant::now()) {
            tracing::warn!(wait_s, unsaid, client_addr = %peer.ip(), "login refused: too many have failed");
        }
        return Err(ApiError::too_many_failures(wait_s));
    }
    let refuse = |reason: &'static str| {
        app.failed_logins.failed(peer.ip(), shown.as_ref(), Instant::now());
        let key_id = shown.as_ref().map_or("", ApiKey::id);
        tracing::warn!(key_id, reason, client_addr = %peer.ip(), "API key refused");
        ApiError::invalid_client()
    };
    let Some(shown) = &shown else { return Err(refuse("not an API key")) };
    let stored = app.store.find_key(shown.id()).await?;
    // An unknown id goes the same way as a known one, so that time does not tell them apart.
    let expected = stored.as_ref().map_or([0; 32], |key| key.digest);
    let genuine = bool::from(app.vault.digest(shown).ct_eq(&expected));
    match stored {
        None => Err(refuse("unknown key")),
        Some(_) if !genuine => Err(refuse("wrong secret")),
        Some(key) => match key.barred(unix_now()) {
            Some(reason) => Err(refuse(reason)),
            None => {
                app.failed_logins.worked(shown, Instant::now());
                Ok(key)
            }
        },
    }
}

/// The key that the credentials spell. `client_secret` may be the whole API key, which is what people have at hand, or
/// what follows the id in it.
pub(super) fn shown_key(credentials: &Credentials) -> Option<ApiKey> {
    let secret = credentials.secret.as_str();
    let key = secret.parse::<ApiKey>().or_else(|_| {
        let whole = Zeroizing::new(format!("vm_{}_{secret}", credentials.id.as_str()));
        whole.parse()
    });
    key.ok().filter(|key: &ApiKey| key.id() == credentials.id.as_str())
}
