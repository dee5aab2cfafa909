//! API keys at rest: a keyed digest and what the key may do.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::json;
use sqlx::{AnyConnection, FromRow};

use super::events::Event;
use super::revocations::{self, Kind, SLACK_S};
use super::tenants::{self, LimitsRow};
use super::{Store, StoreError, changed, column, count, roles};
use crate::api_key::ApiKey;
use crate::cidr::Cidr;
use crate::claims::{Limits, Scope, TenantId};
use crate::header::is_kid;
use crate::mint::{ACCESS_LIFETIME_S, EMBED_LIFETIME_S};
use crate::time::unix_now;
use crate::vault::{Vault, VaultError};

/// Keys of one tenant that matter: usable, or with tokens or grants that are still about. A fleet has one a machine.
const KEYS_PER_TENANT_MAX: u64 = 1000;
/// Keys that one tenant makes within an hour, by `create` or `rotate`: rows and events are kept for good. Enough to give a fleet
/// its keys in a working day.
const KEYS_PER_HOUR_MAX: u64 = 200;
const HOUR_S: u64 = 3600;
/// When a key can end at the latest, the year 9999: what dates can say.
pub(crate) const EXPIRES_S_MAX: u64 = 253_402_300_799;

/// A key to be made.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// The tenant it acts for.
    pub tenant: TenantId,
    /// The role whose scopes it has.
    pub role: String,
    /// When it stops working, Unix seconds; `None` for never.
    pub expires_s: Option<u64>,
}

/// What an operator may see of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyInfo {
    /// Its id.
    pub id: String,
    /// How the key begins, to recognise it by; not a secret.
    pub prefix: String,
    /// Its tenant.
    pub tenant: TenantId,
    /// Its role.
    pub role: String,
    /// When it was made, Unix seconds.
    pub created_s: u64,
    /// When it stops working, Unix seconds.
    pub expires_s: Option<u64>,
    /// When it was revoked, Unix seconds.
    pub revoked_s: Option<u64>,
    /// When it was last used, Unix seconds, a few seconds late.
    pub last_used_s: Option<u64>,
}

impl KeyInfo {
    fn is_over(&self, now: u64) -> bool {
        self.revoked_s.is_some() || self.expires_s.is_some_and(|expires_s| now >= expires_s)
    }
}

/// What is needed to check a key that somebody shows.
#[derive(Debug, Clone)]
pub struct StoredKey {
    /// Who it is.
    pub info: KeyInfo,
    /// Keyed digest of its secret.
    pub digest: [u8; 32],
    /// Scopes of its role.
    pub scopes: Vec<Scope>,
    /// Whether its tenant is active.
    pub tenant_active: bool,
    /// Whether its tenant is the operator's.
    pub operator: bool,
    /// Its tenant's revocation epoch.
    pub epoch: u64,
    /// Its tenant's access and embed tokens issued at this second or before are void.
    pub(crate) tokens_void_until_s: u64,
    /// The same for submission tokens.
    pub(crate) submissions_void_until_s: u64,
    /// Its tenant's quota.
    pub limits: Limits,
    /// Where its tenant's requests may come from; empty for anywhere.
    pub sources: Vec<Cidr>,
}

impl StoredKey {
    /// Why the key, though genuine, must not be used at `now`.
    pub(crate) fn barred(&self, now: u64) -> Option<&'static str> {
        if self.info.revoked_s.is_some() {
            Some("key revoked")
        } else if self.info.expires_s.is_some_and(|expires_s| now >= expires_s) {
            Some("key expired")
        } else if !self.tenant_active {
            Some("tenant suspended")
        } else {
            None
        }
    }
}

/// A new key, and until when the one it replaces still works.
#[derive(Debug)]
pub struct RotatedKey {
    /// The new key, whole, this once.
    pub key: ApiKey,
    /// What may be seen of it.
    pub info: KeyInfo,
    /// When the old key stops working, Unix seconds.
    pub old_expires_s: u64,
}

#[derive(FromRow)]
struct InfoRow {
    id: String,
    tenant: String,
    role: String,
    created_s: i64,
    expires_s: Option<i64>,
    revoked_s: Option<i64>,
    last_used_s: Option<i64>,
    grants_until_s: i64,
}

