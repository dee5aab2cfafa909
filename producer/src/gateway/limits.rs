//! Requests a minute of each tenant, counted in Redis, so exact over any number of gateways; and what answers say of it.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use deadpool_redis::Pool;
use deadpool_redis::redis::Script;
use vecmill_signer::claims::{Limits, TenantId};
use vecmill_signer::edge::ClientTls;

use super::error::ApiError;
use crate::redis::{ASK_MS, SetupError, pool};

/// Connections: an ask holds one for well under a millisecond.
const POOL_SIZE: usize = 16;
/// What the bucket's arithmetic in Lua holds exactly: a thousand times what a fleet of gateways answers in a minute.
const REQUESTS_MAX: u64 = 1_000_000_000;
/// As the workers' script has it.
const TOKENS_MAX: u64 = 70_000_000_000;

/// The counters of all tenants.
pub(super) struct RequestLimits {
    pool: Pool,
    script: Script,
}

/// Where a tenant stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    requests: Left,
    tokens: Left,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Left {
    limit: u64,
    remaining: u64,
    reset_ms: u64,
}

impl std::fmt::Debug for RequestLimits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RequestLimits")
    }
}

impl RequestLimits {
    /// Connects to nothing yet.
    pub(super) fn new(url: &str, tls: &ClientTls) -> Result<Self, SetupError> {
        Ok(Self { pool: pool(url, tls, POOL_SIZE)?, script: Script::new(include_str!("limits.lua")) })
    }

    /// Counts a request of the tenant, or refuses it. Without Redis the answer is no.
    pub(super) async fn count(&self, tenant: &TenantId, limits: Limits) -> Result<Standing, ApiError> {
        let asking = async {
            let mut connection = self.pool.get().await.map_err(|error| error.to_string())?;
            let mut invocation = self.script.prepare_invoke();
            invocation
                .key(format!("vecmill:{{{tenant}}}:requests"))
                .key(format!("vecmill:{{{tenant}}}:quota"))
                .arg(limits.requests_per_minute.clamp(1, REQUESTS_MAX))
                .arg(limits.tokens_per_minute.clamp(1, TOKENS_MAX))
                .arg(limits.tokens_burst.clamp(1, TOKENS_MAX))
                .arg(limits.tokens_per_day.min(TOKENS_MAX));
            invocation
                .invoke_async::<(u8, u64, u64, u64, u64, u64)>(&mut connection)
                .await
                .map_err(|error| error.to_string())
        };
        let answered = tokio::time::timeout(Duration::from_millis(ASK_MS), asking).await;
        let answered = answered.unwrap_or_else(|_| Err(format!("no answer in {ASK_MS} ms")));
        let (counted, requests, requests_ms, wait_ms, tokens, tokens_ms) = answered.map_err(|reason| {
            tracing::warn!(reason, "Redis can't be asked");
            ApiError::unavailable(
                "quota_unavailable",
                "the limits can't be asked at the moment, and nothing is served without them",
            )
        })?;
        let standing = Standing {
            requests: Left { limit: limits.requests_per_minute, remaining: requests, reset_ms: requests_ms },
            tokens: Left { limit: limits.tokens_burst, remaining: tokens, reset_ms: tokens_ms },
        };
        if counted == 1 {
            return Ok(standing);
        }
        let sentence = format!(
            "the tenant is over its {} requests a minute; ask again in {wait_ms} ms",
            limits.requests_per_minute
        );
        Err(ApiError::limited("requests_per_minute", sentence, wait_ms).standing(standing))
    }
}

impl Standing {
    /// OpenAI's headers.
    pub(super) fn tell(&self, headers: &mut HeaderMap) {
        let names = [
            ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"],
            ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"],
        ];
        for ([limit, remaining, reset], left) in names.into_iter().zip([self.requests, self.tokens]) {
            headers.insert(HeaderName::from_static(limit), HeaderValue::from(left.limit));
            headers.insert(HeaderName::from_static(remaining), HeaderValue::from(left.remaining));
            if let Ok(duration) = HeaderValue::from_str(&go_duration(left.reset_ms)) {
                headers.insert(HeaderName::from_static(reset), duration);
            }
        }
    }
}

/// A duration as Go writes it: `12ms`, `1.5s`, `6m0s`, `24h0m0s`.
fn go_duration(ms: u64) -> String {
    let (hours, minutes, seconds) = (ms / 3_600_000, ms / 60_000 % 60, ms % 60_000);
    let seconds = match seconds % 1000 {
        0 => format!("{}s", seconds / 1000),
        rest => format!("{}.{}s", seconds / 1000, format!("{rest:03}").trim_end_matches('0')),
    };
    match (hours, minutes) {
        (0, 0) if ms < 1000 => format!("{ms}ms"),
        (0, 0) => seconds,
        (0, minutes) => format!("{minutes}m{seconds}"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_go_s() {
        for (ms, text) in [
            (0, "0ms"),
            (12, "12ms"),
            (1_000, "1s"),
            (1_500, "1.5s"),
            (59_999, "59.999s"),
            (360_000, "6m0s"),
            (61_050, "1m1.05s"),
            (86_400_000, "24h0m0s"),
        ] {
            assert_eq!(go_duration(ms), text);
        }
    }
}
