//! `GET /v1/models`: the one model that the workers behind this gateway serve.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use super::App;
use super::error::ApiError;

fn described(app: &App) -> Value {
    // Clients want a number there; the service knows no moment at which the model came into being.
    json!({"id": app.model, "object": "model", "created": 0, "owned_by": "vecmill"})
}

pub(super) async fn list(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({"object": "list", "data": [described(&app)]}))
}

pub(super) async fn model(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    if name == app.model {
        return Ok(Json(described(&app)));
    }
    Err(ApiError::not_found("model_not_found", format!("that model is not served here; {} is", app.model)))
}
