//! Who did what, with what was there before and after. Written in the same transaction as the deed, so there is neither
//! without the other.

use serde::Serialize;
use serde_json::Value;
use sqlx::{AnyConnection, FromRow};

use super::{Store, StoreError, column, count};
use crate::claims::TenantId;
use crate::time::unix_now;

/// Most events in one answer: about a megabyte.
pub(crate) const EVENTS_MAX: u32 = 1000;

/// One deed.
#[derive(Default)]
pub(super) struct Event<'a> {
    /// `cli`, or the id of an API key.
    pub(super) actor: &'a str,
    pub(super) action: &'static str,
    pub(super) tenant: Option<&'a TenantId>,
    /// What it was done to: the id of a key, tenant or job. Never a secret.
    pub(super) subject: &'a str,
    pub(super) before: Option<Value>,
    pub(super) after: Option<Value>,
}

impl Event<'_> {
    pub(super) async fn record(self, connection: &mut AnyConnection) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO events (at_s, actor, action, tenant, subject, before, after) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(column(unix_now()))
        .bind(self.actor)
        .bind(self.action)
        .bind(self.tenant.map(|tenant| tenant.as_str().to_owned()))
        .bind(self.subject)
        .bind(self.before.map(|value| value.to_string()))
        .bind(self.after.map(|value| value.to_string()))
        .execute(connection)
        .await?;
        Ok(())
    }
}

/// One row of the audit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuditEvent {
    /// Its number, in order of commitment.
    pub seq: u64,
    /// When, Unix seconds.
    pub at_s: u64,
    /// Who: `cli:` and the user's number, or the id of an API key.
    pub actor: String,
    /// What, such as `key.revoke`.
    pub action: String,
    /// Whose it is, where it is a tenant's.
    pub tenant: Option<String>,
    /// The id of what it was done to.
    pub subject: String,
    /// What was there before.
    pub before: Option<Value>,
    /// What is there now.
    pub after: Option<Value>,
}

/// Which events to show, newest first.
#[derive(Debug, Clone, Default)]
pub struct AuditFilter {
    /// Only this tenant's.
    pub tenant: Option<TenantId>,
    /// Only older ones than this number: where the last answer ended.
    pub before_seq: Option<u64>,
    /// How many; at most 1000.
    pub limit: u32,
}

#[derive(FromRow)]
struct Row {
    seq: i64,
    at_s: i64,
    actor: String,
    action: String,
    tenant: Option<String>,
    subject: String,
    before: Option<String>,
    after: Option<String>,
}

impl Store {
    /// The audit, newest first.
    pub async fn audit(&self, filter: &AuditFilter) -> Result<Vec<AuditEvent>, StoreError> {
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT seq, at_s, actor, action, tenant, subject, before, after FROM events
             WHERE seq < $1 AND (tenant = $2 OR $3 = 1) ORDER BY seq DESC LIMIT $4",
        )
        .bind(filter.before_seq.map_or(i64::MAX, column))
        .bind(filter.tenant.as_ref().map_or(String::new(), |tenant| tenant.as_str().to_owned()))
        .bind(i64::from(filter.tenant.is_none()))
        .bind(i64::from(filter.limit.min(EVENTS_MAX)))
        .fetch_all(&self.pool)
        .await?;
        let json = |text: Option<String>| text.and_then(|text| serde_json::from_str(&text).ok());
        rows.into_iter()
            .map(|row| {
                Ok(AuditEvent {
                    seq: count(row.seq)?,
                    at_s: count(row.at_s)?,
                    actor: row.actor,
                    action: row.action,
                    tenant: row.tenant,
                    subject: row.subject,
                    before: json(row.before),
                    after: json(row.after),
                })
            })
            .collect()
    }
}
