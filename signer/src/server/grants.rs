//! `POST /v1/grants`: an access token and a manifest's digest in, a job grant out.

use std::sync::Arc;

use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::header::CACHE_CONTROL;
use axum::response::IntoResponse;
use axum::{Extension, Json};

use super::App;
use super::auth::{self, Caller};
use super::error::ApiError;
use crate::claims::Scope;
use crate::mint::Grantee;
use crate::policy;
use crate::store::NotGranted;
use crate::wire::{GrantRequest, JobGrant};

pub(super) async fn grant(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    request: Result<Json<GrantRequest>, JsonRejection>,
) -> Result<impl IntoResponse, ApiError> {
    let access = &caller.access;
    let Json(request) = request.map_err(|rejection| ApiError::bad_body(rejection.status(), rejection.body_text()))?;
    let granted = app.store.record_grant(access, &request).await.map_err(|refused| match refused {
        NotGranted::Void(reason) => auth::token_refused(&app, caller.peer, Some(access.key_id()), reason),
        NotGranted::NoScope => {
            ApiError::insufficient_scope(format!("the access token lacks the scope {}", Scope::JobsSubmit))
        }
        NotGranted::Denied(denial) if denial.is_policy() => ApiError::access_denied(denial.to_string()),
        NotGranted::Denied(denial) => ApiError::bad_request("invalid_request", denial.to_string()),
        NotGranted::JustRevoked => {
            ApiError::unavailable("the job was revoked this second; submit it again in the next")
        }
        NotGranted::Store(error) => error.into(),
    })?;
    let tenant = granted.tenant;
    let grantee = Grantee {
        lane: policy::lane(&tenant, app.lanes),
        tenant: tenant.id,
        key_id: access.key_id().to_owned(),
        client_addr: Some(caller.peer.ip().to_string()),
        limits: tenant.settings.limits,
        epoch: tenant.epoch,
    };
    let live = app.current.live();
    let minted = live.minter()?.mint_grant_at(grantee, request, granted.issued_s);
    let (grant, claims) = minted.map_err(|error| ApiError::internal(&error))?;
    tracing::info!(tenant = %claims.sub, key_id = claims.key_id, job = %claims.jti, rows = claims.rows, "job grant minted");
    let body = JobGrant { grant, tenant: claims.sub, lane: claims.lane, expires_at: claims.exp };
    Ok(([(CACHE_CONTROL, "no-store")], Json(body)))
}
