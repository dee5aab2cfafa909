//! What anyone may read: the public keys, what is revoked, where the endpoints are, and whether the service lives.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::App;
use super::current::Document;
use super::error::ApiError;
use crate::claims::Scope;

/// A database that takes longer for nothing is not there.
const PING_MAX: Duration = Duration::from_secs(2);

/// `GET /.well-known/jwks.json`.
pub(super) async fn jwks(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    // Five minutes: what verifiers keep it for, and what a rotation waits.
    document(&headers, &app.current.live().jwks, "application/jwk-set+json", "public, max-age=300")
}

/// `GET /v1/revocations/2`: the signed statement of what is no longer good.
pub(super) async fn revocations(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    // Verifiers ask every two seconds, and no cache on the way may make that longer.
    document(&headers, &app.current.live().revocations, "application/jwt", "no-cache")
}

/// `GET /v1/revocations`: the same as verifiers of before know it, with names in it; there during an upgrade only.
pub(super) async fn old_revocations(State(app): State<Arc<App>>, headers: HeaderMap) -> Result<Response, ApiError> {
    let live = app.current.live();
    let old = live.old_revocations.as_ref().ok_or_else(ApiError::not_found)?;
    Ok(document(&headers, old, "application/jwt", "no-cache"))
}

/// `GET /.well-known/oauth-authorization-server` (RFC 8414).
pub(super) async fn metadata(State(app): State<Arc<App>>) -> impl IntoResponse {
    let at = |path: &str| format!("{}{path}", app.public_url);
    let methods = ["client_secret_basic", "client_secret_post"];
    let document = json!({
        "issuer": app.issuer,
        "token_endpoint": at("/oauth/token"),
        "token_endpoint_auth_methods_supported": methods,
        "introspection_endpoint": at("/oauth/introspect"),
        "introspection_endpoint_auth_methods_supported": methods,
        "revocation_endpoint": at("/oauth/revoke"),
        "revocation_endpoint_auth_methods_supported": methods,
        "jwks_uri": at("/.well-known/jwks.json"),
        "grant_types_supported": ["client_credentials"],
        // Required by RFC 8414; there is no authorization endpoint, so there is none.
        "response_types_supported": [],
        "scopes_supported": Scope::ALL,
    });
    ([(CACHE_CONTROL, "public, max-age=300")], Json(document))
}

/// A document with its tag, or 304 if the caller has it already.
fn document(headers: &HeaderMap, document: &Document, media_type: &'static str, caching: &'static str) -> Response {
    let held = headers.get(IF_NONE_MATCH).and_then(|tags| tags.to_str().ok());
    let held = held.is_some_and(|tags| tags.split(',').any(|tag| tag.trim() == document.etag));
    let tags = [(ETAG, document.etag.clone()), (CACHE_CONTROL, caching.to_owned())];
    if held {
        return (StatusCode::NOT_MODIFIED, tags).into_response();
    }
    (tags, [(CONTENT_TYPE, media_type)], document.body.clone()).into_response()
}

/// `GET /healthz`: the process answers.
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: the policy database answers too.
pub(super) async fn readyz(State(app): State<Arc<App>>) -> Result<&'static str, ApiError> {
    match tokio::time::timeout(PING_MAX, app.store.ping()).await {
        Ok(answer) => answer?,
        Err(_) => return Err(ApiError::unavailable("the policy database is slow")),
    }
    Ok("ready\n")
}
