//! What was revoked and can still matter: the content of the signer's statement.
//!
//! The statement's size is bounded whatever a tenant does. Of one tenant it has [`ENTRIES_PER_TENANT_MAX`] entries and its
//! own. Where a revocation would be one more,
//!
//! 1. those of tokens, and of keys that have no grant about, become one: the tenant's access and embed tokens up to this second are
//!    void. Whoever has a key logs in again; no job and no batch notices;
//! 2. where that is not enough, a key's revocation voids all that the tenant was given, its jobs' grants included: the
//!    keys' grants, one by one, would be more than verifiers can hold, and a revocation of a key must not fail;
//! 3. and that of a job is refused: jobs are stopped by cancelling them, and to void all the others for one is the tenant's to
//!    choose.

use sqlx::{AnyConnection, FromRow};

use super::events::Event;
use super::{Store, StoreError, StoredKey, api_keys, changed, column, count, tenants};
use crate::claims::{JobId, OldRevocationClaims, OldRevokedJob, RevocationClaims, RevokedName, TenantId};
use crate::mint::{EMBED_LIFETIME_S, SUBMISSION_LIFETIME_S};
use crate::revocations::ENTRIES_PER_TENANT_MAX;
use crate::time::unix_now;
use crate::verify::{ACCESS_LIFETIME_S_MAX, GRANT_LIFETIME_S_MAX, LEEWAY_S, VerifiedAccess};

/// Revoked tokens of one tenant that the signer keeps for its own checks, for as long as submission tokens live. Beyond, all
/// submission tokens up to then are void: whoever revokes a token a minute all day long is not cutting a corpus.
const TOKENS_PER_TENANT_MAX: u64 = 1000;
/// What an entry outlives its tokens by: a leeway each for the clocks of who minted and of who verifies, one for which a token is
/// taken after its end, and one for a request that was in hand.
pub(super) const SLACK_S: u64 = 4 * LEEWAY_S;
/// Tokens are taken together up to so much ahead of the clock, and none is minted until then: another signer's clock may be a little
/// ahead, and a token of this very second can't be told from those before it.
const AHEAD_S: u64 = 1;
/// From then on no access or embed token of an earlier second is alive.
const TOKENS_MATTER_S: u64 = ACCESS_LIFETIME_S_MAX + EMBED_LIFETIME_S + SLACK_S;

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

/// A token to be revoked, of whichever kind.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Revoked<'a> {
    pub(crate) tenant: &'a TenantId,
    pub(crate) id: &'a str,
    /// Whether other tokens may have been made with it, which are then void as well.
    pub(crate) has_children: bool,
    /// Whether verifiers beside the signer take it.
    pub(crate) is_told: bool,
    pub(crate) expires_s: u64,
}

/// The key behind what somebody shows, if that is still good by the database; if not, why, for the log.
pub(crate) type Standing = Result<StoredKey, &'static str>;

#[derive(FromRow)]
struct Row {
    kind: String,
    tenant: String,
    id: String,
    revoked_s: i64,
    told_until_s: i64,
}

#[derive(FromRow)]
struct TenantRow {
    id: String,
    epoch: i64,
    epoch_matters_until_s: i64,
    tokens_void_until_s: i64,
}

