//! Tenants and what they may use.

use std::str::FromStr;

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::{AnyConnection, FromRow};

use super::events::Event;
use super::{Store, StoreError, changed, column, count};
use crate::cidr::Cidr;
use crate::claims::{Limits, TenantId};
use crate::revocations::TENANTS_MAX;
use crate::time::unix_now;
use crate::verify::{GRANT_LIFETIME_S_MAX, LEEWAY_S};

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

/// A tenant as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tenant {
    /// Its name.
    pub id: TenantId,
    /// Order of creation, from 0.
    pub ordinal: u64,
    /// Whether its keys get tokens.
    pub active: bool,
    /// Whether it is the operator's: its admins administer every tenant.
    pub operator: bool,
    /// Revocation epoch.
    pub epoch: u64,
    /// What it may use.
    #[serde(flatten)]
    pub settings: TenantSettings,
    /// When it was created, Unix seconds.
    pub created_s: u64,
}

#[derive(FromRow)]
struct Row {
    id: String,
    ordinal: i64,
    status: String,
    operator: i64,
    epoch: i64,
    requests_per_minute: i64,
    tokens_per_minute: i64,
    tokens_burst: i64,
    tokens_per_day: i64,
    queued_tokens: i64,
    concurrent_jobs: i64,
    stored_bytes: Option<i64>,
    rows_per_job: i64,
    dimensions_max: i64,
    window_s_max: i64,
    created_s: i64,
}

impl Row {
    fn into_tenant(self, models: Vec<String>, sources: Vec<Cidr>) -> Result<Tenant, StoreError> {
        Ok(Tenant {
            id: TenantId::try_from(self.id).map_err(|_| StoreError::Corrupt("a tenant's name"))?,
            ordinal: count(self.ordinal)?,
            active: self.status == "active",
            operator: self.operator == 1,
            epoch: count(self.epoch)?,
            settings: TenantSettings {
                models,
                limits: Limits {
                    requests_per_minute: count(self.requests_per_minute)?,
                    tokens_per_minute: count(self.tokens_per_minute)?,
                    tokens_burst: count(self.tokens_burst)?,
                    tokens_per_day: count(self.tokens_per_day)?,
                    queued_tokens: count(self.queued_tokens)?,
                    concurrent_jobs: count(self.concurrent_jobs)?,
                    stored_bytes: self.stored_bytes.map(count).transpose()?,
                },
                rows_per_job: count(self.rows_per_job)?,
                dimensions_max: u32::try_from(self.dimensions_max).map_err(|_| StoreError::Corrupt("a length"))?,
                window_s_max: count(self.window_s_max)?,
                sources,
            },
            created_s: count(self.created_s)?,
        })
    }
}

impl Store {
    /// The tenant named `id`, if there is one.
    pub async fn tenant(&self, id: &TenantId) -> Result<Option<Tenant>, StoreError> {
        let mut connection = self.pool.acquire().await?;
        find(&mut connection, id).await
    }

    /// All tenants in order of creation.
    pub async fn tenants(&self) -> Result<Vec<Tenant>, StoreError> {
        let mut connection = self.pool.acquire().await?;
        let rows: Vec<Row> =
            sqlx::query_as("SELECT * FROM tenants ORDER BY ordinal").fetch_all(&mut *connection).await?;
        let mut tenants = Vec::with_capacity(rows.len());
        for row in rows {
            let (models, sources) = lists(&mut connection, &row.id).await?;
            tenants.push(row.into_tenant(models, sources)?);
        }
        Ok(tenants)
    }

    /// Creates a tenant on behalf of `actor`.
    pub async fn create_tenant(&self, id: &TenantId, settings: &TenantSettings, actor: &str) -> Result<(), StoreError> {
        let mut transaction = self.write().await?;
        let there: i64 = sqlx::query_scalar("SELECT count(*) FROM tenants").fetch_one(&mut *transaction).await?;
        // What verifiers must be able to hold counts on it.
        if count(there)? >= TENANTS_MAX {
            let remedy = "start a second signer, with workers and a bucket of its own";
            return Err(StoreError::TooMany { what: "tenants", max: TENANTS_MAX, remedy });
        }
        insert(&mut transaction, id, settings, false, actor).await?;
        Ok(transaction.commit().await?)
    }

