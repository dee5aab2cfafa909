//! Signing keys. A key is published at once, signs from `signs_from_s` on until a newer one does, and stays published
//! until no grant of it can be alive. A compromised one is withdrawn: unpublished, and nothing it signed is believed.

use serde::Serialize;
use serde_json::json;
use sqlx::{AnyConnection, FromRow};

use super::events::Event;
use super::{Store, StoreError, changed, column, count};
use crate::mint::{KeySet, SigningKey};
use crate::time::unix_now;
use crate::vault::{Vault, VaultError};
use crate::verify::{GRANT_LIFETIME_S_MAX, LEEWAY_S};

/// How long a new key is published before it signs: verifiers renew what they know every 300 s, and one that was slow
/// gets a tenth on top.
pub(crate) const PUBLISH_BEFORE_S: u64 = 330;
/// The same for a key that takes over from a withdrawn one. Verifiers hear of it with the next statement of
/// revocations, two seconds apart.
const PUBLISH_BEFORE_URGENT_S: u64 = 5;
/// How long a key is published after it has stopped signing.
const PUBLISH_AFTER_S: u64 = GRANT_LIFETIME_S_MAX + 2 * LEEWAY_S;
/// Published keys: half of what verifiers take in one set.
const PUBLISHED_MAX: usize = 32;

/// Where a signing key stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SigningKeyState {
    /// Published; does not sign yet.
    Published,
    /// Signs.
    Signing,
    /// No longer signs; published for what it has signed.
    Retiring,
    /// Gone: no token of it can be alive.
    Retired,
    /// Compromised: nothing it signed is believed.
    Withdrawn,
}

impl SigningKeyState {
    /// The word for tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Published => "published",
            Self::Signing => "signing",
            Self::Retiring => "retiring",
            Self::Retired => "retired",
            Self::Withdrawn => "withdrawn",
        }
    }
}

/// Where the private half of a signing key lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Held {
    /// In the database, under the master key.
    Database,
    /// In a file that is mounted where it signs.
    File,
}

/// What an operator may see of a signing key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SigningKeyInfo {
    /// Its id.
    pub kid: String,
    /// Where it stands.
    pub state: SigningKeyState,
    /// Where its private half is.
    pub held: Held,
    /// When it was made, Unix seconds.
    pub created_s: u64,
    /// From when it signs, Unix seconds.
    pub signs_from_s: u64,
    /// When it is no longer published, Unix seconds.
    pub retired_s: Option<u64>,
    /// When it was withdrawn, Unix seconds.
    pub withdrawn_s: Option<u64>,
}

#[derive(FromRow)]
struct Row {
    kid: String,
    public: Vec<u8>,
    sealed: Vec<u8>,
    created_s: i64,
    signs_from_s: i64,
    retired_s: Option<i64>,
    withdrawn_s: Option<i64>,
}

/// A row that makes sense.
struct Stored {
    info: SigningKeyInfo,
    public: [u8; 32],
    /// Empty if the key is held in a file.
    sealed: Vec<u8>,
}

/// The signing keys as a signer needs them.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// The one that signs; none for the seconds between a withdrawal and the start of its successor.
    pub(crate) signing: Option<SigningKey>,
    /// One that will sign.
    pub(crate) next: Option<SigningKey>,
    /// What to publish.
    pub(crate) published: KeySet,
    /// When any of this changes by itself, Unix seconds.
    pub(crate) changes_at_s: u64,
}

impl Default for Loaded {
    fn default() -> Self {
        Self { signing: None, next: None, published: KeySet::default(), changes_at_s: u64::MAX }
    }
}

impl Store {
    /// The key that signs now, and the set to publish.
    pub async fn signing_keys(&self, vault: &Vault) -> Result<(SigningKey, KeySet), StoreError> {
        let loaded = self.load_signing_keys(vault, None).await?;
        Ok((loaded.signing.ok_or(StoreError::NoSigningKey)?, loaded.published))
    }