impl Store {
    /// Revokes one token.
    pub(crate) async fn revoke_token(&self, token: Revoked<'_>, actor: &str) -> Result<(), StoreError> {
        let mut transaction = self.write().await?;
        tenants::existing(&mut transaction, token.tenant).await?;
        let now = unix_now();
        let there: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM revocations WHERE tenant = $1 AND kind = 'token' AND until_s > $2 AND id <> $3",
        )
        .bind(token.tenant.as_str())
        .bind(column(now))
        .bind(token.id)
        .fetch_one(&mut *transaction)
        .await?;
        if count(there)? >= TOKENS_PER_TENANT_MAX {
            sqlx::query("DELETE FROM revocations WHERE tenant = $1 AND kind = 'token'")
                .bind(token.tenant.as_str())
                .execute(&mut *transaction)
                .await?;
            sqlx::query("UPDATE tenants SET tokens_void_until_s = $1, submissions_void_until_s = $1 WHERE id = $2")
                .bind(column(now + AHEAD_S))
                .bind(token.tenant.as_str())
                .execute(&mut *transaction)
                .await?;
            record(&mut transaction, token.tenant, "tenant.void-sessions", actor).await?;
        } else {
            let children_s = |lifetime_s| if token.has_children { lifetime_s } else { 0 };
            let until_s = token.expires_s + children_s(SUBMISSION_LIFETIME_S) + SLACK_S;
            let told_until_s = if token.is_told { token.expires_s + children_s(EMBED_LIFETIME_S) + SLACK_S } else { 0 };
            insert(&mut transaction, Kind::Token, token.tenant, token.id, until_s, told_until_s).await?;
            fold(&mut transaction, token.tenant, actor).await?;
        }
        let (tenant, subject) = (Some(token.tenant), token.id);
        Event { actor, action: "token.revoke", tenant, subject, ..Event::default() }.record(&mut transaction).await?;
        changed(&mut transaction).await?;
        Ok(transaction.commit().await?)
    }

    /// Revokes the grants that a job has so far. The job may be submitted again.
    pub async fn revoke_job(&self, tenant: &TenantId, job: &JobId, actor: &str) -> Result<(), StoreError> {
        let mut transaction = self.write().await?;
        tenants::existing(&mut transaction, tenant).await?;
        let (jobs_and_grants, id) = (grants_told(&mut transaction, tenant, job.as_str()).await?, job.as_str());
        if jobs_and_grants >= ENTRIES_PER_TENANT_MAX {
            let remedy = "cancel the job instead, or void all that the tenant was given with `tenant void-tokens`";
            let what = "revoked jobs, and revoked keys with grants, of this tenant";
            return Err(StoreError::TooMany { what, max: ENTRIES_PER_TENANT_MAX, remedy });
        }
        let until_s = unix_now() + GRANT_LIFETIME_S_MAX + SLACK_S;
        insert(&mut transaction, Kind::Job, tenant, id, until_s, until_s).await?;
        // Grants that were recorded, by whichever signer's clock.
        sqlx::query(
            "UPDATE revocations SET revoked_s = (SELECT granted_s FROM state WHERE id = 1) WHERE kind = 'job' AND tenant = $1
             AND id = $2 AND revoked_s < (SELECT granted_s FROM state WHERE id = 1)",
        )
        .bind(tenant.as_str())
        .bind(id)
        .execute(&mut *transaction)
        .await?;
        Event { actor, action: "job.revoke", tenant: Some(tenant), subject: id, ..Event::default() }
            .record(&mut transaction)
            .await?;
        fold(&mut transaction, tenant, actor).await?;
        changed(&mut transaction).await?;
        Ok(transaction.commit().await?)
    }

    /// Whether what was shown is still good.
    pub(crate) async fn standing(&self, access: &VerifiedAccess) -> Result<Standing, StoreError> {
        standing(&mut *self.pool.acquire().await?, access, unix_now()).await
    }

    /// Whether one of these tokens of a tenant was revoked by its id.
    pub(crate) async fn is_token_revoked(&self, tenant: &TenantId, ids: [&str; 2]) -> Result<bool, StoreError> {
        is_token_revoked(&mut *self.pool.acquire().await?, tenant, ids).await
    }

    /// When grants of a job were last revoked, Unix seconds.
    pub(crate) async fn job_revoked(&self, tenant: &TenantId, job: &JobId) -> Result<Option<u64>, StoreError> {
        job_revoked(&mut *self.pool.acquire().await?, tenant, job).await
    }

    /// Everything revoked that can still matter, and the number of the state it is of; the same as verifiers of before want it, if
    /// `old` is asked for. Who signs fills in the rest.
    pub(crate) async fn revoked(
        &self,
        old: bool,
    ) -> Result<(RevocationClaims, Option<OldRevocationClaims>), StoreError> {
        let now = unix_now();
        // The number first: what changes in between makes it look older than it is, and is read again.
        let seq = self.seq().await?;
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT kind, tenant, id, revoked_s, told_until_s FROM revocations WHERE until_s > $1 AND (told_until_s > $1 OR $2 = 1)",
        )
        .bind(column(now))
        .bind(i64::from(old))
        .fetch_all(&self.pool)
        .await?;
        let tenants: Vec<TenantRow> = sqlx::query_as(
            "SELECT id, epoch, epoch_matters_until_s, tokens_void_until_s FROM tenants
             WHERE epoch_matters_until_s > $1 OR tokens_void_until_s > $2",
        )
        .bind(column(now))
        .bind(column(now.saturating_sub(TOKENS_MATTER_S)))
        .fetch_all(&self.pool)
        .await?;
        let withdrawn: Vec<String> = sqlx::query_scalar(
            "SELECT kid FROM signing_keys WHERE withdrawn_s IS NOT NULL AND withdrawn_s > $1 ORDER BY kid",
        )
        .bind(column(now.saturating_sub(GRANT_LIFETIME_S_MAX + SLACK_S)))
        .fetch_all(&self.pool)
        .await?;

        let tenant = |name: String| TenantId::try_from(name).map_err(|_| StoreError::Corrupt("a tenant's name"));
        let mut claims = RevocationClaims { seq, withdrawn_kids: withdrawn.clone(), ..RevocationClaims::default() };
        let mut before = OldRevocationClaims { seq, withdrawn_kids: withdrawn, ..OldRevocationClaims::default() };
        for row in tenants {
            let (id, epoch, matters) = (tenant(row.id)?, count(row.epoch)?, count(row.epoch_matters_until_s)? > now);
            let epoch = if matters { epoch } else { 0 };
            claims.tenants.insert(RevokedName::of_tenant(&id), (epoch, count(row.tokens_void_until_s)?));
            if old && matters {
                before.tenants.insert(id, epoch);
            }
        }
        for row in rows {
            let told = count(row.told_until_s)? > now;
            if row.kind == "job" {
                let (tenant, until) = (tenant(row.tenant)?, count(row.revoked_s)?);
                let job = JobId::try_from(row.id).map_err(|_| StoreError::Corrupt("a job's id"))?;
                if told {
                    claims.jobs.push((RevokedName::of_job(&tenant, &job), until));
                }
                if old {
                    before.jobs.push(OldRevokedJob { tenant, job, until });
                }
                continue;
            }
            let key = row.kind == "key";
            if told {
                claims.names.push(if key { RevokedName::of_key(&row.id) } else { RevokedName::of_token(&row.id) });
            }
            if old {
                if key { &mut before.keys } else { &mut before.tokens }.push(row.id);
            }
        }
        // In the order of digests: any other would say which belong together.
        claims.names.sort_unstable();
        claims.jobs.sort_unstable();
        Ok((claims, old.then_some(before)))
    }

    /// Makes what tenants have revoked fit the statement: a database from before there was a bound may hold more.
    pub(crate) async fn fold_revocations(&self) -> Result<(), StoreError> {
        let over: Vec<String> = sqlx::query_scalar(
            "SELECT tenant FROM revocations WHERE until_s > $1 AND told_until_s > $1 GROUP BY tenant HAVING count(*) > $2",
        )
        .bind(column(unix_now()))
        .bind(column(ENTRIES_PER_TENANT_MAX))
        .fetch_all(&self.pool)
        .await?;
        for name in over {
            let tenant = TenantId::try_from(name).map_err(|_| StoreError::Corrupt("a tenant's name"))?;
            let mut transaction = self.write().await?;
            fold(&mut transaction, &tenant, "serve").await?;
            changed(&mut transaction).await?;
            transaction.commit().await?;
        }
        Ok(())
    }

    /// Forgets what can't matter any more.
    pub(crate) async fn forget_revocations(&self) -> Result<(), StoreError> {
        let _turn = self.writing.lock().await;
        sqlx::query("DELETE FROM revocations WHERE until_s <= $1").bind(column(unix_now())).execute(&self.pool).await?;
        Ok(())
    }
}

