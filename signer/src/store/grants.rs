//! The record of a grant, which comes before the grant, in one transaction with everything that the grant rests on: changes come one
//! after the other, so a revocation is either seen here, or it sees what was recorded here.

use super::events::Event;
use super::revocations::{job_revoked, standing};
use super::{Store, StoreError, Tenant, column, tenants};
use crate::claims::Scope;
use crate::policy::{self, Denial};
use crate::time::unix_now;
use crate::verify::VerifiedAccess;
use crate::wire::GrantRequest;

/// A grant that may be signed.
#[derive(Debug)]
pub(crate) struct Granted {
    /// Whom it is for, as of this record.
    pub(crate) tenant: Tenant,
    /// When it is issued, Unix seconds.
    pub(crate) issued_s: u64,
}

/// Why there is no grant.
#[derive(Debug)]
pub(crate) enum NotGranted {
    /// What was shown is good no longer: the reason, for the log.
    Void(&'static str),
    /// The key's role has lost the scope.
    NoScope,
    /// Policy says no.
    Denied(Denial),
    /// The job was revoked this second. A grant of the same second could not be told from those before it.
    JustRevoked,
    /// The database.
    Store(StoreError),
}

impl<E: Into<StoreError>> From<E> for NotGranted {
    fn from(error: E) -> Self {
        Self::Store(error.into())
    }
}

impl Store {
    /// Records that the bearer of `access` is about to be given the grant it asks for, if it still may.
    pub(crate) async fn record_grant(
        &self,
        access: &VerifiedAccess,
        request: &GrantRequest,
    ) -> Result<Granted, NotGranted> {
        let mut transaction = self.write().await?;
        let now = unix_now();
        let key = standing(&mut transaction, access, now).await?.map_err(NotGranted::Void)?;
        if !key.scopes.contains(&Scope::JobsSubmit) {
            return Err(NotGranted::NoScope);
        }
        let tenant = tenants::existing(&mut transaction, access.tenant()).await?;
        policy::check(&tenant.settings, request).map_err(NotGranted::Denied)?;
        if job_revoked(&mut transaction, &tenant.id, &request.job).await?.is_some_and(|at| at >= now) {
            return Err(NotGranted::JustRevoked);
        }
        sqlx::query("UPDATE api_keys SET grants_until_s = $1 WHERE id = $2 AND grants_until_s < $1")
            .bind(column(now.saturating_add(request.window_s)))
            .bind(access.key_id())
            .execute(&mut *transaction)
            .await?;
        sqlx::query("UPDATE state SET granted_s = $1 WHERE id = 1 AND granted_s < $1")
            .bind(column(now))
            .execute(&mut *transaction)
            .await?;
        let (actor, subject) = (access.key_id(), request.job.as_str());
        let event = Event { actor, action: "grant.mint", tenant: Some(&tenant.id), subject, ..Event::default() };
        event.record(&mut transaction).await?;
        transaction.commit().await?;
        Ok(Granted { tenant, issued_s: now })
    }
}