    /// What a signer needs of the keys. `mounted` is the key that it has from a file.
    pub(crate) async fn load_signing_keys(
        &self,
        vault: &Vault,
        mounted: Option<&SigningKey>,
    ) -> Result<Loaded, StoreError> {
        let mut connection = self.pool.acquire().await?;
        let keys = all(&mut connection).await?;
        if keys.is_empty() {
            return Err(StoreError::NotBootstrapped);
        }
        let mut loaded = Loaded::default();
        // Newest first. Where keys are in files several may sign: each machine with the newest that it has.
        for key in &keys {
            let own = || match mounted.filter(|mounted| mounted.kid() == key.info.kid) {
                Some(mounted) => Ok(Some(mounted.duplicate().map_err(|_| VaultError::Crypto)?)),
                None if key.info.held == Held::File => Ok(None),
                None => vault.unseal(&key.info.kid, &key.sealed).map(Some),
            };
            match key.info.state {
                SigningKeyState::Withdrawn | SigningKeyState::Retired => continue,
                SigningKeyState::Published if loaded.next.is_none() => loaded.next = own()?,
                SigningKeyState::Published => {}
                _ if loaded.signing.is_none() => loaded.signing = own()?,
                _ => {}
            }
            loaded.published.insert(key.public);
            let changes = [Some(key.info.signs_from_s), key.info.retired_s].into_iter().flatten();
            let ahead = changes.filter(|at| *at > unix_now());
            loaded.changes_at_s = ahead.chain([loaded.changes_at_s]).min().unwrap_or(u64::MAX);
        }
        Ok(loaded)
    }

    /// All signing keys, newest first.
    pub async fn list_signing_keys(&self) -> Result<Vec<SigningKeyInfo>, StoreError> {
        let mut connection = self.pool.acquire().await?;
        Ok(all(&mut connection).await?.into_iter().map(|key| key.info).collect())
    }

    /// Makes a key that will sign once every verifier knows it. The one that signs now is published for as long as a
    /// grant of it can live, so a rotation in the middle of a job breaks nothing.
    pub async fn rotate_signing_key(&self, vault: &Vault, actor: &str) -> Result<SigningKeyInfo, StoreError> {
        let mut transaction = self.write().await?;
        let keys = all(&mut transaction).await?;
        // A vault of another master key must not add a key that no signer could open.
        if let Some(sealed) = keys.iter().find(|key| key.info.held == Held::Database) {
            vault.unseal(&sealed.info.kid, &sealed.sealed)?;
        }
        has_room(&keys)?;
        let signs_from_s = unix_now() + PUBLISH_BEFORE_S;
        let kid = insert(&mut transaction, vault, signs_from_s, actor).await?;
        retire_others(&mut transaction, &kid, signs_from_s).await?;
        changed(&mut transaction).await?;
        let made = info(&mut transaction, &kid).await?;
        transaction.commit().await?;
        Ok(made)
    }

    /// Makes the key of a mounted file known, if it is not yet: published, and signing once every verifier knows it, or
    /// at once if there is none that signs.
    pub(crate) async fn adopt_signing_key(&self, key: &SigningKey, actor: &str) -> Result<(), StoreError> {
        let mut transaction = self.write().await?;
        let keys = all(&mut transaction).await?;
        if keys.iter().any(|known| known.info.kid == key.kid()) {
            return Ok(());
        }
        has_room(&keys)?;
        let first = !keys.iter().any(|key| key.info.state == SigningKeyState::Signing);
        let signs_from_s = if first { unix_now() } else { unix_now() + PUBLISH_BEFORE_S };
        insert_row(&mut transaction, key, Vec::new(), signs_from_s, actor).await?;
        retire_others(&mut transaction, key.kid(), signs_from_s).await?;
        changed(&mut transaction).await?;
        Ok(transaction.commit().await?)
    }

