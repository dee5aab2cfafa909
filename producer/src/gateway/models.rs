//! `GET /v1/models`: the one model that the workers behind this gateway serve, if the tenant may use it.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::{Extension, Json};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::App;
use super::auth::Caller;
use super::error::{ApiError, ErrorEnvelope};

fn described(app: &App) -> Value {
    // Clients want a number there; the service knows no moment at which the model came into being.
    json!({"id": app.model, "object": "model", "created": 0, "owned_by": "vecmill"})
}

/// A model.
#[derive(ToSchema)]
#[expect(dead_code, reason = "for the description only")]
pub(super) struct Model {
    /// Its name.
    id: String,
    /// `model`.
    object: String,
    /// 0: the service does not know.
    created: u64,
    /// `vecmill`.
    owned_by: String,
}

/// A list of one, or of none.
#[derive(ToSchema)]
#[expect(dead_code, reason = "for the description only")]
pub(super) struct Models {
    /// `list`.
    object: String,
    /// The model that is served, if the tenant may use it.
    data: Vec<Model>,
}

/// The models that the tenant may use.
#[utoipa::path(
    get,
    path = "/v1/models",
    responses(
        (status = 200, description = "The models", body = Models),
    ),
)]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Value>, ApiError> {
    let data: Vec<_> = may_use(&app, &caller).await?.then(|| described(&app)).into_iter().collect();
    Ok(Json(json!({"object": "list", "data": data})))
}

/// Whether the tenant may use the model, by whether the signer gives a token for it. Most have one already.
async fn may_use(app: &Arc<App>, caller: &Caller) -> Result<bool, ApiError> {
    match app.embed_token(caller).await {
        Ok(_) => Ok(true),
        Err(refusal) if refusal.is_forbidden() => Ok(false),
        Err(refusal) => Err(refusal),
    }
}

/// One model.
#[utoipa::path(
    get,
    path = "/v1/models/{model}",
    params(("model" = String, Path, description = "Its name, such as Qwen/Qwen3-Embedding-4B")),
    responses(
        (status = 200, description = "The model", body = Model),
        (status = 400, response = ErrorEnvelope),
        (status = 404, response = ErrorEnvelope),
    ),
)]
pub(super) async fn model(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    let Path(name) = name.map_err(|_| ApiError::invalid("invalid_path", Some("model"), "the path is not UTF-8"))?;
    if name == app.model && may_use(&app, &caller).await? {
        return Ok(Json(described(&app)));
    }
    let sentence = "that model is not served here, or not to this tenant: GET /v1/models lists those that are";
    Err(ApiError::not_found("model_not_found", sentence))
}