#[derive(FromRow)]
struct StoredRow {
    #[sqlx(flatten)]
    info: InfoRow,
    digest: Vec<u8>,
    scopes: String,
    status: String,
    operator: i64,
    epoch: i64,
    tokens_void_until_s: i64,
    submissions_void_until_s: i64,
    #[sqlx(flatten)]
    limits: LimitsRow,
    sources: String,
}

impl InfoRow {
    fn into_info(self) -> Result<KeyInfo, StoreError> {
        Ok(KeyInfo {
            prefix: ApiKey::prefix(&self.id),
            id: self.id,
            tenant: TenantId::try_from(self.tenant).map_err(|_| StoreError::Corrupt("a key's tenant"))?,
            role: self.role,
            created_s: count(self.created_s)?,
            expires_s: self.expires_s.map(count).transpose()?,
            revoked_s: self.revoked_s.map(count).transpose()?,
            last_used_s: self.last_used_s.map(count).transpose()?,
        })
    }
}

impl Store {
    /// The key named `id`, if there is one.
    pub async fn find_key(&self, id: &str) -> Result<Option<StoredKey>, StoreError> {
        find(&mut *self.pool.acquire().await?, id).await
    }

    /// The keys of a tenant, or of all, oldest first.
    pub async fn keys_of(&self, tenant: Option<&TenantId>) -> Result<Vec<KeyInfo>, StoreError> {
        let rows: Vec<InfoRow> = sqlx::query_as(
            "SELECT id, tenant, role, created_s, expires_s, revoked_s, last_used_s, grants_until_s FROM api_keys
             WHERE tenant = $1 OR $2 = 1 ORDER BY created_s, id",
        )
        .bind(tenant.map_or("", TenantId::as_str))
        .bind(i64::from(tenant.is_none()))
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(InfoRow::into_info).collect()
    }

    /// All keys, oldest first.
    pub async fn keys(&self) -> Result<Vec<KeyInfo>, StoreError> {
        self.keys_of(None).await
    }

    /// Makes a key on behalf of `actor`. This is the only moment at which the whole key exists here.
    pub async fn create_key(&self, vault: &Vault, new: &NewKey, actor: &str) -> Result<ApiKey, StoreError> {
        let mut transaction = self.write().await?;
        tenants::existing(&mut transaction, &new.tenant).await?;
        has_room(&mut transaction, &new.tenant).await?;
        let key = insert(&mut transaction, vault, new, actor).await?;
        transaction.commit().await?;
        Ok(key)
    }

    /// Makes a key that takes over from the key `id` of `tenant` (any tenant's, if none is named), with the same role
    /// and end. The old one works for `overlap_s` more, and not a second longer than it would have anyway.
    pub async fn rotate_key(
        &self,
        vault: &Vault,
        tenant: Option<&TenantId>,
        id: &str,
        overlap_s: u64,
        actor: &str,
    ) -> Result<RotatedKey, StoreError> {
        let now = unix_now();
        let mut transaction = self.write().await?;
        let (old, _) = existing(&mut transaction, tenant, id).await?;
        if old.is_over(now) {
            return Err(StoreError::KeyOver(id.to_owned()));
        }
        has_room(&mut transaction, &old.tenant).await?;
        let new = NewKey { tenant: old.tenant.clone(), role: old.role.clone(), expires_s: old.expires_s };
        let key = insert(&mut transaction, vault, &new, actor).await?;
        let old_expires_s = old.expires_s.unwrap_or(u64::MAX).min(now.saturating_add(overlap_s));
        sqlx::query("UPDATE api_keys SET expires_s = $1 WHERE id = $2")
            .bind(column(old_expires_s))
            .bind(id)
            .execute(&mut *transaction)
            .await?;
        let before = Some(json!({"expires_s": old.expires_s}));
        let after = Some(json!({"expires_s": old_expires_s, "replaced_by": key.id()}));
        let event = Event { actor, action: "key.rotate", tenant: Some(&old.tenant), subject: id, before, after };
        event.record(&mut transaction).await?;
        let (info, _) = existing(&mut transaction, None, key.id()).await?;
        transaction.commit().await?;
        Ok(RotatedKey { key, info, old_expires_s })
    }

