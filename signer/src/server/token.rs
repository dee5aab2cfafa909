//! `POST /oauth/token`: OAuth 2.0 client credentials (RFC 6749, 4.4). An API key in, an access token out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::FormRejection;
use axum::extract::{ConnectInfo, Form, State};
use axum::http::header::CACHE_CONTROL;
use axum::http::{HeaderMap, HeaderName};
use axum::response::IntoResponse;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::error::ApiError;
use super::{App, auth};
use crate::claims::Scope;
use crate::mint::{ACCESS_LIFETIME_S, AccessRequest};
use crate::store::StoredKey;
use crate::time::unix_now;
use crate::wire::TokenResponse;

/// Longest list of scopes: several times as long as one with all of them.
const SCOPE_LEN_MAX: usize = 512;

/// Longest wait for the second in which a token would not be void. Tokens are voided a second ahead at most.
const VOID_WAIT_S_MAX: u64 = 2;

/// The form. Unknown parameters are ignored and repeated ones refused, both as RFC 6749 (3.2) asks.
#[derive(Deserialize)]
pub(super) struct TokenForm {
    grant_type: Option<String>,
    pub(super) scope: Option<String>,
    pub(super) client_id: Option<String>,
    pub(super) client_secret: Option<Zeroizing<String>>,
}

pub(super) async fn token(
    State(app): State<Arc<App>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    form: Result<Form<TokenForm>, FormRejection>,
) -> Result<impl IntoResponse, ApiError> {
    let Form(form) = form.map_err(|rejection| {
        ApiError::bad_body(rejection.status(), "the body must be a form of at most 16 KiB with no parameter twice")
    })?;
    match filled(form.grant_type.as_deref()) {
        Some("client_credentials") => {}
        Some(_) => {
            let sentence = "this service knows grant_type=client_credentials only";
            return Err(ApiError::bad_request("unsupported_grant_type", sentence));
        }
        None => return Err(ApiError::bad_request("invalid_request", "grant_type is missing")),
    }

    let mut now = unix_now();
    let mut key = auth::client(&app, &headers, form.client_id.clone(), form.client_secret.clone(), peer).await?;
    let _place = app.tenants.take(&key.info.tenant)?;
    if let Some(wait_s) = void_for_s(&key, now) {
        // Voided by what else the tenant revokes, which is no fault of who holds this key. The key is looked at anew, for it may be
        // among what is revoked meanwhile.
        tokio::time::sleep(Duration::from_secs(wait_s)).await;
        now = unix_now();
        key = auth::client(&app, &headers, form.client_id, form.client_secret, peer).await?;
        if void_for_s(&key, now).is_some() {
            return Err(ApiError::unavailable("this tenant's tokens were voided this second; ask again in the next"));
        }
    }
    let scopes = narrowed(&key.scopes, filled(form.scope.as_deref()))?;

    let tenant = key.info.tenant.clone();
    let request = AccessRequest {
        tenant: key.info.tenant,
        scopes: scopes.clone(),
        key_id: key.info.id,
        client_addr: Some(peer.ip().to_string()),
        limits: key.limits,
        sources: key.sources,
        parent: None,
        epoch: key.epoch,
    };
    let live = app.current.live();
    let (access_token, claims) =
        live.minter()?.mint_access_at(request, now).map_err(|error| ApiError::internal(&error))?;
    tracing::info!(%tenant, key_id = claims.client_id, token_id = claims.jti, "access token minted");
    let body = TokenResponse {
        access_token,
        token_type: "Bearer".to_owned(),
        expires_in: ACCESS_LIFETIME_S,
        scope: Scope::join(&scopes),
        tenant,
    };
    Ok(([(CACHE_CONTROL, "no-store"), (HeaderName::from_static("pragma"), "no-cache")], Json(body)))
}

/// Seconds in which a token of the key would be void as it is minted; a clock that was put back makes them no longer.
fn void_for_s(key: &StoredKey, now: u64) -> Option<u64> {
    (now <= key.tokens_void_until_s).then(|| (key.tokens_void_until_s + 1 - now).min(VOID_WAIT_S_MAX))
}

/// RFC 6749 (3.2): a parameter without a value counts as left out.
pub(super) fn filled(parameter: Option<&str>) -> Option<&str> {
    parameter.filter(|value| !value.is_empty())
}

/// The scopes asked for, if the role has them all; all of the role's if none are named.
pub(super) fn narrowed(role: &[Scope], asked: Option<&str>) -> Result<Vec<Scope>, ApiError> {
    let Some(asked) = asked else { return Ok(role.to_vec()) };
    if asked.len() > SCOPE_LEN_MAX {
        return Err(ApiError::bad_request("invalid_scope", format!("scope may have {SCOPE_LEN_MAX} characters")));
    }
    let mut scopes = Vec::new();
    for name in asked.split(' ').filter(|name| !name.is_empty()) {
        let refused = || ApiError::bad_request("invalid_scope", "a scope is unknown, or this API key's role lacks it");
        let scope = name.parse().map_err(|_| refused())?;
        if !role.contains(&scope) {
            return Err(refused());
        }
        if !scopes.contains(&scope) {
            scopes.push(scope);
        }
    }
    if scopes.is_empty() { Ok(role.to_vec()) } else { Ok(scopes) }
}

#[cfg(test)]
mod fuzz {
    use proptest::prelude::*;

    use super::super::fuzz;

    proptest! {
        #[test]
        fn any_body_is_a_form_or_refused(body in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            "((grant_type|scope|client_id|client_secret|x)(=|%3D|&|\\+|%|%0|%00|%ff|a){0,3}&?){0,8}".prop_map(String::into_bytes),
        ]) {
            fuzz::form(&body);
        }

        #[test]
        fn a_parameter_stands_once(name in "grant_type|scope|client_id|client_secret", one in "[a-z]{0,4}", other in "[a-z]{0,4}") {
            let (once, twice) = (format!("{name}={one}"), format!("{name}={one}&{name}={other}"));
            prop_assert!(fuzz::token_form(once.into_bytes()).is_some());
            prop_assert!(fuzz::token_form(twice.into_bytes()).is_none());
        }
    }
}
