//! Tenants and what they may use.

use serde::Serialize;
use sqlx::{FromRow, SqliteConnection};

use super::events::Event;
use super::{Store, StoreError, column, count};
use crate::claims::{Limits, TenantId};
use crate::time::unix_now;

/// What an operator sets for a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TenantSettings {
    /// Models the tenant may use. Closed by default: an empty list allows none.
    pub models: Vec<String>,
    /// Token quota.
    pub limits: Limits,
    /// Most rows in one job.
    pub rows_per_job: u64,
    /// Longest completion window, seconds.
    pub window_s_max: u64,
}

impl Default for TenantSettings {
    /// Enough for a first large corpus without a call to the operator: 60 million tokens a minute is more than a rack of
    /// GPUs computes, and a day's 50 billion is 100 million texts of 500 tokens.
    fn default() -> Self {
        let models =
            ["Qwen/Qwen3-Embedding-4B", "Qwen/Qwen3-Embedding-0.6B", "Qwen/Qwen3-Embedding-8B", "vecmill/mini"];
        Self {
            models: models.map(str::to_owned).to_vec(),
            limits: Limits { tokens_per_minute: 60_000_000, tokens_burst: 60_000_000, tokens_per_day: 50_000_000_000 },
            rows_per_job: 100_000_000,
            window_s_max: 24 * 3600,
        }
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
    epoch: i64,
    tokens_per_minute: i64,
    tokens_burst: i64,
    tokens_per_day: i64,
    rows_per_job: i64,
    window_s_max: i64,
    created_s: i64,
}

impl Row {
    fn into_tenant(self, models: Vec<String>) -> Result<Tenant, StoreError> {
        Ok(Tenant {
            id: TenantId::try_from(self.id).map_err(|_| StoreError::Corrupt("a tenant's name"))?,
            ordinal: count(self.ordinal)?,
            active: self.status == "active",
            epoch: count(self.epoch)?,
            settings: TenantSettings {
                models,
                limits: Limits {
                    tokens_per_minute: count(self.tokens_per_minute)?,
                    tokens_burst: count(self.tokens_burst)?,
                    tokens_per_day: count(self.tokens_per_day)?,
                },
                rows_per_job: count(self.rows_per_job)?,
                window_s_max: count(self.window_s_max)?,
            },
            created_s: count(self.created_s)?,
        })
    }
}

impl Store {
    /// The tenant named `id`, if there is one.
    pub async fn tenant(&self, id: &TenantId) -> Result<Option<Tenant>, StoreError> {
        let mut connection = self.pool.acquire().await?;
        let row: Option<Row> = sqlx::query_as("SELECT * FROM tenants WHERE id = ?")
            .bind(id.as_str())
            .fetch_optional(&mut *connection)
            .await?;
        match row {
            Some(row) => {
                let models = models(&mut connection, &row.id).await?;
                row.into_tenant(models).map(Some)
            }
            None => Ok(None),
        }
    }

    /// All tenants in order of creation.
    pub async fn tenants(&self) -> Result<Vec<Tenant>, StoreError> {
        let mut connection = self.pool.acquire().await?;
        let rows: Vec<Row> =
            sqlx::query_as("SELECT * FROM tenants ORDER BY ordinal").fetch_all(&mut *connection).await?;
        let mut tenants = Vec::with_capacity(rows.len());
        for row in rows {
            let models = models(&mut connection, &row.id).await?;
            tenants.push(row.into_tenant(models)?);
        }
        Ok(tenants)
    }

    /// Creates a tenant on behalf of `actor`.
    pub async fn create_tenant(&self, id: &TenantId, settings: &TenantSettings, actor: &str) -> Result<(), StoreError> {
        let mut transaction = self.write().await?;
        insert(&mut transaction, id, settings, actor).await?;
        Ok(transaction.commit().await?)
    }
}

/// Inserts a tenant, its models and the event.
pub(super) async fn insert(
    connection: &mut SqliteConnection,
    id: &TenantId,
    settings: &TenantSettings,
    actor: &str,
) -> Result<(), StoreError> {
    let inserted = sqlx::query(
        "INSERT INTO tenants (id, ordinal, tokens_per_minute, tokens_burst, tokens_per_day, rows_per_job, window_s_max, created_s)
         SELECT ?, coalesce(max(ordinal) + 1, 0), ?, ?, ?, ?, ?, ? FROM tenants",
    )
    .bind(id.as_str())
    .bind(column(settings.limits.tokens_per_minute))
    .bind(column(settings.limits.tokens_burst))
    .bind(column(settings.limits.tokens_per_day))
    .bind(column(settings.rows_per_job))
    .bind(column(settings.window_s_max))
    .bind(column(unix_now()))
    .execute(&mut *connection)
    .await;
    match inserted {
        Err(sqlx::Error::Database(error)) if error.is_unique_violation() => {
            return Err(StoreError::TenantExists(id.to_string()));
        }
        inserted => inserted?,
    };
    for model in &settings.models {
        sqlx::query("INSERT OR IGNORE INTO tenant_models (tenant, model) VALUES (?, ?)")
            .bind(id.as_str())
            .bind(model)
            .execute(&mut *connection)
            .await?;
    }
    Event { actor, action: "tenant.create", tenant: Some(id), subject: id.as_str() }.record(connection).await
}

async fn models(connection: &mut SqliteConnection, tenant: &str) -> Result<Vec<String>, StoreError> {
    let query = sqlx::query_scalar("SELECT model FROM tenant_models WHERE tenant = ? ORDER BY model");
    Ok(query.bind(tenant).fetch_all(connection).await?)
}
