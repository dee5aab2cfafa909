//! What was revoked and can still matter: the content of the signer's statement.

use sqlx::{AnyConnection, FromRow};

use super::events::Event;
use super::{Store, StoreError, changed, column, count};
use crate::claims::{JobId, RevocationClaims, RevokedJob, TenantId};
use crate::time::unix_now;
use crate::verify::{GRANT_LIFETIME_S_MAX, LEEWAY_S};

/// Live revocations of tokens and jobs of one tenant. More than this is a matter for the tenant's epoch, which voids all
/// of them with one entry.
const PER_TENANT_MAX: u64 = 1000;

/// What kind of thing was revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Key,
    Token,
    Job,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Token => "token",
            Self::Job => "job",
        }
    }
}

#[derive(FromRow)]
struct Row {
    kind: String,
    tenant: String,
    id: String,
    revoked_s: i64,
}

#[derive(FromRow)]
struct Epoch {
    id: String,
    epoch: i64,
}

impl Store {
    /// Revokes one access token, which expires by itself at `expires_s`.
    pub(crate) async fn revoke_token(
        &self,
        tenant: &TenantId,
        token_id: &str,
        expires_s: u64,
        actor: &str,
    ) -> Result<(), StoreError> {
        self.revoke(Kind::Token, tenant, token_id, expires_s + 2 * LEEWAY_S, actor, "token.revoke").await
    }

    /// Revokes the grants that a job has so far. The job may be submitted again.
    pub async fn revoke_job(&self, tenant: &TenantId, job: &JobId, actor: &str) -> Result<(), StoreError> {
        let until_s = unix_now() + GRANT_LIFETIME_S_MAX + 2 * LEEWAY_S;
        self.revoke(Kind::Job, tenant, job.as_str(), until_s, actor, "job.revoke").await
    }

    async fn revoke(
        &self,
        kind: Kind,
        tenant: &TenantId,
        id: &str,
        until_s: u64,
        actor: &str,
        action: &'static str,
    ) -> Result<(), StoreError> {
        let mut transaction = self.write().await?;
        super::tenants::existing(&mut transaction, tenant).await?;
        let live: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM revocations WHERE tenant = $1 AND kind <> 'key' AND until_s > $2 AND id <> $3",
        )
        .bind(tenant.as_str())
        .bind(column(unix_now()))
        .bind(id)
        .fetch_one(&mut *transaction)
        .await?;
        if count(live)? >= PER_TENANT_MAX {
            let remedy = "void all of the tenant's tokens at once with `tenant void-tokens`";
            return Err(StoreError::TooMany { what: "revoked tokens and jobs", max: PER_TENANT_MAX, remedy });
        }
        insert(&mut transaction, kind, tenant, id, until_s).await?;
        let event = Event { actor, action, tenant: Some(tenant), subject: id, ..Event::default() };
        event.record(&mut transaction).await?;
        changed(&mut transaction).await?;
        Ok(transaction.commit().await?)
    }

    /// Whether a token was revoked by its id.
    pub(crate) async fn is_token_revoked(&self, tenant: &TenantId, token_id: &str) -> Result<bool, StoreError> {
        let row = sqlx::query("SELECT 1 FROM revocations WHERE kind = 'token' AND tenant = $1 AND id = $2");
        Ok(row.bind(tenant.as_str()).bind(token_id).fetch_optional(&self.pool).await?.is_some())
    }

    /// When grants of a job were last revoked, Unix seconds.
    pub(crate) async fn job_revoked(&self, tenant: &TenantId, job: &JobId) -> Result<Option<u64>, StoreError> {
        let at = sqlx::query_scalar("SELECT revoked_s FROM revocations WHERE kind = 'job' AND tenant = $1 AND id = $2");
        let at: Option<i64> = at.bind(tenant.as_str()).bind(job.as_str()).fetch_optional(&self.pool).await?;
        at.map(count).transpose()
    }

    /// Everything revoked that can still matter, and the number of the state it is of. Who signs fills in the rest.
    pub(crate) async fn revoked(&self) -> Result<RevocationClaims, StoreError> {
        let now = column(unix_now());
        // The number first: what changes in between makes it look older than it is, and is read again.
        let seq = self.seq().await?;
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT kind, tenant, id, revoked_s FROM revocations WHERE until_s > $1 ORDER BY kind, tenant, id",
        )
        .bind(now)
        .fetch_all(&self.pool)
        .await?;
        let epochs: Vec<Epoch> =
            sqlx::query_as("SELECT id, epoch FROM tenants WHERE epoch_matters_until_s > $1 ORDER BY id")
                .bind(now)
                .fetch_all(&self.pool)
                .await?;
        let withdrawn: Vec<String> = sqlx::query_scalar(
            "SELECT kid FROM signing_keys WHERE withdrawn_s IS NOT NULL AND withdrawn_s > $1 ORDER BY kid",
        )
        .bind(column(unix_now().saturating_sub(GRANT_LIFETIME_S_MAX + 2 * LEEWAY_S)))
        .fetch_all(&self.pool)
        .await?;

        let tenant = |name: String| TenantId::try_from(name).map_err(|_| StoreError::Corrupt("a tenant's name"));
        let mut claims = RevocationClaims {
            seq,
            withdrawn_kids: withdrawn,
            tenants: epochs
                .into_iter()
                .map(|row| Ok((tenant(row.id)?, count(row.epoch)?)))
                .collect::<Result<_, StoreError>>()?,
            ..RevocationClaims::default()
        };
        for row in rows {
            match row.kind.as_str() {
                "key" => claims.keys.push(row.id),
                "token" => claims.tokens.push(row.id),
                _ => claims.jobs.push(RevokedJob {
                    tenant: tenant(row.tenant)?,
                    job: JobId::try_from(row.id).map_err(|_| StoreError::Corrupt("a job's id"))?,
                    until: count(row.revoked_s)?,
                }),
            }
        }
        Ok(claims)
    }

    /// Forgets what can't matter any more.
    pub(crate) async fn forget_revocations(&self) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM revocations WHERE until_s <= $1").bind(column(unix_now())).execute(&self.pool).await?;
        Ok(())
    }
}

/// Inserts a revocation, or renews one.
pub(super) async fn insert(
    connection: &mut AnyConnection,
    kind: Kind,
    tenant: &TenantId,
    id: &str,
    until_s: u64,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO revocations (kind, tenant, id, revoked_s, until_s) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (kind, tenant, id) DO UPDATE SET revoked_s = excluded.revoked_s, until_s = excluded.until_s",
    )
    .bind(kind.as_str())
    .bind(tenant.as_str())
    .bind(id)
    .bind(column(unix_now()))
    .bind(column(until_s))
    .execute(connection)
    .await?;
    Ok(())
}
