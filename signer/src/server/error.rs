//! Refusals as RFC 6749 (5.2) and RFC 6750 (3.1) write them: a code for programs, a sentence for people.

use axum::Json;
use axum::http::header::{CACHE_CONTROL, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use crate::store::StoreError;
use crate::wire::ErrorBody;

/// One refusal.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    code: &'static str,
    description: String,
    /// `WWW-Authenticate`.
    challenge: Option<&'static str>,
    /// `Retry-After`, seconds.
    retry_after_s: Option<u64>,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, description: impl Into<String>) -> Self {
        Self { status, code, description: description.into(), challenge: None, retry_after_s: None }
    }

    /// 400 with an OAuth error code.
    pub(super) fn bad_request(code: &'static str, description: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, description)
    }

    /// What the body's reader says: 413 for one too large, else 400.
    pub(super) fn bad_body(status: StatusCode, description: impl Into<String>) -> Self {
        let too_large = status == StatusCode::PAYLOAD_TOO_LARGE;
        let status = if too_large { status } else { StatusCode::BAD_REQUEST };
        Self::new(status, "invalid_request", description)
    }

    /// 401: one answer for an unknown key, a wrong secret and a barred key, so that none can be told from another.
    pub(super) fn invalid_client() -> Self {
        let sentence = "the API key is unknown, wrong, expired or revoked";
        let refusal = Self::new(StatusCode::UNAUTHORIZED, "invalid_client", sentence);
        Self { challenge: Some("Basic realm=\"vecmill-signer\", charset=\"UTF-8\""), ..refusal }
    }

    /// 429: this address, or this key, has failed too often.
    pub(super) fn too_many_failures(wait_s: u64) -> Self {
        let sentence = format!("too many logins from this address or with this API key have failed; wait {wait_s} s");
        Self::slow_down(sentence, wait_s)
    }

    /// 429: too much at once.
    pub(super) fn slow_down(description: impl Into<String>, wait_s: u64) -> Self {
        let refusal = Self::new(StatusCode::TOO_MANY_REQUESTS, "slow_down", description);
        Self { retry_after_s: Some(wait_s), ..refusal }
    }

    /// 401 for an access token: one answer, whatever is wrong with it. Which check it failed is for the log; told to the
    /// caller, it would guide whoever forges one.
    pub(super) fn invalid_token() -> Self {
        let sentence =
            "the access token is malformed, expired, revoked or not meant for this service; ask for a new one";
        let refusal = Self::new(StatusCode::UNAUTHORIZED, "invalid_token", sentence);
        Self { challenge: Some("Bearer realm=\"vecmill-signer\", error=\"invalid_token\""), ..refusal }
    }

    /// 401 without a token.
    pub(super) fn token_missing() -> Self {
        let sentence = "an access token is needed: Authorization: Bearer TOKEN";
        Self { description: sentence.to_owned(), ..Self::invalid_token() }
    }

    /// 403: the token is good, but not for this.
    pub(super) fn insufficient_scope(description: impl Into<String>) -> Self {
        let refusal = Self::new(StatusCode::FORBIDDEN, "insufficient_scope", description);
        Self { challenge: Some("Bearer realm=\"vecmill-signer\", error=\"insufficient_scope\""), ..refusal }
    }

    /// 403: policy says no.
    pub(super) fn access_denied(description: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "access_denied", description)
    }

    /// 404.
    pub(super) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "there is nothing at this address")
    }

    /// 405.
    pub(super) fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request", "this address takes another HTTP method")
    }

    /// 503: the same request may succeed later.
    pub(super) fn unavailable(description: impl Into<String>) -> Self {
        let refusal = Self::new(StatusCode::SERVICE_UNAVAILABLE, "temporarily_unavailable", description);
        Self { retry_after_s: Some(1), ..refusal }
    }

    /// 500, for what should not happen. The cause is the operator's, not the caller's.
    pub(super) fn internal(cause: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error = cause, "request failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", "the signer failed; its log says why")
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        if error.is_absence() {
            return Self::new(StatusCode::NOT_FOUND, "not_found", error.to_string());
        }
        if let StoreError::TooFast { wait_s, .. } = error {
            return Self::slow_down(error.to_string(), wait_s);
        }
        if error.is_for_caller() {
            return Self::new(StatusCode::CONFLICT, "invalid_request", error.to_string());
        }
        if matches!(error, StoreError::NoSigningKey) {
            return Self::unavailable(error.to_string());
        }
        tracing::error!(error = &error as &dyn std::error::Error, "the policy database failed");
        Self::unavailable("the policy database is unavailable")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = ErrorBody { error: self.code.to_owned(), error_description: self.description };
        let mut response = (self.status, [(CACHE_CONTROL, "no-store")], Json(body)).into_response();
        if let Some(challenge) = self.challenge {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        if let Some(retry_after_s) = self.retry_after_s {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(retry_after_s));
        }
        response
    }
}
