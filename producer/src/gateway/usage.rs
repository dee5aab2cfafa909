//! `/v1/usage` and `/v1/limits`: what a tenant has used, by day, job and key, and where it stands with its limits.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::{Extension, Json};
use deadpool_redis::redis::pipe;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::auth::Caller;
use super::error::{ApiError, ErrorEnvelope};
use super::ids;
use super::limits::{Left, Standing};
use super::stored::{BATCHES_MAX, FILES_MAX};
use crate::contract::{USAGE_DAYS, usage_key};

const DAY_S: u64 = 86_400;

/// Which days.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Days {
    /// How many days, today among them: 1 to 40; 7 where this is left out.
    #[param(minimum = 1, maximum = 40)]
    days: Option<u64>,
}

/// Tokens by day, job and key. The audit on S3 has every chunk of it; this is the count of it, kept for forty days.
#[derive(Serialize, ToSchema)]
#[schema(as = TenantUsage)]
pub(super) struct Usage {
    /// `list`.
    object: &'static str,
    /// The days, the newest first.
    data: Vec<Day>,
    /// What lies on S3; null until it has been counted.
    stored: Option<StoredAmount>,
}

/// What a tenant has on S3.
#[derive(Serialize, ToSchema)]
pub(super) struct StoredAmount {
    /// Bytes of files, chunks, vectors and records.
    bytes: u64,
    /// Bytes held for what is being uploaded, and for the vectors of jobs under way.
    reserved_bytes: u64,
    /// Files, uploaded ones and what batches came to.
    files: u64,
    /// Batches.
    batches: u64,
    /// When all of it was counted last, in Unix seconds; what came and went since then is counted on it.
    counted_at: u64,
}

/// A day's tokens.
#[derive(Serialize, ToSchema)]
pub(super) struct Day {
    /// The UTC day, as 2026-01-31.
    date: String,
    /// All of its tokens.
    tokens: u64,
    /// By job and key.
    by: Vec<Used>,
}

/// What one key has spent on one job.
#[derive(Serialize, ToSchema)]
pub(super) struct Used {
    /// The job; none for `/v1/embeddings`.
    job: Option<String>,
    /// The API key's id.
    key_id: String,
    /// Exact tokens.
    tokens: u64,
}

/// Where a tenant stands with each of its limits.
#[derive(Serialize, ToSchema)]
pub(super) struct Limits {
    /// `limits`.
    object: &'static str,
    /// The limits.
    data: Vec<Limit>,
}

/// One limit.
#[derive(Serialize, ToSchema)]
pub(super) struct Limit {
    /// Its name.
    limit: &'static str,
    /// The most.
    most: u64,
    /// What is left of it now.
    remaining: u64,
    /// Milliseconds until all of it is back; none where only the end of a job gives back.
    reset_ms: Option<u64>,
}

/// What the tenant has used.
#[utoipa::path(
    get,
    path = "/v1/usage",
    params(Days),
    responses(
        (status = 200, description = "Tokens by day, job and key", body = Usage),
        (status = 400, response = ErrorEnvelope),
    ),
)]
pub(super) async fn usage(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    days: Result<Query<Days>, QueryRejection>,
) -> Result<Json<Usage>, ApiError> {
    let Query(days) = days.map_err(|error| ApiError::bad_query(&error))?;
    let days = days.days.unwrap_or(7);
    if !(1..=USAGE_DAYS).contains(&days) {
        return Err(ApiError::invalid("invalid_query", Some("days"), format!("days must be 1 to {USAGE_DAYS}")));
    }
    let today = ids::unix_s() / DAY_S;
    let tenant = caller.access.tenant();
    let asked = app.shared.redis().ask(|mut line| async move {
        let mut asks = pipe();
        for day in 0..days {
            asks.cmd("HGETALL").arg(usage_key(tenant.as_str(), today - day));
        }
        asks.query_async::<Vec<Vec<(String, u64)>>>(&mut line).await
    });
    let found = asked.await?;
    let data = found.into_iter().zip(0..).filter(|(fields, _)| !fields.is_empty()).map(|(fields, ago)| {
        let mut by: Vec<Used> = fields
            .into_iter()
            .map(|(field, tokens)| {
                let (job, key_id) = field.split_once(' ').unwrap_or_default();
                Used { job: (!job.is_empty()).then(|| job.to_owned()), key_id: key_id.to_owned(), tokens }
            })
            .collect();
        by.sort_by(|a, b| b.tokens.cmp(&a.tokens).then_with(|| a.job.cmp(&b.job)));
        let date = jiff::Timestamp::from_second(((today - ago) * DAY_S) as i64).unwrap_or_default();
        Day { date: date.strftime("%Y-%m-%d").to_string(), tokens: by.iter().map(|used| used.tokens).sum(), by }
    });
    let stored = app.shared.stored().amount(tenant).await?.map(|amount| StoredAmount {
        bytes: amount.bytes,
        reserved_bytes: amount.reserved,
        files: amount.files,
        batches: amount.batches,
        counted_at: amount.counted_at,
    });
    Ok(Json(Usage { object: "list", data: data.collect(), stored }))
}

/// Where the tenant stands with its limits.
#[utoipa::path(
    get,
    path = "/v1/limits",
    responses(
        (status = 200, description = "The limits", body = Limits),
    ),
)]
pub(super) async fn limits(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Extension(standing): Extension<Standing>,
) -> Result<Json<Limits>, ApiError> {
    let (tenant, limits) = (caller.access.tenant(), caller.access.limits());
    let day_tokens = app.limits.day_tokens(tenant).await?;
    let queued = app.shared.queued(tenant).await?;
    let tokens: u64 = queued.iter().map(|(_, tokens, _)| tokens).sum();
    let midnight_ms = (DAY_S - ids::unix_s() % DAY_S) * 1000;
    let limit =
        |limit, most: u64, used: u64, reset_ms| Limit { limit, most, remaining: most.saturating_sub(used), reset_ms };
    let mut data = Vec::from(standing.lefts().map(|(limit, left)| {
        let Left { limit: most, remaining, reset_ms } = left;
        Limit { limit, most, remaining, reset_ms: Some(reset_ms) }
    }));
    data.push(limit("tokens_per_day", limits.tokens_per_day, day_tokens, Some(midnight_ms)));
    data.push(limit("queued_tokens", limits.queued_tokens, tokens, None));
    data.push(limit("concurrent_jobs", limits.concurrent_jobs, queued.len() as u64, None));
    let stored = app.shared.stored().amount(tenant).await?;
    if let Some(most) = limits.stored_bytes {
        data.push(limit("stored_bytes", most, stored.map_or(0, |stored| stored.bytes + stored.reserved), None));
    }
    data.push(limit("files", FILES_MAX, stored.map_or(0, |stored| stored.files), None));
    data.push(limit("batches", BATCHES_MAX, stored.map_or(0, |stored| stored.batches), None));
    Ok(Json(Limits { object: "limits", data }))
}
