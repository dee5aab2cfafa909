//! What an operator sets for a tenant: defaults, changes, and what can't be.

use std::str::FromStr;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::StoreError;
use crate::cidr::Cidr;
use crate::claims::Limits;
use crate::verify::GRANT_LIFETIME_S_MAX;

/// Shortest completion window: a grant of less than a minute would expire while the job is still being published.
pub(crate) const WINDOW_S_MIN: u64 = 60;
/// Longest vector of any model of this family.
pub(crate) const DIMENSIONS_MAX: u32 = 4096;
/// Entries of one list: models, or sources. Each request reads them all.
const LIST_LEN_MAX: usize = 64;
/// Longest name of a model: the hub's are under 100 characters.
const MODEL_LEN_MAX: usize = 200;

/// Bytes on S3 of a tenant where nothing else is said, 1 TiB: the first large corpus with its vectors, and no more than an
/// operator who looks at a bill once a month would pay for by mistake.
const STORED_BYTES: u64 = 1 << 40;

/// What an operator sets for a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TenantSettings {
    /// Models the tenant may use. Closed by default: an empty list allows none.
    pub models: Vec<String>,
    /// What tokens carry to workers and gateways.
    pub limits: Limits,
    /// Most rows in one job.
    pub rows_per_job: u64,
    /// Longest vectors.
    pub dimensions_max: u32,
    /// Longest completion window, seconds.
    pub window_s_max: u64,
    /// Where requests may come from, by the address of the socket; an empty list is anywhere.
    pub sources: Vec<Cidr>,
}

impl Default for TenantSettings {
    /// Enough for a first large corpus without a call to the operator: 60 million tokens a minute is more than a rack of
    /// GPUs computes, and a day's 50 billion is 100 million texts of 500 tokens.
    fn default() -> Self {
        let models =
            ["Qwen/Qwen3-Embedding-4B", "Qwen/Qwen3-Embedding-0.6B", "Qwen/Qwen3-Embedding-8B", "vecmill/mini"];
        Self {
            models: models.map(str::to_owned).to_vec(),
            limits: Limits {
                requests_per_minute: 6000,
                tokens_per_minute: 60_000_000,
                tokens_burst: 60_000_000,
                tokens_per_day: 50_000_000_000,
                queued_tokens: 100_000_000_000,
                concurrent_jobs: 100,
                stored_bytes: Some(STORED_BYTES),
            },
            rows_per_job: 100_000_000,
            dimensions_max: DIMENSIONS_MAX,
            window_s_max: 24 * 3600,
            sources: Vec::new(),
        }
    }
}

/// A list, written with commas on the command line and as a list in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct List<T>(pub Vec<T>);

impl<T: FromStr> FromStr for List<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        entries.map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

/// A number, or none for no limit: written as `none` on the command line and as null in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ceiling(pub Option<u64>);

impl FromStr for Ceiling {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        text.parse().map(|number| Self(Some(number))).map_err(|_| "it is a number, or none for no limit".to_owned())
    }
}

impl Ceiling {
    /// serde reads null as a field that is left out; here it is a value.
    fn given<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<Self>, D::Error> {
        Self::deserialize(value).map(Some)
    }
}

/// Settings to change; those left out stay.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SettingsPatch {
    /// Models the tenant may use, separated by commas; an empty value allows none [default: the three Qwen3-Embedding and vecmill/mini]
    #[arg(long, env = "VECMILL_SIGNER_MODELS", value_name = "NAMES")]
    pub models: Option<List<String>>,
    /// Requests to the gateway a minute [default: 6000]
    #[arg(long, env = "VECMILL_SIGNER_REQUESTS_PER_MINUTE", value_name = "NUMBER")]
    pub requests_per_minute: Option<u64>,
    /// Tokens that come back each minute [default: 60000000]
    #[arg(long, env = "VECMILL_SIGNER_TOKENS_PER_MINUTE", value_name = "NUMBER")]
    pub tokens_per_minute: Option<u64>,
    /// Tokens that may be spent at once [default: as many as a minute's, whenever those are set]
    #[arg(long, env = "VECMILL_SIGNER_TOKENS_BURST", value_name = "NUMBER")]
    pub tokens_burst: Option<u64>,
    /// Tokens in one UTC day [default: 50000000000]
    #[arg(long, env = "VECMILL_SIGNER_TOKENS_PER_DAY", value_name = "NUMBER")]
    pub tokens_per_day: Option<u64>,
    /// Tokens that may wait in the queue, of all jobs together [default: 100000000000]
    #[arg(long, env = "VECMILL_SIGNER_QUEUED_TOKENS", value_name = "NUMBER")]
    pub queued_tokens: Option<u64>,
    /// Jobs under way at once [default: 100]
    #[arg(long, env = "VECMILL_SIGNER_CONCURRENT_JOBS", value_name = "NUMBER")]
    pub concurrent_jobs: Option<u64>,
    /// Bytes that may lie on S3, or none for no limit [default: 1099511627776]
    #[arg(long, env = "VECMILL_SIGNER_STORED_BYTES", value_name = "BYTES")]
    #[serde(default, deserialize_with = "Ceiling::given", skip_serializing_if = "Option::is_none")]
    pub stored_bytes: Option<Ceiling>,
    /// Most rows in one job [default: 100000000]
    #[arg(long, env = "VECMILL_SIGNER_ROWS_PER_JOB", value_name = "NUMBER")]
    pub rows_per_job: Option<u64>,
    /// Longest vectors [default: 4096]
    #[arg(long, env = "VECMILL_SIGNER_DIMENSIONS_MAX", value_name = "NUMBER")]
    pub dimensions_max: Option<u32>,
    /// Longest completion window in seconds; a grant lives no longer than this [default: 86400]
    #[arg(long, env = "VECMILL_SIGNER_WINDOW_S_MAX", value_name = "SECONDS")]
    pub window_s_max: Option<u64>,
    /// Addresses that requests may come from, as CIDR ranges separated by commas; an empty value is any [default: any]
    #[arg(long, env = "VECMILL_SIGNER_SOURCES", value_name = "RANGES")]
    pub sources: Option<List<Cidr>>,
}

