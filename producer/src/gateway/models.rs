//! `GET /v1/models`: the one model that the workers behind this gateway serve.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::App;
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

/// A list of one.
#[derive(ToSchema)]
#[expect(dead_code, reason = "for the description only")]
pub(super) struct Models {
    /// `list`.
    object: String,
    /// The model that is served.
    data: Vec<Model>,
}

/// The models that are served.
#[utoipa::path(
    get,
    path = "/v1/models",
    responses(
        (status = 200, description = "The models", body = Models),
    ),
)]
pub(super) async fn list(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({"object": "list", "data": [described(&app)]}))
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
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    let Path(name) = name.map_err(|_| ApiError::invalid("invalid_path", Some("model"), "the path is not UTF-8"))?;
    if name == app.model {
        return Ok(Json(described(&app)));
    }
    Err(ApiError::not_found("model_not_found", format!("that model is not served here; {} is", app.model)))
}