    /// Stops publishing a key at once. Refused while a token of it can be alive.
    pub async fn retire_signing_key(&self, kid: &str, actor: &str) -> Result<SigningKeyInfo, StoreError> {
        let mut transaction = self.write().await?;
        let before = info(&mut transaction, kid).await?;
        let now = unix_now();
        match before.state {
            SigningKeyState::Retired | SigningKeyState::Withdrawn => return Ok(before),
            // Published, and never signed.
            SigningKeyState::Published => {}
            SigningKeyState::Signing | SigningKeyState::Retiring => {
                return Err(StoreError::SigningKeyInUse(kid.to_owned()));
            }
        }
        sqlx::query("UPDATE signing_keys SET retired_s = $1 WHERE kid = $2")
            .bind(column(now))
            .bind(kid)
            .execute(&mut *transaction)
            .await?;
        keep_newest(&mut transaction, now).await?;
        let after = info(&mut transaction, kid).await?;
        record(&mut transaction, actor, "signing_key.retire", &before, &after).await?;
        changed(&mut transaction).await?;
        transaction.commit().await?;
        Ok(after)
    }

    /// Withdraws a compromised key: it is published no more, and the statement of revocations says that nothing it
    /// signed is to be believed. If it was the one that signs, a new one takes over within seconds.
    pub async fn withdraw_signing_key(
        &self,
        vault: &Vault,
        kid: &str,
        actor: &str,
    ) -> Result<SigningKeyInfo, StoreError> {
        let mut transaction = self.write().await?;
        let before = info(&mut transaction, kid).await?;
        if before.withdrawn_s.is_some() {
            return Ok(before);
        }
        let now = unix_now();
        sqlx::query("UPDATE signing_keys SET withdrawn_s = $1, retired_s = $1 WHERE kid = $2")
            .bind(column(now))
            .bind(kid)
            .execute(&mut *transaction)
            .await?;
        if before.state == SigningKeyState::Signing {
            // One that has been published for long enough would be signing already.
            insert(&mut transaction, vault, now + PUBLISH_BEFORE_URGENT_S, actor).await?;
            // One that had stopped signing goes on until then.
            sqlx::query("UPDATE signing_keys SET retired_s = $1 WHERE retired_s > $2 AND withdrawn_s IS NULL")
                .bind(column(now + PUBLISH_BEFORE_URGENT_S + PUBLISH_AFTER_S))
                .bind(column(now))
                .execute(&mut *transaction)
                .await?;
        }
        keep_newest(&mut transaction, now).await?;
        let after = info(&mut transaction, kid).await?;
        record(&mut transaction, actor, "signing_key.withdraw", &before, &after).await?;
        changed(&mut transaction).await?;
        transaction.commit().await?;
        Ok(after)
    }
}

/// All keys, the one that signs latest first.
async fn all(connection: &mut AnyConnection) -> Result<Vec<Stored>, StoreError> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT kid, public, sealed, created_s, signs_from_s, retired_s, withdrawn_s FROM signing_keys
         ORDER BY signs_from_s DESC, created_s DESC, kid",
    )
    .fetch_all(connection)
    .await?;
    let now = unix_now();
    let mut signing = false;
    rows.into_iter()
        .map(|row| {
            let signs_from_s = count(row.signs_from_s)?;
            let retired_s = row.retired_s.map(count).transpose()?;
            let withdrawn_s = row.withdrawn_s.map(count).transpose()?;
            let state = if withdrawn_s.is_some() {
                SigningKeyState::Withdrawn
            } else if retired_s.is_some_and(|at| at <= now) {
                SigningKeyState::Retired
            } else if signs_from_s > now {
                SigningKeyState::Published
            } else if signing {
                SigningKeyState::Retiring
            } else {
                signing = true;
                SigningKeyState::Signing
            };
            let held = if row.sealed.is_empty() { Held::File } else { Held::Database };
            Ok(Stored {
                info: SigningKeyInfo {
                    kid: row.kid,
                    state,
                    held,
                    created_s: count(row.created_s)?,
                    signs_from_s,
                    retired_s,
                    withdrawn_s,
                },
                public: row.public.try_into().map_err(|_| StoreError::Corrupt("a public key"))?,
                sealed: row.sealed,
            })
        })
        .collect()
}