    /// Refuses to go on with a tenant whose name is reserved by now.
    pub(crate) async fn refuse_reserved(&self) -> Result<(), StoreError> {
        for name in TenantId::RESERVED {
            let there = sqlx::query("SELECT 1 FROM tenants WHERE id = $1").bind(name);
            if there.fetch_optional(&self.pool).await?.is_some() {
                return Err(StoreError::ReservedThere(name.to_owned()));
            }
        }
        Ok(())
    }

    /// Changes some of a tenant's settings, for its next tokens and grants.
    pub async fn set_limits(&self, id: &TenantId, patch: SettingsPatch, actor: &str) -> Result<Tenant, StoreError> {
        let mut transaction = self.write().await?;
        let before = existing(&mut transaction, id).await?;
        let settings = patch.apply(before.settings.clone())?;
        let limits = &settings.limits;
        sqlx::query(
            "UPDATE tenants SET requests_per_minute = $1, tokens_per_minute = $2, tokens_burst = $3, tokens_per_day = $4,
             queued_tokens = $5, concurrent_jobs = $6, rows_per_job = $7, dimensions_max = $8, window_s_max = $9,
             stored_bytes = $10 WHERE id = $11",
        )
        .bind(column(limits.requests_per_minute))
        .bind(column(limits.tokens_per_minute))
        .bind(column(limits.tokens_burst))
        .bind(column(limits.tokens_per_day))
        .bind(column(limits.queued_tokens))
        .bind(column(limits.concurrent_jobs))
        .bind(column(settings.rows_per_job))
        .bind(i64::from(settings.dimensions_max))
        .bind(column(settings.window_s_max))
        .bind(limits.stored_bytes.map(column))
        .bind(id.as_str())
        .execute(&mut *transaction)
        .await?;
        sqlx::query("DELETE FROM tenant_models WHERE tenant = $1").bind(id.as_str()).execute(&mut *transaction).await?;
        sqlx::query("DELETE FROM tenant_sources WHERE tenant = $1")
            .bind(id.as_str())
            .execute(&mut *transaction)
            .await?;
        insert_lists(&mut transaction, id, &settings).await?;
        let after = existing(&mut transaction, id).await?;
        let (then, now) = (Some(json!(before.settings)), Some(json!(after.settings)));
        event(actor, "limit.set", id, then, now).record(&mut transaction).await?;
        changed(&mut transaction).await?;
        transaction.commit().await?;
        Ok(after)
    }

    /// Suspends a tenant or lets it back in. Suspending also voids every token and grant that it has.
    pub async fn set_active(&self, id: &TenantId, active: bool, actor: &str) -> Result<Tenant, StoreError> {
        let mut transaction = self.write().await?;
        let before = existing(&mut transaction, id).await?;
        sqlx::query("UPDATE tenants SET status = $1 WHERE id = $2")
            .bind(if active { "active" } else { "suspended" })
            .bind(id.as_str())
            .execute(&mut *transaction)
            .await?;
        if !active {
            advance(&mut transaction, id).await?;
        }
        let after = existing(&mut transaction, id).await?;
        let action = if active { "tenant.resume" } else { "tenant.suspend" };
        event(actor, action, id, state(&before), state(&after)).record(&mut transaction).await?;
        changed(&mut transaction).await?;
        transaction.commit().await?;
        Ok(after)
    }

    /// Voids every token and grant that a tenant has. Its keys get new ones.
    pub async fn void_tokens(&self, id: &TenantId, actor: &str) -> Result<Tenant, StoreError> {
        let mut transaction = self.write().await?;
        let before = existing(&mut transaction, id).await?;
        advance(&mut transaction, id).await?;
        let after = existing(&mut transaction, id).await?;
        event(actor, "tenant.void-tokens", id, state(&before), state(&after)).record(&mut transaction).await?;
        changed(&mut transaction).await?;
        transaction.commit().await?;
        Ok(after)
    }
}

fn state(tenant: &Tenant) -> Option<serde_json::Value> {
    Some(json!({"active": tenant.active, "epoch": tenant.epoch}))
}

fn event<'a>(
    actor: &'a str,
    action: &'static str,
    tenant: &'a TenantId,
    before: Option<serde_json::Value>,
    after: Option<serde_json::Value>,
) -> Event<'a> {
    Event { actor, action, tenant: Some(tenant), subject: tenant.as_str(), before, after }
}