    /// Revokes the key `id` of `tenant` (any tenant's, if none is named), and with it every token and grant it was given.
    /// A key that is revoked already stays as it is.
    pub async fn revoke_key(&self, tenant: Option<&TenantId>, id: &str, actor: &str) -> Result<KeyInfo, StoreError> {
        let now = unix_now();
        let mut transaction = self.write().await?;
        let (before, grants_until_s) = existing(&mut transaction, tenant, id).await?;
        if before.revoked_s.is_some() {
            return Ok(before);
        }
        sqlx::query("UPDATE api_keys SET revoked_s = $1 WHERE id = $2")
            .bind(column(now))
            .bind(id)
            .execute(&mut *transaction)
            .await?;
        // Of its grants the last end is known, for none is recorded once it is revoked. Its tokens are not.
        let until_s = grants_until_s.max(now + ACCESS_LIFETIME_S + EMBED_LIFETIME_S) + SLACK_S;
        revocations::insert(&mut transaction, Kind::Key, &before.tenant, id, until_s, until_s).await?;
        let then = Some(json!({"revoked_s": before.revoked_s}));
        let after = Some(json!({"revoked_s": now}));
        let event =
            Event { actor, action: "key.revoke", tenant: Some(&before.tenant), subject: id, before: then, after };
        event.record(&mut transaction).await?;
        revocations::fold(&mut transaction, &before.tenant, actor).await?;
        changed(&mut transaction).await?;
        transaction.commit().await?;
        Ok(KeyInfo { revoked_s: Some(now), ..before })
    }

    /// Notes when keys were last used. Many at once, seconds after: a write for each request would be the slowest part of it.
    pub(crate) async fn note_used(&self, used: &HashMap<String, u64>) -> Result<(), StoreError> {
        if used.is_empty() {
            return Ok(());
        }
        let mut transaction = self.write().await?;
        for (id, at_s) in used {
            sqlx::query(
                "UPDATE api_keys SET last_used_s = $1 WHERE id = $2 AND (last_used_s IS NULL OR last_used_s < $1)",
            )
            .bind(column(*at_s))
            .bind(id)
            .execute(&mut *transaction)
            .await?;
        }
        Ok(transaction.commit().await?)
    }
}

/// The key named `id`, if there is one, and what its tenant is and may have.
pub(super) async fn find(connection: &mut AnyConnection, id: &str) -> Result<Option<StoredKey>, StoreError> {
    // One query, for this is asked of every request: the sources come along as one text.
    let row: Option<StoredRow> = sqlx::query_as(
        "SELECT k.id, k.tenant, k.role, k.created_s, k.expires_s, k.revoked_s, k.last_used_s, k.grants_until_s,
         k.digest, r.scopes, t.status, t.operator, t.epoch, t.tokens_void_until_s,
         t.submissions_void_until_s, t.requests_per_minute, t.tokens_per_minute,
         t.tokens_burst, t.tokens_per_day, t.queued_tokens, t.concurrent_jobs, t.stored_bytes,
         coalesce((SELECT string_agg(s.cidr, ',') FROM tenant_sources s WHERE s.tenant = t.id), '') AS sources
         FROM api_keys k JOIN roles r ON r.name = k.role JOIN tenants t ON t.id = k.tenant WHERE k.id = $1",
    )
    .bind(id)
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let sources = row.sources.split(',').filter(|cidr| !cidr.is_empty()).map(str::parse);
    Ok(Some(StoredKey {
        digest: row.digest.try_into().map_err(|_| StoreError::Corrupt("a key's digest"))?,
        scopes: roles::parse(&row.scopes),
        tenant_active: row.status == "active",
        operator: row.operator == 1,
        epoch: count(row.epoch)?,
        tokens_void_until_s: count(row.tokens_void_until_s)?,
        submissions_void_until_s: count(row.submissions_void_until_s)?,
        limits: row.limits.into_limits()?,
        sources: sources.collect::<Result<_, _>>().map_err(|_| StoreError::Corrupt("a source address"))?,
        info: row.info.into_info()?,
    }))
}