async fn info(connection: &mut AnyConnection, kid: &str) -> Result<SigningKeyInfo, StoreError> {
    let found = all(connection).await?.into_iter().find(|key| key.info.kid == kid);
    found.map(|key| key.info).ok_or_else(|| StoreError::NoSuchSigningKey(kid.to_owned()))
}

fn has_room(keys: &[Stored]) -> Result<(), StoreError> {
    let gone = [SigningKeyState::Retired, SigningKeyState::Withdrawn];
    if keys.iter().filter(|key| !gone.contains(&key.info.state)).count() < PUBLISHED_MAX {
        return Ok(());
    }
    let remedy = "wait until the oldest has retired; see `vecmill-signer signing-key list`";
    Err(StoreError::TooMany { what: "published signing keys", max: PUBLISHED_MAX as u64, remedy })
}

/// Sets the end of every key that has none but `kid`, which signs from `signs_from_s` on.
async fn retire_others(connection: &mut AnyConnection, kid: &str, signs_from_s: u64) -> Result<(), StoreError> {
    sqlx::query("UPDATE signing_keys SET retired_s = $1 WHERE kid <> $2 AND retired_s IS NULL")
        .bind(column(signs_from_s + PUBLISH_AFTER_S))
        .bind(kid)
        .execute(connection)
        .await?;
    Ok(())
}

/// The newest key has no end: it may have had one because of a newer key that is gone.
async fn keep_newest(connection: &mut AnyConnection, now: u64) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE signing_keys SET retired_s = NULL WHERE kid = (SELECT kid FROM signing_keys
         WHERE withdrawn_s IS NULL AND (retired_s IS NULL OR retired_s > $1)
         ORDER BY signs_from_s DESC, created_s DESC, kid LIMIT 1)",
    )
    .bind(column(now))
    .execute(connection)
    .await?;
    Ok(())
}

/// Makes, seals and inserts a new signing key, and the event.
pub(super) async fn insert(
    connection: &mut AnyConnection,
    vault: &Vault,
    signs_from_s: u64,
    actor: &str,
) -> Result<String, StoreError> {
    let key = SigningKey::generate().map_err(|_| VaultError::Crypto)?;
    let sealed = vault.seal(&key)?;
    insert_row(connection, &key, sealed, signs_from_s, actor).await?;
    Ok(key.kid().to_owned())
}

async fn insert_row(
    connection: &mut AnyConnection,
    key: &SigningKey,
    sealed: Vec<u8>,
    signs_from_s: u64,
    actor: &str,
) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO signing_keys (kid, public, sealed, created_s, signs_from_s) VALUES ($1, $2, $3, $4, $5)")
        .bind(key.kid())
        .bind(key.public().to_vec())
        .bind(sealed)
        .bind(column(unix_now()))
        .bind(column(signs_from_s))
        .execute(&mut *connection)
        .await?;
    let after = Some(json!({"signs_from_s": signs_from_s}));
    Event { actor, action: "signing_key.create", subject: key.kid(), after, ..Event::default() }
        .record(connection)
        .await
}

async fn record(
    connection: &mut AnyConnection,
    actor: &str,
    action: &'static str,
    before: &SigningKeyInfo,
    after: &SigningKeyInfo,
) -> Result<(), StoreError> {
    let (then, now) = (Some(json!(before)), Some(json!(after)));
    Event { actor, action, tenant: None, subject: &before.kid, before: then, after: now }.record(connection).await
}