/// Tokens of the epoch that ends here can be alive for as long as any grant.
pub(super) async fn advance(connection: &mut AnyConnection, id: &TenantId) -> Result<(), StoreError> {
    sqlx::query("UPDATE tenants SET epoch = epoch + 1, epoch_matters_until_s = $1 WHERE id = $2")
        .bind(column(unix_now() + GRANT_LIFETIME_S_MAX + 2 * LEEWAY_S))
        .bind(id.as_str())
        .execute(connection)
        .await?;
    Ok(())
}

/// Inserts a tenant, its lists and the event.
pub(super) async fn insert(
    connection: &mut AnyConnection,
    id: &TenantId,
    settings: &TenantSettings,
    operator: bool,
    actor: &str,
) -> Result<(), StoreError> {
    if id.is_reserved() {
        return Err(StoreError::Reserved(id.to_string()));
    }
    let limits = &settings.limits;
    let inserted = sqlx::query(
        "INSERT INTO tenants (id, operator, requests_per_minute, tokens_per_minute, tokens_burst, tokens_per_day,
         queued_tokens, concurrent_jobs, rows_per_job, dimensions_max, window_s_max, stored_bytes, created_s, ordinal)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13,
         (SELECT coalesce(max(ordinal) + 1, 0) FROM tenants))",
    )
    .bind(id.as_str())
    .bind(i64::from(operator))
    .bind(column(limits.requests_per_minute))
    .bind(column(limits.tokens_per_minute))
    .bind(column(limits.tokens_burst))
    .bind(column(limits.tokens_per_day))
    .bind(column(limits.queued_tokens))
    .bind(column(limits.concurrent_jobs))
    .bind(column(settings.rows_per_job))
    .bind(i64::from(settings.dimensions_max))
    .bind(column(settings.window_s_max))
    .bind(limits.stored_bytes.map(column))
    .bind(column(unix_now()))
    .execute(&mut *connection)
    .await;
    match inserted {
        Err(sqlx::Error::Database(error)) if error.is_unique_violation() => {
            return Err(StoreError::TenantExists(id.to_string()));
        }
        inserted => inserted?,
    };
    insert_lists(connection, id, settings).await?;
    event(actor, "tenant.create", id, None, Some(json!(settings))).record(connection).await
}

async fn insert_lists(
    connection: &mut AnyConnection,
    id: &TenantId,
    settings: &TenantSettings,
) -> Result<(), StoreError> {
    for model in &settings.models {
        sqlx::query("INSERT INTO tenant_models (tenant, model) VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(id.as_str())
            .bind(model)
            .execute(&mut *connection)
            .await?;
    }
    for source in &settings.sources {
        sqlx::query("INSERT INTO tenant_sources (tenant, cidr) VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(id.as_str())
            .bind(source.to_string())
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

async fn find(connection: &mut AnyConnection, id: &TenantId) -> Result<Option<Tenant>, StoreError> {
    let row: Option<Row> = sqlx::query_as("SELECT * FROM tenants WHERE id = $1")
        .bind(id.as_str())
        .fetch_optional(&mut *connection)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let (models, sources) = lists(connection, &row.id).await?;
    row.into_tenant(models, sources).map(Some)
}

pub(super) async fn existing(connection: &mut AnyConnection, id: &TenantId) -> Result<Tenant, StoreError> {
    find(connection, id).await?.ok_or_else(|| StoreError::NoTenant(id.to_string()))
}

async fn lists(connection: &mut AnyConnection, tenant: &str) -> Result<(Vec<String>, Vec<Cidr>), StoreError> {
    let models = sqlx::query_scalar("SELECT model FROM tenant_models WHERE tenant = $1 ORDER BY model");
    let models: Vec<String> = models.bind(tenant).fetch_all(&mut *connection).await?;
    let sources = sqlx::query_scalar("SELECT cidr FROM tenant_sources WHERE tenant = $1 ORDER BY cidr");
    let sources: Vec<String> = sources.bind(tenant).fetch_all(&mut *connection).await?;
    let sources = sources.iter().map(|cidr| cidr.parse()).collect::<Result<_, _>>();
    // A source that can't be read must not read as "from anywhere".
    Ok((models, sources.map_err(|_| StoreError::Corrupt("a source address"))?))
}
