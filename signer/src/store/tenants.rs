//! Tenants: who there is, and what is stored of them.

use serde::Serialize;
use serde_json::json;
use sqlx::{AnyConnection, FromRow};

use super::events::Event;
use super::revocations::SLACK_S;
use super::settings::{SettingsPatch, TenantSettings};
use super::{Store, StoreError, changed, column, count};
use crate::cidr::Cidr;
use crate::claims::{Limits, TenantId};
use crate::revocations::TENANTS_MAX;
use crate::time::unix_now;
use crate::verify::GRANT_LIFETIME_S_MAX;

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

/// The columns of a tenant's quota.
#[derive(FromRow)]
pub(super) struct LimitsRow {
    requests_per_minute: i64,
    tokens_per_minute: i64,
    tokens_burst: i64,
    tokens_per_day: i64,
    queued_tokens: i64,
    concurrent_jobs: i64,
    stored_bytes: Option<i64>,
}

impl LimitsRow {
    pub(super) fn into_limits(self) -> Result<Limits, StoreError> {
        Ok(Limits {
            requests_per_minute: count(self.requests_per_minute)?,
            tokens_per_minute: count(self.tokens_per_minute)?,
            tokens_burst: count(self.tokens_burst)?,
            tokens_per_day: count(self.tokens_per_day)?,
            queued_tokens: count(self.queued_tokens)?,
            concurrent_jobs: count(self.concurrent_jobs)?,
            stored_bytes: self.stored_bytes.map(count).transpose()?,
        })
    }
}

#[derive(FromRow)]
struct Row {
    id: String,
    ordinal: i64,
    status: String,
    operator: i64,
    epoch: i64,
    #[sqlx(flatten)]
    limits: LimitsRow,
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
                limits: self.limits.into_limits()?,
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
        .bind(column(unix_now() + GRANT_LIFETIME_S_MAX + SLACK_S))
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
