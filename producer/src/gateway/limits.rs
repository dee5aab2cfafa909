//! Requests a minute of each tenant, counted in Redis, so exact over any number of gateways; and what answers say of it.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use deadpool_redis::redis::{Script, pipe};
use vecmill_signer::claims::{Limits, TenantId};

use super::error::ApiError;
use crate::redis::Redis;
use crate::status::WaitReason;

/// What the bucket's arithmetic in Lua holds exactly: a thousand times what a fleet of gateways answers in a minute.
const REQUESTS_MAX: u64 = 1_000_000_000;
/// As the workers' script has them.
const TOKENS_MAX: u64 = 70_000_000_000;
const UNITS_PER_TOKEN: u64 = 60_000;
const DAY_MS: u64 = 86_400_000;

/// The counters of all tenants.
pub(super) struct RequestLimits {
    redis: Redis,
    script: Script,
}

/// Where a tenant stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    requests: Left,
    tokens: Left,
}

/// What is left of one limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Left {
    pub(super) limit: u64,
    pub(super) remaining: u64,
    pub(super) reset_ms: u64,
}

impl std::fmt::Debug for RequestLimits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RequestLimits")
    }
}

impl RequestLimits {
    pub(super) fn new(redis: Redis) -> Self {
        Self { redis, script: Script::new(include_str!("limits.lua")) }
    }

    /// Tokens that the tenant has used today.
    pub(super) async fn day_tokens(&self, tenant: &TenantId) -> Result<u64, ApiError> {
        let (_, quota) = self.quota(tenant).await?;
        Ok(quota.map_or(0, |quota| quota.day_tokens))
    }

    /// The limit that `tokens` more are over, and for how many milliseconds; `None` where they would be admitted, or nobody
    /// can tell.
    pub(super) async fn wait(
        &self,
        tenant: &TenantId,
        limits: Limits,
        tokens: u64,
    ) -> Option<(WaitReason, &'static str, u64)> {
        let (now_ms, quota) = self.quota(tenant).await.ok()?;
        let quota = quota?;
        // As the workers' script has it.
        let day = tokens.min(limits.tokens_per_day);
        if quota.day_tokens + day > limits.tokens_per_day {
            return Some((WaitReason::TokensPerDay, "tokens_per_day", DAY_MS - now_ms % DAY_MS));
        }
        let rate = limits.tokens_per_minute.clamp(1, TOKENS_MAX);
        let elapsed_ms = now_ms.saturating_sub(quota.at_ms);
        let level =
            quota.level.saturating_add_unsigned(elapsed_ms.saturating_mul(rate)).min(units(limits.tokens_burst));
        let lacking = units(tokens.min(limits.tokens_burst)) - level;
        let wait_ms = u64::try_from(lacking).ok()?.div_ceil(rate);
        (wait_ms > 0).then_some((WaitReason::TokensPerMinute, "tokens_per_minute", wait_ms))
    }

    /// Redis' time, and the tenant's quota as the workers keep it; none where the bucket is full and the day fresh.
    async fn quota(&self, tenant: &TenantId) -> Result<(u64, Option<Quota>), ApiError> {
        let key = format!("vecmill:{{{tenant}}}:quota");
        let key = &key;
        let asked = self.redis.ask(|mut line| async move {
            let mut asks = pipe();
            asks.cmd("TIME").cmd("HMGET").arg(key).arg(&["level", "at_ms", "day", "day_tokens"]);
            asks.query_async::<((u64, u64), Vec<Option<i64>>)>(&mut line).await
        });
        let ((seconds, micros), fields) = asked.await?;
        let now_ms = seconds * 1000 + micros / 1000;
        let [Some(level), Some(at_ms), Some(day), Some(day_tokens)] = fields[..] else { return Ok((now_ms, None)) };
        let today = day.unsigned_abs() >= now_ms / DAY_MS;
        let day_tokens = if today { day_tokens.unsigned_abs() } else { 0 };
        Ok((now_ms, Some(Quota { level, at_ms: at_ms.unsigned_abs(), day_tokens })))
    }

    /// Counts a request of the tenant, or refuses it. Without Redis the answer is no.
    pub(super) async fn count(&self, tenant: &TenantId, limits: Limits) -> Result<Standing, ApiError> {
        let mut invocation = self.script.prepare_invoke();
        invocation
            .key(format!("vecmill:{{{tenant}}}:requests"))
            .key(format!("vecmill:{{{tenant}}}:quota"))
            .arg(limits.requests_per_minute.clamp(1, REQUESTS_MAX))
            .arg(limits.tokens_per_minute.clamp(1, TOKENS_MAX))
            .arg(limits.tokens_burst.clamp(1, TOKENS_MAX))
            .arg(limits.tokens_per_day.min(TOKENS_MAX));
        let invocation = &invocation;
        let asked = self
            .redis
            .ask(|mut line| async move { invocation.invoke_async::<(u8, u64, u64, u64, u64, u64)>(&mut line).await });
        let (counted, requests, requests_ms, wait_ms, tokens, tokens_ms) = asked.await?;
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

/// A tenant's tokens, as the workers keep them.
struct Quota {
    /// In units; less than none while a large chunk is paid off.
    level: i64,
    at_ms: u64,
    day_tokens: u64,
}

/// Tokens in the bucket's units.
fn units(tokens: u64) -> i64 {
    tokens.min(TOKENS_MAX).saturating_mul(UNITS_PER_TOKEN).cast_signed()
}

impl Standing {
    /// What is left, by the limits' names.
    pub(super) fn lefts(&self) -> [(&'static str, Left); 2] {
        [("requests_per_minute", self.requests), ("tokens_per_minute", self.tokens)]
    }

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
