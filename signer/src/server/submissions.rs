//! `POST /v1/submissions`: an access token in, a submission token out. For who cuts a corpus into chunks in the name of another:
//! that may outlast the access token, and whoever goes on with it after a crash has no other credential.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CACHE_CONTROL;
use axum::response::IntoResponse;
use axum::{Extension, Json};

use super::App;
use super::auth::Caller;
use super::error::ApiError;
use crate::claims::Scope;
use crate::mint::AccessRequest;
use crate::wire::Submission;

pub(super) async fn submission(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
) -> Result<impl IntoResponse, ApiError> {
    let access = &caller.access;
    let request = AccessRequest {
        tenant: access.tenant().clone(),
        scopes: vec![Scope::JobsSubmit],
        key_id: access.key_id().to_owned(),
        client_addr: Some(caller.peer.ip().to_string()),
        limits: access.limits(),
        // Shown by the gateway; where its caller may be was asked when the batch was made.
        sources: Vec::new(),
        parent: Some(access.token_id().to_owned()),
        epoch: access.epoch(),
    };
    let live = app.current.live();
    let (submission, claims) =
        live.minter()?.mint_submission_at(request, caller.at_s).map_err(|error| ApiError::internal(&error))?;
    tracing::info!(tenant = %claims.sub, key_id = claims.client_id, token_id = claims.jti, "submission token minted");
    let body = Submission { submission, tenant: claims.sub, expires_at: claims.exp };
    Ok(([(CACHE_CONTROL, "no-store")], Json(body)))
}
