//! API keys at rest: a keyed digest and what the key may do.

use serde::Serialize;
use sqlx::{FromRow, SqliteConnection};

use super::events::Event;
use super::{Store, StoreError, column, count};
use crate::api_key::ApiKey;
use crate::claims::{Scope, TenantId};
use crate::time::unix_now;
use crate::vault::{Vault, VaultError};

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

#[derive(FromRow)]
struct InfoRow {
    id: String,
    tenant: String,
    role: String,
    created_s: i64,
    expires_s: Option<i64>,
    revoked_s: Option<i64>,
}

#[derive(FromRow)]
struct StoredRow {
    #[sqlx(flatten)]
    info: InfoRow,
    digest: Vec<u8>,
    scopes: String,
    status: String,
}

impl InfoRow {
    fn into_info(self) -> Result<KeyInfo, StoreError> {
        Ok(KeyInfo {
            id: self.id,
            tenant: TenantId::try_from(self.tenant).map_err(|_| StoreError::Corrupt("a key's tenant"))?,
            role: self.role,
            created_s: count(self.created_s)?,
            expires_s: self.expires_s.map(count).transpose()?,
            revoked_s: self.revoked_s.map(count).transpose()?,
        })
    }
}

impl Store {
    /// The key named `id`, if there is one.
    pub async fn find_key(&self, id: &str) -> Result<Option<StoredKey>, StoreError> {
        let row: Option<StoredRow> = sqlx::query_as(
            "SELECT k.id, k.tenant, k.role, k.created_s, k.expires_s, k.revoked_s, k.digest, r.scopes, t.status
             FROM api_keys k JOIN roles r ON r.name = k.role JOIN tenants t ON t.id = k.tenant WHERE k.id = ?",
        )
        .bind(id)
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(StoredKey {
            digest: row.digest.try_into().map_err(|_| StoreError::Corrupt("a key's digest"))?,
            scopes: row.scopes.split(' ').filter_map(|name| name.parse().ok()).collect(),
            tenant_active: row.status == "active",
            info: row.info.into_info()?,
        }))
    }

    /// All keys, oldest first.
    pub async fn keys(&self) -> Result<Vec<KeyInfo>, StoreError> {
        let rows: Vec<InfoRow> = sqlx::query_as(
            "SELECT id, tenant, role, created_s, expires_s, revoked_s FROM api_keys ORDER BY created_s, id",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(InfoRow::into_info).collect()
    }

    /// Makes a key on behalf of `actor`. This is the only moment at which the whole key exists here.
    pub async fn create_key(&self, vault: &Vault, new: &NewKey, actor: &str) -> Result<ApiKey, StoreError> {
        if self.tenant(&new.tenant).await?.is_none() {
            return Err(StoreError::NoTenant(new.tenant.to_string()));
        }
        let mut transaction = self.write().await?;
        let key = insert(&mut transaction, vault, new, actor).await?;
        transaction.commit().await?;
        Ok(key)
    }
}

/// Inserts a new key and the event.
pub(super) async fn insert(
    connection: &mut SqliteConnection,
    vault: &Vault,
    new: &NewKey,
    actor: &str,
) -> Result<ApiKey, StoreError> {
    let role = sqlx::query("SELECT 1 FROM roles WHERE name = ?").bind(&new.role);
    if role.fetch_optional(&mut *connection).await?.is_none() {
        return Err(StoreError::NoRole(new.role.clone()));
    }
    let key = ApiKey::generate().map_err(|_| VaultError::Crypto)?;
    sqlx::query("INSERT INTO api_keys (id, tenant, role, digest, created_s, expires_s) VALUES (?, ?, ?, ?, ?, ?)")
        .bind(key.id())
        .bind(new.tenant.as_str())
        .bind(&new.role)
        .bind(vault.digest(&key).to_vec())
        .bind(column(unix_now()))
        .bind(new.expires_s.map(column))
        .execute(&mut *connection)
        .await?;
    Event { actor, action: "key.create", tenant: Some(&new.tenant), subject: key.id() }.record(connection).await?;
    Ok(key)
}
