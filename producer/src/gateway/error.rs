//! Refusals in OpenAI's envelope: a code that a program can act on, a sentence that a person can.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use utoipa::{ToResponse, ToSchema};
use vecmill_signer::client::ClientError;

use super::limits::Standing;
use crate::contract::{EmbedRefusal, InputFault, RefusalKind};
use crate::life::LedgerError;
use crate::redis::AskError;
use crate::status::StatusError;
use crate::store::StoreError;

/// Milliseconds until a retry may succeed; OpenAI's clients read it before `Retry-After`.
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
/// Whether OpenAI's clients shall retry by themselves.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// Longest wait that is left to a client's own retries; beyond it the caller should hear of it.
const RETRIED_MS_MAX: u64 = 60_000;

/// Every refusal's body.
#[derive(ToResponse, ToSchema)]
#[response(description = "Why not: a code that a program can act on, a sentence that a person can")]
#[expect(dead_code, reason = "for the description only")]
pub(super) struct ErrorEnvelope {
    /// What is wrong.
    error: ErrorDetail,
}

/// What is wrong.
#[derive(ToSchema)]
#[expect(dead_code, reason = "for the description only")]
pub(super) struct ErrorDetail {
    /// For people.
    message: String,
    /// What kind of error it is.
    r#type: String,
    /// The parameter at fault.
    param: Option<String>,
    /// For programs.
    code: String,
}

/// One refusal.
#[derive(Clone, Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    code: String,
    message: String,
    param: Option<String>,
    retry_after_ms: Option<u64>,
    standing: Option<Box<Standing>>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: &str, message: impl Into<String>) -> Self {
        let (code, message) = (code.to_owned(), message.into());
        Self { status, kind, code, message, param: None, retry_after_ms: None, standing: None }
    }

    /// 400: the request can never work.
    pub(super) fn invalid(code: &str, param: Option<&str>, message: impl Into<String>) -> Self {
        let refusal = Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", code, message);
        Self { param: param.map(str::to_owned), ..refusal }
    }

    /// 401: one answer, whatever is wrong with the credentials.
    pub(super) fn unauthorized() -> Self {
        let sentence = "the API key or access token is missing, wrong, expired or revoked; give a good one as \
                        Authorization: Bearer KEY";
        Self::new(StatusCode::UNAUTHORIZED, "invalid_request_error", "invalid_api_key", sentence)
    }

    /// 403: the credentials are good, but not for this.
    pub(super) fn forbidden(code: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission_error", code, message)
    }

    /// Whether the answer is 403.
    pub(super) fn is_forbidden(&self) -> bool {
        self.status == StatusCode::FORBIDDEN
    }

    /// Whether the same may do in a moment.
    pub(super) fn is_transient(&self) -> bool {
        self.status == StatusCode::SERVICE_UNAVAILABLE || self.status == StatusCode::TOO_MANY_REQUESTS
    }

    /// 404.
    pub(super) fn not_found(code: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", code, message)
    }

    /// 410: it was there, and what it was made of was deleted.
    pub(super) fn gone(code: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "invalid_request_error", code, message)
    }

    /// 405.
    pub(super) fn method_not_allowed() -> Self {
        let sentence = "this address takes another HTTP method";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", "method_not_allowed", sentence)
    }

    /// 408: the body took too long.
    pub(super) fn late(message: impl Into<String>) -> Self {
        let refusal = Self::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", "request_timeout", message);
        Self { retry_after_ms: Some(1_000), ..refusal }
    }

    /// 413.
    pub(super) fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", "request_too_large", message)
    }

    /// 409: not as things stand. `passes` where the same request may do later: OpenAI's clients then ask again.
    pub(super) fn conflict(code: &str, message: impl Into<String>, passes: bool) -> Self {
        let refusal = Self::new(StatusCode::CONFLICT, "invalid_request_error", code, message);
        // Longer than clients wait by themselves.
        Self { retry_after_ms: Some(if passes { 500 } else { u64::from(u32::MAX) }), ..refusal }
    }

    /// 400: the query string.
    pub(super) fn bad_query(error: &QueryRejection) -> Self {
        let told = error.body_text();
        let param = told.split('`').nth(1).map(str::to_owned);
        Self::invalid("invalid_query", param.as_deref(), "the query string is not one that this address takes")
    }

    /// The same, with when to ask again.
    pub(super) fn after(self, wait: Duration) -> Self {
        Self { retry_after_ms: Some(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)), ..self }
    }

    /// The same, with the parameter at fault.
    pub(super) fn at(self, param: &str) -> Self {
        Self { param: Some(param.to_owned()), ..self }
    }

    /// 429: over a limit.
    pub(super) fn limited(code: &str, message: impl Into<String>, retry_after_ms: u64) -> Self {
        let refusal = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", code, message);
        Self { retry_after_ms: Some(retry_after_ms), ..refusal }
    }

    /// 503: the same request may succeed later.
    pub(super) fn unavailable(code: &str, message: impl Into<String>) -> Self {
        let refusal = Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", code, message);
        Self { retry_after_ms: Some(1_000), ..refusal }
    }

    /// The same, with where the tenant stands with its limits.
    pub(super) fn standing(self, standing: Standing) -> Self {
        Self { standing: Some(Box::new(standing)), ..self }
    }

    /// 500, for what should not happen.
    pub(super) fn internal(code: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", code, message)
    }
}

