//! `POST /v1/embed-tokens`: an access token and a model's name in, an embed token out. Workers get it with a synchronous request,
//! over a queue that others may read: it is good for that model's vectors and for nothing else.

use std::sync::Arc;

use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::header::CACHE_CONTROL;
use axum::response::IntoResponse;
use axum::{Extension, Json};

use super::App;
use super::auth::Caller;
use super::error::ApiError;
use crate::mint::EmbedRequest;
use crate::policy;
use crate::wire::{EmbedOrder, EmbedTokenResponse};

pub(super) async fn embed_token(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    order: Result<Json<EmbedOrder>, JsonRejection>,
) -> Result<impl IntoResponse, ApiError> {
    let access = &caller.access;
    let Json(order) = order.map_err(|rejection| ApiError::bad_body(rejection.status(), rejection.body_text()))?;
    let tenant = app.store.tenant(access.tenant()).await?.ok_or_else(ApiError::invalid_token)?;
    policy::may_use(&tenant.settings, &order.model).map_err(|denial| ApiError::access_denied(denial.to_string()))?;
    let request = EmbedRequest {
        tenant: tenant.id,
        model: order.model,
        dimensions_max: tenant.settings.dimensions_max,
        key_id: access.key_id().to_owned(),
        client_addr: Some(caller.peer.ip().to_string()),
        parent: access.token_id().to_owned(),
        limits: tenant.settings.limits,
        // Of the access token, which the caller's check has found good: what is void since is void with it.
        epoch: access.epoch(),
    };
    let live = app.current.live();
    let (embed_token, claims) =
        live.minter()?.mint_embed_at(request, caller.at_s).map_err(|error| ApiError::internal(&error))?;
    tracing::debug!(tenant = %claims.sub, key_id = claims.client_id, token_id = claims.jti, "embed token minted");
    let body = EmbedTokenResponse {
        embed_token,
        tenant: claims.sub,
        expires_at: claims.exp,
        dimensions_max: claims.dimensions_max,
    };
    Ok(([(CACHE_CONTROL, "no-store")], Json(body)))
}