impl SettingsPatch {
    /// `settings` with the changes made, if they can be; a sentence about the first that can't.
    pub fn apply(self, mut settings: TenantSettings) -> Result<TenantSettings, StoreError> {
        fn set<T>(place: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *place = value;
            }
        }
        let limits = &mut settings.limits;
        set(&mut limits.tokens_burst, self.tokens_burst.or(self.tokens_per_minute));
        set(&mut limits.requests_per_minute, self.requests_per_minute);
        set(&mut limits.tokens_per_minute, self.tokens_per_minute);
        set(&mut limits.tokens_per_day, self.tokens_per_day);
        set(&mut limits.queued_tokens, self.queued_tokens);
        set(&mut limits.concurrent_jobs, self.concurrent_jobs);
        set(&mut limits.stored_bytes, self.stored_bytes.map(|Ceiling(bytes)| bytes));
        set(&mut settings.rows_per_job, self.rows_per_job);
        set(&mut settings.dimensions_max, self.dimensions_max);
        set(&mut settings.window_s_max, self.window_s_max);
        set(&mut settings.models, self.models.map(|models| models.0));
        set(&mut settings.sources, self.sources.map(|sources| sources.0));
        match settings.mistake() {
            Some(mistake) => Err(StoreError::BadSetting(mistake)),
            None => Ok(settings),
        }
    }
}

impl TenantSettings {
    fn mistake(&self) -> Option<String> {
        let limits = &self.limits;
        let counts = [
            ("requests-per-minute", limits.requests_per_minute),
            ("tokens-per-minute", limits.tokens_per_minute),
            ("tokens-burst", limits.tokens_burst),
            ("tokens-per-day", limits.tokens_per_day),
            ("queued-tokens", limits.queued_tokens),
            ("concurrent-jobs", limits.concurrent_jobs),
            // No limit is not zero.
            ("stored-bytes", limits.stored_bytes.unwrap_or(u64::MAX)),
            ("rows-per-job", self.rows_per_job),
        ];
        if let Some((name, _)) = counts.into_iter().find(|(_, count)| *count == 0) {
            return Some(format!("{name} must be at least 1; suspend the tenant to stop it altogether"));
        }
        if !(1..=DIMENSIONS_MAX).contains(&self.dimensions_max) {
            return Some(format!("dimensions-max must be 1 to {DIMENSIONS_MAX}"));
        }
        if !(WINDOW_S_MIN..=GRANT_LIFETIME_S_MAX).contains(&self.window_s_max) {
            return Some(format!("window-s-max must be {WINDOW_S_MIN} to {GRANT_LIFETIME_S_MAX} seconds"));
        }
        if self.models.len() > LIST_LEN_MAX || self.sources.len() > LIST_LEN_MAX {
            return Some(format!("models and sources may have {LIST_LEN_MAX} entries each"));
        }
        let named = |model: &String| {
            (1..=MODEL_LEN_MAX).contains(&model.len()) && model.bytes().all(|b| b.is_ascii_graphic() && b != b',')
        };
        if !self.models.iter().all(named) {
            return Some(format!("a model's name is 1 to {MODEL_LEN_MAX} visible ASCII characters without a comma"));
        }
        None
    }
}
