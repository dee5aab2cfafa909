//! `GET /openapi.json`: what the gateway takes and answers, from its own types.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use bytes::Bytes;
use serde_json::json;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{Modify, OpenApi};

use super::{App, batches, embeddings, error, files, jobs, models, usage, webhooks};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Vecmill",
        description = "Qwen3 embeddings over OpenAI's API. Every answer has an x-request-id.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    paths(
        embeddings::embeddings, models::list, models::model,
        files::upload::upload, files::list, files::get, files::delete, files::content,
        batches::create::create, batches::list, batches::get, batches::cancel,
        jobs::list, jobs::get, jobs::events, jobs::results::parts, jobs::results::part, jobs::results::errors, jobs::results::manifest,
        jobs::cancel, jobs::pause, jobs::resume, jobs::retry,
        webhooks::secret, usage::usage, usage::limits,
    ),
    components(responses(error::ErrorEnvelope), schemas(error::ErrorDetail)),
    modifiers(&Everywhere),
)]
struct Description;

/// What holds for every operation: credentials, and the refusals that come before a handler.
struct Everywhere;

impl Modify for Everywhere {
    fn modify(&self, description: &mut utoipa::openapi::OpenApi) {
        for path in description.paths.paths.values_mut() {
            let operations = [&mut path.get, &mut path.post, &mut path.delete];
            for operation in operations.into_iter().flatten() {
                operation.security = Some(vec![SecurityRequirement::new("bearer", [""; 0])]);
                for status in ["401", "403", "429", "503"] {
                    let refused = RefOr::Ref(Ref::from_response_name("ErrorEnvelope"));
                    operation.responses.responses.insert(status.to_owned(), refused);
                }
            }
        }
        let mut scheme = Http::new(HttpAuthScheme::Bearer);
        scheme.description = Some("An API key (vm_..), or an access token of the signer's".to_owned());
        let components = description.components.get_or_insert_default();
        components.add_security_scheme("bearer", SecurityScheme::Http(scheme));
    }
}

/// The description.
pub(super) fn described() -> utoipa::openapi::OpenApi {
    Description::openapi()
}

/// The description as it is answered.
pub(super) fn written(model: &str) -> Bytes {
    let mut description = json!(described());
    // Known only here: of all names one is served.
    if let Some(served) = description.pointer_mut("/components/schemas/EmbeddingsRequest/properties/model") {
        served["enum"] = json!([model]);
    }
    description.to_string().into()
}

pub(super) async fn openapi(State(app): State<Arc<App>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], app.description.clone())
}