impl ApiError {
    /// Whether something that was stored is at fault: asking again gives the same, and a list shows the others.
    pub(super) fn is_of_a_record(&self) -> bool {
        self.status == StatusCode::INTERNAL_SERVER_ERROR
    }
}

/// What there is of a type among an error's causes, itself among them.
pub(super) fn cause<'a, T: std::error::Error + 'static>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} [{}]", self.message, self.code)
    }
}

/// Redis is away.
impl From<AskError> for ApiError {
    fn from(error: AskError) -> Self {
        tracing::warn!(%error, "Redis can't be asked");
        Self::unavailable(
            "quota_unavailable",
            "the limits can't be asked at the moment, and nothing is served without them",
        )
    }
}

/// S3 is away.
impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        if error.is_of_the_object() {
            tracing::warn!(%error, "a stored object can't be read");
            return Self::internal("unreadable_record", "what is stored of it can't be read");
        }
        tracing::warn!(%error, "S3 failed");
        Self::unavailable("storage_unavailable", "the storage can't be asked at the moment; ask again")
    }
}

impl From<LedgerError> for ApiError {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::Store(error) => error.into(),
            error @ LedgerError::Version(_) => {
                tracing::warn!(%error, "a job's ledger can't be read");
                Self::internal("unreadable_record", "what is stored of it was written by a later version")
            }
            error => {
                tracing::warn!(%error, "a job's ledger can't be used");
                Self::unavailable("job_unavailable", "the job can't be looked at or changed at the moment; ask again")
            }
        }
    }
}

impl From<StatusError> for ApiError {
    fn from(error: StatusError) -> Self {
        match error {
            StatusError::Store(error) => error.into(),
            StatusError::Ledger(error) => error.into(),
            error @ StatusError::Busy => Self::unavailable("overloaded", error.to_string()),
            error @ StatusError::Manifest(_) => {
                tracing::error!(%error, "a job's manifest is not one");
                Self::internal("bad_manifest", "the job's manifest can't be read: submit its corpus again")
            }
        }
    }
}

/// What a worker says, as an HTTP status.
impl From<EmbedRefusal> for ApiError {
    fn from(refusal: EmbedRefusal) -> Self {
        let EmbedRefusal { kind, code, message, input, retry_after_ms } = refusal;
        let param = input.map(|input| format!("input.{input}"));
        let answer = match kind {
            RefusalKind::Unauthorized => Self::unauthorized(),
            RefusalKind::Forbidden => Self::forbidden(&code, message),
            RefusalKind::Invalid if code == "model_not_found" => Self::not_found(&code, message),
            RefusalKind::Invalid => Self::invalid(&code, None, message),
            RefusalKind::OverQuota => Self::limited(&code, message, retry_after_ms.unwrap_or(1_000)),
            RefusalKind::Unavailable => Self::unavailable(&code, message),
            RefusalKind::Failed => Self::internal(&code, message),
        };
        let retry_after_ms = answer.retry_after_ms.and(retry_after_ms.or(answer.retry_after_ms));
        Self { param: param.or(answer.param), retry_after_ms, ..answer }
    }
}

/// What is wrong with the inputs, and with which.
impl From<InputFault> for ApiError {
    fn from(fault: InputFault) -> Self {
        let (code, at) = match &fault {
            InputFault::Shape | InputFault::Count(_) => ("invalid_input", "input".to_owned()),
            InputFault::Entry(index, _) => ("invalid_input", format!("input.{index}")),
            InputFault::Tokens(_) => return Self::invalid("too_many_tokens", None, fault.to_string()),
        };
        Self::invalid(code, Some(&at), fault.to_string())
    }
}

/// What the signer says of an API key.
impl From<ClientError> for ApiError {
    fn from(error: ClientError) -> Self {
        match &error {
            ClientError::Refused { status: 401, .. } => Self::unauthorized(),
            ClientError::Refused { status, description, .. } if (400..500).contains(status) && *status != 429 => {
                Self::forbidden("access_denied", description.clone())
            }
            _ => {
                tracing::warn!(error = %error, "the signer gave no token");
                Self::unavailable("signer_unavailable", "API keys can't be checked at the moment")
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Self { status, kind, code, message, param, retry_after_ms, standing } = self;
        let body = json!({"error": {"message": message, "type": kind, "param": param, "code": code}});
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"vecmill\""));
        }
        if let Some(standing) = standing {
            standing.tell(headers);
        }
        if status == StatusCode::CONFLICT && retry_after_ms.is_some_and(|wait_ms| wait_ms > RETRIED_MS_MAX) {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        } else if let Some(wait_ms) = retry_after_ms {
            headers.insert(RETRY_AFTER, HeaderValue::from(wait_ms.div_ceil(1000)));
            headers.insert(RETRY_AFTER_MS, HeaderValue::from(wait_ms));
            if wait_ms > RETRIED_MS_MAX {
                headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
            }
        }
        response
    }
}