/// The key, and when the last grant asked for with it expires. Another tenant's key is as absent as one that isn't there.
async fn existing(
    connection: &mut AnyConnection,
    tenant: Option<&TenantId>,
    id: &str,
) -> Result<(KeyInfo, u64), StoreError> {
    let row: Option<InfoRow> = sqlx::query_as(
        "SELECT id, tenant, role, created_s, expires_s, revoked_s, last_used_s, grants_until_s FROM api_keys WHERE id = $1",
    )
    .bind(id)
    .fetch_optional(connection)
    .await?;
    let absent = || StoreError::NoKey(id.to_owned());
    let row = row.ok_or_else(absent)?;
    let grants_until_s = count(row.grants_until_s)?;
    let info = row.into_info()?;
    if tenant.is_some_and(|tenant| tenant != &info.tenant) { Err(absent()) } else { Ok((info, grants_until_s)) }
}

/// Whether a tenant may have one more key, and now.
async fn has_room(connection: &mut AnyConnection, tenant: &TenantId) -> Result<(), StoreError> {
    let now = unix_now();
    let matter: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM api_keys k WHERE k.tenant = $1 AND
         ((k.revoked_s IS NULL AND (k.expires_s IS NULL OR k.expires_s > $2)) OR k.grants_until_s > $2
          OR EXISTS (SELECT 1 FROM revocations r WHERE r.kind = 'key' AND r.tenant = k.tenant AND r.id = k.id AND r.until_s > $2))",
    )
    .bind(tenant.as_str())
    .bind(column(now))
    .fetch_one(&mut *connection)
    .await?;
    if count(matter)? >= KEYS_PER_TENANT_MAX {
        let (what, remedy) = (
            "API keys of this tenant that are usable or have tokens or grants about",
            "revoke those that nobody uses; they count until what they were given has expired",
        );
        return Err(StoreError::TooMany { what, max: KEYS_PER_TENANT_MAX, remedy });
    }
    // The one that a new one has to wait for, if there are as many.
    let oldest: Option<i64> = sqlx::query_scalar(
        "SELECT created_s FROM api_keys WHERE tenant = $1 AND created_s > $2 ORDER BY created_s DESC LIMIT 1 OFFSET $3",
    )
    .bind(tenant.as_str())
    .bind(column(now.saturating_sub(HOUR_S)))
    .bind(column(KEYS_PER_HOUR_MAX - 1))
    .fetch_optional(connection)
    .await?;
    match oldest.map(count).transpose()? {
        Some(oldest) => Err(StoreError::TooFast {
            what: "API keys",
            max: KEYS_PER_HOUR_MAX,
            wait_s: (oldest + HOUR_S).saturating_sub(now).max(1),
        }),
        None => Ok(()),
    }
}

/// Inserts a new key and the event.
pub(super) async fn insert(
    connection: &mut AnyConnection,
    vault: &Vault,
    new: &NewKey,
    actor: &str,
) -> Result<ApiKey, StoreError> {
    if !is_kid(&new.role) {
        return Err(StoreError::NoRole("of such a name".to_owned()));
    }
    if new.expires_s.is_some_and(|at| at > EXPIRES_S_MAX) {
        return Err(StoreError::BadSetting("a key ends in the year 9999 at the latest".to_owned()));
    }
    let role = sqlx::query("SELECT 1 FROM roles WHERE name = $1").bind(new.role.as_str());
    if role.fetch_optional(&mut *connection).await?.is_none() {
        return Err(StoreError::NoRole(new.role.clone()));
    }
    let key = ApiKey::generate().map_err(|_| VaultError::Crypto)?;
    sqlx::query(
        "INSERT INTO api_keys (id, tenant, role, digest, created_s, expires_s) VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(key.id())
    .bind(new.tenant.as_str())
    .bind(new.role.as_str())
    .bind(vault.digest(&key).to_vec())
    .bind(column(unix_now()))
    .bind(new.expires_s.map(column))
    .execute(&mut *connection)
    .await?;
    let after = Some(json!({"role": new.role, "expires_s": new.expires_s}));
    let event =
        Event { actor, action: "key.create", tenant: Some(&new.tenant), subject: key.id(), before: None, after };
    event.record(connection).await?;
    Ok(key)
}
