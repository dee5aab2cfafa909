//! `POST /v1/grants`: an access token and a manifest's digest in, a job grant out.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{ConnectInfo, State};
use axum::http::HeaderMap;
use axum::http::header::CACHE_CONTROL;
use axum::response::IntoResponse;

use super::App;
use super::authorization::bearer;
use super::error::ApiError;
use crate::claims::Scope;
use crate::mint::Grantee;
use crate::policy;
use crate::time::unix_now;
use crate::verify::VerifiedAccess;
use crate::wire::{GrantRequest, JobGrant};

pub(super) async fn grant(
    State(app): State<Arc<App>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    request: Result<Json<GrantRequest>, JsonRejection>,
) -> Result<impl IntoResponse, ApiError> {
    let access = authorize(&app, &headers, peer).await?;
    let Json(request) = request.map_err(|rejection| ApiError::bad_body(rejection.status(), rejection.body_text()))?;

    let tenant = app.store.tenant(access.tenant()).await?.ok_or_else(ApiError::invalid_token)?;
    policy::check(&tenant.settings, &request).map_err(|denial| {
        if denial.is_policy() {
            ApiError::access_denied(denial.to_string())
        } else {
            ApiError::bad_request("invalid_request", denial.to_string())
        }
    })?;

    app.store.record_grant(&tenant.id, access.key_id(), &request.job).await?;
    let grantee = Grantee {
        lane: policy::lane(&tenant, app.lanes),
        tenant: tenant.id,
        key_id: access.key_id().to_owned(),
        client_addr: Some(peer.ip().to_string()),
        limits: tenant.settings.limits,
        epoch: tenant.epoch,
    };
    let (grant, claims) = app.minter.mint_grant(grantee, request).map_err(|error| ApiError::internal(&error))?;
    tracing::info!(tenant = %claims.sub, key_id = claims.key_id, job = %claims.jti, rows = claims.rows, "job grant minted");
    let body = JobGrant { grant, tenant: claims.sub, lane: claims.lane, expires_at: claims.exp };
    Ok(([(CACHE_CONTROL, "no-store")], Json(body)))
}

/// The bearer's token, if it is good, has `jobs:submit`, and the key behind it may still be used. An access token lives
/// five minutes, a grant a day: a key revoked in between must not get one.
async fn authorize(app: &App, headers: &HeaderMap, peer: SocketAddr) -> Result<VerifiedAccess, ApiError> {
    let token = bearer(headers)?;
    let access = app.verifier.access(token).await.map_err(|refusal| {
        tracing::warn!(reason = refusal.code(), client_addr = %peer.ip(), "access token refused");
        ApiError::invalid_token()
    })?;
    let key = app.store.find_key(access.key_id()).await?;
    let key = key.filter(|key| &key.info.tenant == access.tenant() && key.barred(unix_now()).is_none());
    let Some(key) = key else {
        tracing::warn!(key_id = access.key_id(), reason = "key barred", client_addr = %peer.ip(), "access token refused");
        return Err(ApiError::invalid_token());
    };
    // The role is asked again too: it may have been narrowed since the token was minted.
    if !access.has_scope(Scope::JobsSubmit) || !key.scopes.contains(&Scope::JobsSubmit) {
        return Err(ApiError::insufficient_scope("the access token lacks the scope jobs:submit"));
    }
    Ok(access)
}
