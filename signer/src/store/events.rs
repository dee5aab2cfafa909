//! Who did what. Written in the same transaction as the deed, so there is neither without the other.

use sqlx::SqliteConnection;

use super::{Store, StoreError, column};
use crate::claims::{JobId, TenantId};
use crate::time::unix_now;

/// One row of the events table.
pub(super) struct Event<'a> {
    /// `cli`, or the id of an API key.
    pub(super) actor: &'a str,
    pub(super) action: &'static str,
    pub(super) tenant: Option<&'a TenantId>,
    /// What it was done to: the id of a key, tenant or job. Never a secret.
    pub(super) subject: &'a str,
}

impl Event<'_> {
    pub(super) async fn record(self, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO events (at_s, actor, action, tenant, subject) VALUES (?, ?, ?, ?, ?)")
            .bind(column(unix_now()))
            .bind(self.actor)
            .bind(self.action)
            .bind(self.tenant.map(TenantId::as_str))
            .bind(self.subject)
            .execute(connection)
            .await?;
        Ok(())
    }
}

impl Store {
    /// Records that an API key is about to be given a grant. It comes before the grant: no grant without its record.
    pub async fn record_grant(&self, tenant: &TenantId, key_id: &str, job: &JobId) -> Result<(), StoreError> {
        let mut transaction = self.write().await?;
        Event { actor: key_id, action: "grant.mint", tenant: Some(tenant), subject: job.as_str() }
            .record(&mut transaction)
            .await?;
        Ok(transaction.commit().await?)
    }
}
