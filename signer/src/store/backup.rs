//! A copy of a SQLite policy database while it is in use, and putting one back.

use std::fs;
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::events::Event;
use super::{Store, StoreError, changed};
use crate::vault::Vault;

impl Store {
    /// Writes a whole, consistent copy to `path`, which must not be there yet. Requests are served meanwhile.
    pub async fn backup(&self, path: &Path) -> Result<(), StoreError> {
        if self.postgres {
            return Err(StoreError::SqliteOnly("`backup`"));
        }
        let io_error = |source| StoreError::Io { path: path.to_owned(), source };
        // Made empty and for its owner first: SQLite writes into it.
        match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(StoreError::InTheWay(path.to_owned()));
            }
            made => made.map_err(io_error)?,
        };
        let name = path.to_str().ok_or(StoreError::Corrupt("the file's name is not UTF-8"))?;
        let copied = sqlx::query("VACUUM INTO $1").bind(name).execute(&self.pool).await;
        let synced = copied
            .map_err(StoreError::from)
            .and_then(|_| fs::File::open(path).and_then(|file| file.sync_all()).map_err(io_error));
        if synced.is_err() {
            // Half a copy must not pass for one. What removing it fails with matters less than why it is removed.
            let _ = fs::remove_file(path);
        }
        synced
    }
}

/// Puts the copy `backup` back as the database `path`, which must not be there. The copy is checked first: whole, and
/// opened by this master key.
pub async fn restore(backup: &Path, path: &Path, vault: &Vault, actor: &str) -> Result<(), StoreError> {
    for there in [path.to_owned(), beside(path, "-wal")] {
        if there.exists() {
            return Err(StoreError::InTheWay(there));
        }
    }
    let draft = beside(path, ".draft");
    let io_error = |source| StoreError::Io { path: draft.clone(), source };
    let copied = fs::copy(backup, &draft)
        .and_then(|_| fs::set_permissions(&draft, fs::Permissions::from_mode(0o600)))
        .map_err(|source| StoreError::Io { path: backup.to_owned(), source });
    let restored = match copied {
        Ok(()) => checked(backup, &draft, vault, actor).await.and_then(|()| fs::rename(&draft, path).map_err(io_error)),
        Err(error) => Err(error),
    };
    for left in ["", "-wal", "-shm", ".lock"] {
        // Of a failure the draft; of a success what lies beside it. None of it is needed.
        let _ = fs::remove_file(beside(&draft, left));
    }
    restored
}

/// Whether the copy is whole and ours, with a number of state that verifiers have not seen yet.
async fn checked(backup: &Path, draft: &Path, vault: &Vault, actor: &str) -> Result<(), StoreError> {
    let bad = |why: String| StoreError::BadBackup(backup.to_owned(), why);
    // Migrating an empty or foreign file would make a policy database of it.
    let header = fs::read(draft).map_err(|source| StoreError::Io { path: draft.to_owned(), source })?;
    if !header.starts_with(b"SQLite format 3\0") {
        return Err(bad("it is not a SQLite file".to_owned()));
    }
    drop(header);
    let store = Store::open(draft).await.map_err(|error| bad(error.to_string()))?;
    let whole: String = sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&store.pool).await?;
    if whole != "ok" {
        return Err(bad(whole));
    }
    match store.signing_keys(vault).await {
        Ok(_) | Err(StoreError::NoSigningKey) => {}
        Err(StoreError::NotBootstrapped) => return Err(bad("it holds no signing key".to_owned())),
        Err(error) => return Err(error),
    }
    let mut transaction = store.write().await?;
    Event { actor, action: "database.restore", subject: "database", ..Event::default() }
        .record(&mut transaction)
        .await?;
    changed(&mut transaction).await?;
    transaction.commit().await?;
    store.close().await;
    Ok(())
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
