//! Signing keys: the newest signs, and every one not retired is published.

use sqlx::{FromRow, SqliteConnection};

use super::events::Event;
use super::{Store, StoreError, column};
use crate::mint::{KeySet, SigningKey};
use crate::time::unix_now;
use crate::vault::Vault;

#[derive(FromRow)]
struct Row {
    kid: String,
    public: Vec<u8>,
    sealed: Vec<u8>,
}

impl Store {
    /// The key that signs, and the set to publish.
    pub async fn signing_keys(&self, vault: &Vault) -> Result<(SigningKey, KeySet), StoreError> {
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT kid, public, sealed FROM signing_keys WHERE retired_s IS NULL ORDER BY created_s DESC, kid",
        )
        .fetch_all(&self.pool)
        .await?;
        let newest = rows.first().ok_or(StoreError::NotBootstrapped)?;
        let signing = vault.unseal(&newest.kid, &newest.sealed)?;
        let mut published = KeySet::default();
        for row in rows {
            published.insert(row.public.try_into().map_err(|_| StoreError::Corrupt("a public key"))?);
        }
        Ok((signing, published))
    }
}

/// Makes, seals and inserts a new signing key, and the event.
pub(super) async fn insert(connection: &mut SqliteConnection, vault: &Vault, actor: &str) -> Result<(), StoreError> {
    let key = SigningKey::generate().map_err(|_| StoreError::Vault(crate::vault::VaultError::Crypto))?;
    sqlx::query("INSERT INTO signing_keys (kid, public, sealed, created_s) VALUES (?, ?, ?, ?)")
        .bind(key.kid())
        .bind(key.public().to_vec())
        .bind(vault.seal(&key)?)
        .bind(column(unix_now()))
        .execute(&mut *connection)
        .await?;
    Event { actor, action: "signing_key.create", tenant: None, subject: key.kid() }.record(connection).await
}