/// Whether what was shown is still good: the key behind it, the tenant, and the token itself.
pub(super) async fn standing(
    connection: &mut AnyConnection,
    access: &VerifiedAccess,
    now: u64,
) -> Result<Standing, StoreError> {
    let key = api_keys::find(&mut *connection, access.key_id()).await?;
    let Some(key) = key.filter(|key| &key.info.tenant == access.tenant()) else {
        return Ok(Err("key barred"));
    };
    if let Some(reason) = key.barred(now) {
        return Ok(Err(reason));
    }
    let void_until_s = if access.is_submission() { key.submissions_void_until_s } else { key.tokens_void_until_s };
    let ids = [access.token_id(), access.parent().unwrap_or_default()];
    if access.epoch() < key.epoch
        || access.issued_at() <= void_until_s
        || is_token_revoked(connection, access.tenant(), ids).await?
    {
        return Ok(Err("token revoked"));
    }
    Ok(Ok(key))
}

async fn is_token_revoked(
    connection: &mut AnyConnection,
    tenant: &TenantId,
    [id, parent]: [&str; 2],
) -> Result<bool, StoreError> {
    let row = sqlx::query("SELECT 1 FROM revocations WHERE kind = 'token' AND tenant = $1 AND id IN ($2, $3)");
    Ok(row.bind(tenant.as_str()).bind(id).bind(parent).fetch_optional(connection).await?.is_some())
}

