//! `POST /v1/grants`: an access token and a manifest's digest in, a job grant out.

use std::sync::Arc;

use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::header::CACHE_CONTROL;
use axum::response::IntoResponse;
use axum::{Extension, Json};

use super::App;
use super::auth::Caller;
use super::error::ApiError;
use crate::mint::Grantee;
use crate::policy;
use crate::time::unix_now;
use crate::wire::{GrantRequest, JobGrant};

pub(super) async fn grant(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    request: Result<Json<GrantRequest>, JsonRejection>,
) -> Result<impl IntoResponse, ApiError> {
    let access = &caller.access;
    let Json(request) = request.map_err(|rejection| ApiError::bad_body(rejection.status(), rejection.body_text()))?;

    let tenant = app.store.tenant(access.tenant()).await?.ok_or_else(ApiError::invalid_token)?;
    policy::check(&tenant.settings, &request).map_err(|denial| {
        if denial.is_policy() {
            ApiError::access_denied(denial.to_string())
        } else {
            ApiError::bad_request("invalid_request", denial.to_string())
        }
    })?;

    let now = unix_now();
    // A grant of the same second as the revocation could not be told from those before it.
    if app.store.job_revoked(&tenant.id, &request.job).await?.is_some_and(|at| at >= now) {
        return Err(ApiError::unavailable("the job was revoked this second; submit it again in the next"));
    }
    app.store.record_grant(&tenant.id, access.key_id(), &request.job, now.saturating_add(request.window_s)).await?;
    let grantee = Grantee {
        lane: policy::lane(&tenant, app.lanes),
        tenant: tenant.id,
        key_id: access.key_id().to_owned(),
        client_addr: Some(caller.peer.ip().to_string()),
        limits: tenant.settings.limits,
        epoch: tenant.epoch,
    };
    let live = app.current.live();
    let (grant, claims) = live.minter()?.mint_grant(grantee, request).map_err(|error| ApiError::internal(&error))?;
    tracing::info!(tenant = %claims.sub, key_id = claims.key_id, job = %claims.jti, rows = claims.rows, "job grant minted");
    let body = JobGrant { grant, tenant: claims.sub, lane: claims.lane, expires_at: claims.exp };
    Ok(([(CACHE_CONTROL, "no-store")], Json(body)))
}