pub(super) async fn job_revoked(
    connection: &mut AnyConnection,
    tenant: &TenantId,
    job: &JobId,
) -> Result<Option<u64>, StoreError> {
    let at = sqlx::query_scalar("SELECT revoked_s FROM revocations WHERE kind = 'job' AND tenant = $1 AND id = $2");
    let at: Option<i64> = at.bind(tenant.as_str()).bind(job.as_str()).fetch_optional(connection).await?;
    at.map(count).transpose()
}

/// Entries of a tenant in the statement.
async fn told(connection: &mut AnyConnection, tenant: &TenantId) -> Result<u64, StoreError> {
    let told =
        sqlx::query_scalar("SELECT count(*) FROM revocations WHERE tenant = $1 AND until_s > $2 AND told_until_s > $2");
    count(told.bind(tenant.as_str()).bind(column(unix_now())).fetch_one(connection).await?)
}

/// Those of them that are about grants, but for the job `job`'s: what [`fold`] can't take together.
async fn grants_told(connection: &mut AnyConnection, tenant: &TenantId, job: &str) -> Result<u64, StoreError> {
    let told = sqlx::query_scalar(
        "SELECT count(*) FROM revocations r WHERE tenant = $1 AND until_s > $2 AND told_until_s > $2 AND (
         (kind = 'job' AND id <> $3)
         OR (kind = 'key' AND EXISTS (SELECT 1 FROM api_keys k WHERE k.id = r.id AND k.grants_until_s > $4)))",
    );
    let now = unix_now();
    let told = told.bind(tenant.as_str()).bind(column(now)).bind(job).bind(column(now.saturating_sub(SLACK_S)));
    count(told.fetch_one(connection).await?)
}

/// Takes a tenant's entries together where they are more than the statement may have of it.
pub(super) async fn fold(connection: &mut AnyConnection, tenant: &TenantId, actor: &str) -> Result<(), StoreError> {
    if told(connection, tenant).await? <= ENTRIES_PER_TENANT_MAX {
        return Ok(());
    }
    let now = unix_now();
    sqlx::query("UPDATE tenants SET tokens_void_until_s = $1 WHERE id = $2")
        .bind(column(now + AHEAD_S))
        .bind(tenant.as_str())
        .execute(&mut *connection)
        .await?;
    sqlx::query(
        "UPDATE revocations SET told_until_s = 0 WHERE tenant = $1 AND (kind = 'token' OR
         (kind = 'key' AND NOT EXISTS (SELECT 1 FROM api_keys k WHERE k.id = revocations.id AND k.grants_until_s > $2)))",
    )
    .bind(tenant.as_str())
    .bind(column(now.saturating_sub(SLACK_S)))
    .execute(&mut *connection)
    .await?;
    if told(connection, tenant).await? <= ENTRIES_PER_TENANT_MAX {
        return record(connection, tenant, "tenant.void-access-tokens", actor).await;
    }
    tracing::warn!(%tenant, "more is revoked than the statement may hold of one tenant: all that it was given is void");
    tenants::advance(connection, tenant).await?;
    // The epoch says all of it.
    sqlx::query("DELETE FROM revocations WHERE tenant = $1").bind(tenant.as_str()).execute(&mut *connection).await?;
    record(connection, tenant, "tenant.void-tokens", actor).await
}

/// The event of what many revocations became.
async fn record(
    connection: &mut AnyConnection,
    tenant: &TenantId,
    action: &'static str,
    actor: &str,
) -> Result<(), StoreError> {
    let after = Some(serde_json::json!({"because": "there were too many revocations to name each"}));
    let event = Event { actor, action, tenant: Some(tenant), subject: tenant.as_str(), before: None, after };
    event.record(connection).await
}

/// Inserts a revocation, or renews one.
pub(super) async fn insert(
    connection: &mut AnyConnection,
    kind: Kind,
    tenant: &TenantId,
    id: &str,
    until_s: u64,
    told_until_s: u64,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO revocations (kind, tenant, id, revoked_s, until_s, told_until_s) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (kind, tenant, id) DO UPDATE SET revoked_s = excluded.revoked_s, until_s = excluded.until_s,
         told_until_s = excluded.told_until_s",
    )
    .bind(kind.as_str())
    .bind(tenant.as_str())
    .bind(id)
    .bind(column(unix_now()))
    .bind(column(until_s))
    .bind(column(told_until_s))
    .execute(connection)
    .await?;
    Ok(())
}
