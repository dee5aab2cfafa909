//! The policy database: SQLite in WAL mode by default, Postgres by URL, one set of queries for both. Every change is one
//! transaction with its event in it, and changes come one after the other.

mod api_keys;
mod backup;
mod bootstrap;
mod events;
mod grants;
mod revocations;
mod roles;
mod settings;
mod signing_keys;
mod tenants;

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::migrate::Migrator;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Any, AnyConnection, AnyPool, ConnectOptions as _, Connection as _, Executor as _, Transaction};
use tokio::sync::{Mutex, OwnedMutexGuard};

pub use api_keys::{KeyInfo, NewKey, RotatedKey, StoredKey};
pub use backup::restore;
pub use bootstrap::{Bootstrapped, FirstTenant};
pub(crate) use events::EVENTS_MAX;
pub use events::{AuditEvent, AuditFilter};
pub(crate) use grants::NotGranted;
pub(crate) use revocations::Revoked;
pub use roles::Role;
pub use settings::{Ceiling, SettingsPatch, TenantSettings};
pub(crate) use settings::{DIMENSIONS_MAX, WINDOW_S_MIN};
pub use signing_keys::{Held, SigningKeyInfo, SigningKeyState};
pub use tenants::Tenant;

use crate::time::unix_now;
use crate::vault::VaultError;

/// SQLite has one writer at a time; a few readers beside it are plenty for token requests. Postgres is far away: more wait.
const SQLITE_CONNECTIONS_MAX: u32 = 4;
const POSTGRES_CONNECTIONS_MAX: u32 = 16;
/// How long a request waits for a connection, and a writer for Postgres' other writers. Both take milliseconds.
const BUSY_FOR_MAX: Duration = Duration::from_secs(5);
/// 30 s: a writer waits for another also on a disk that is busy with something else, where each sync takes seconds. FULL: a
/// revocation that was acknowledged must survive a power cut.
const SQLITE_SETTINGS: &str = "PRAGMA busy_timeout = 30000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
                               PRAGMA foreign_keys = ON";
/// The name of the lock that Postgres' writers take in turn.
const WRITE_LOCK: i64 = 0x7665_636d_696c_6c01;

static SQLITE: Migrator = sqlx::migrate!("migrations/sqlite");
static POSTGRES: Migrator = sqlx::migrate!("migrations/postgres");

/// Why the policy database did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no database file.
    #[error("there is no database {0}; make it with `vecmill-signer bootstrap`")]
    Missing(PathBuf),
    /// There is a first tenant already.
    #[error("this signer is bootstrapped already; add tenants and keys with `tenant create` and `key create`")]
    AlreadyBootstrapped,
    /// There is no signing key yet.
    #[error("this signer is not bootstrapped yet; run `vecmill-signer bootstrap`")]
    NotBootstrapped,
    /// The signing key was withdrawn and its successor does not sign yet.
    #[error(
        "no signing key may sign at the moment; a new one begins within seconds, or add one with `signing-key rotate`"
    )]
    NoSigningKey,
    /// The tenant is there already.
    #[error("there is a tenant {0} already")]
    TenantExists(String),
    /// No such tenant.
    #[error("there is no tenant {0}; see `vecmill-signer tenant list`")]
    NoTenant(String),
    /// The role is there already.
    #[error("there is a role {0} already; `role set` changes it")]
    RoleExists(String),
    /// No such role.
    #[error("there is no role {0}; see `vecmill-signer role list`")]
    NoRole(String),
    /// One of the roles that everything counts on.
    #[error("the role {0} is built in and stays as it is; create one of your own with `role create`")]
    RoleBuiltin(String),
    /// A role that keys still have.
    #[error("the role {0} is in use; revoke its API keys first, see `vecmill-signer key list`")]
    RoleInUse(String),
    /// No such API key.
    #[error("there is no API key {0}; see `vecmill-signer key list`")]
    NoKey(String),
    /// An API key that can't be changed any more.
    #[error("the API key {0} is revoked or expired; create a new one with `key create`")]
    KeyOver(String),
    /// No such signing key.
    #[error("there is no signing key {0}; see `vecmill-signer signing-key list`")]
    NoSuchSigningKey(String),
    /// The signing key that signs can't be retired.
    #[error(
        "the signing key {0} signs, or its grants are still about; rotate first, or `signing-key withdraw` it if it is compromised"
    )]
    SigningKeyInUse(String),
    /// A limit on the number of something.
    #[error("there are {max} {what} already, the most there may be; {remedy}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there may be.
        max: u64,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A limit on how often something may be done.
    #[error("this tenant has made {max} {what} within an hour, the most it may; wait {wait_s} s")]
    TooFast {
        /// Of what.
        what: &'static str,
        /// How many there may be in an hour.
        max: u64,
        /// Until one more may be made.
        wait_s: u64,
    },
    /// A name that the service has for itself.
    #[error("no tenant may be called {0}: the name has a meaning of its own on S3 or in Redis; choose another")]
    Reserved(String),
    /// A tenant of before the name was reserved.
    #[error(
        "there is a tenant called {0}, a name that has a meaning of its own on S3 or in Redis: whoever has rights to that tenant's \
         objects has rights to others'. Create a tenant of another name, move its keys and objects there, and remove this one's \
         rows from the policy database; this signer starts then"
    )]
    ReservedThere(String),
    /// A setting that can't be.
    #[error("{0}")]
    BadSetting(String),
    /// The database file can't be opened.
    #[error("the database {path} can't be opened")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is there already, and is not replaced.
    #[error("{0} is there already; name a file that is not, or move it away")]
    InTheWay(PathBuf),
    /// Something that only SQLite has.
    #[error("{0} is for SQLite; Postgres has tools of its own, see pg_dump and pg_restore")]
    SqliteOnly(&'static str),
    /// A copy that is no whole policy database.
    #[error("{0} is not a whole policy database: {1}")]
    BadBackup(PathBuf, String),
    /// A stored value is not what was written.
    #[error("the database holds a value that makes no sense: {0}")]
    Corrupt(&'static str),
    /// The master key or the crypto library.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The schema can't be brought up to date.
    #[error("the database's schema can't be brought up to date")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// SQLite or Postgres.
    #[error("the database failed")]
    Sql(#[from] sqlx::Error),
}

impl StoreError {
    /// Whether the request is at fault and not the database: the sentence is for whoever asked.
    pub(crate) fn is_for_caller(&self) -> bool {
        matches!(
            self,
            Self::TenantExists(_)
                | Self::NoTenant(_)
                | Self::RoleExists(_)
                | Self::NoRole(_)
                | Self::RoleBuiltin(_)
                | Self::RoleInUse(_)
                | Self::NoKey(_)
                | Self::KeyOver(_)
                | Self::NoSuchSigningKey(_)
                | Self::SigningKeyInUse(_)
                | Self::TooMany { .. }
                | Self::TooFast { .. }
                | Self::Reserved(_)
                | Self::BadSetting(_)
        )
    }

    /// Whether what was named is not there.
    pub(crate) fn is_absence(&self) -> bool {
        matches!(self, Self::NoTenant(_) | Self::NoRole(_) | Self::NoKey(_) | Self::NoSuchSigningKey(_))
    }
}

/// Where the policy database is. `Debug` and `Display` show no password.
#[derive(Clone, PartialEq, Eq)]
pub enum Database {
    /// A SQLite file.
    File(PathBuf),
    /// A Postgres URL, which may hold a password.
    Postgres(String),
}

impl Database {
    /// The file, if it is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Postgres(_) => None,
        }
    }
}

impl From<&Path> for Database {
    fn from(path: &Path) -> Self {
        Self::File(path.to_owned())
    }
}

impl From<PathBuf> for Database {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

impl From<&PathBuf> for Database {
    fn from(path: &PathBuf) -> Self {
        Self::File(path.clone())
    }
}

impl From<&Database> for Database {
    fn from(database: &Database) -> Self {
        database.clone()
    }
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Postgres(url) => {
                // Everything before the last '@' of the authority may be a secret.
                let rest = url.split_once("://").map_or("", |(_, rest)| rest);
                let authority = rest.split(['/', '?']).next().unwrap_or("");
                let host = authority.rsplit('@').next().unwrap_or("");
                let name = rest[authority.len()..].split('?').next().unwrap_or("");
                write!(f, "postgres://{host}{name}")
            }
        }
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Database({self})")
    }
}

/// The policy database. Clones share connections.
#[derive(Debug, Clone)]
pub struct Store {
    pool: AnyPool,
    postgres: bool,
    /// Held by whoever changes something. The databases have locks of their own, but whoever waits for those holds a connection
    /// meanwhile: with a few that wait nobody could read.
    writing: Arc<Mutex<()>>,
}

/// A transaction that changes something, and this process's turn to.
struct Write {
    transaction: Transaction<'static, Any>,
    _turn: OwnedMutexGuard<()>,
}

impl Write {
    async fn commit(self) -> Result<(), sqlx::Error> {
        self.transaction.commit().await
    }
}

impl Deref for Write {
    type Target = AnyConnection;

    fn deref(&self) -> &AnyConnection {
        &self.transaction
    }
}

impl DerefMut for Write {
    fn deref_mut(&mut self) -> &mut AnyConnection {
        &mut self.transaction
    }
}

impl Store {
    /// Opens the database, which must be there if it is a file.
    pub async fn open(database: impl Into<Database>) -> Result<Self, StoreError> {
        let database = database.into();
        match database.file() {
            Some(path) if !path.exists() => Err(StoreError::Missing(path.to_owned())),
            _ => Self::connect(database).await,
        }
    }

    /// Opens the database, making its file if need be. A Postgres database must be there; its tables need not.
    pub async fn open_or_create(database: impl Into<Database>) -> Result<Self, StoreError> {
        Self::connect(database.into()).await
    }

    async fn connect(database: Database) -> Result<Self, StoreError> {
        sqlx::any::install_default_drivers();
        match database {
            Database::File(path) => {
                // SQLite has no lock around "is this migration applied, if not apply it", nor around the switch to WAL:
                // two processes that start on a new database would trip over each other.
                let _starting = start_lock(path.clone()).await?;
                let url = SqliteConnectOptions::new().filename(&path).to_url_lossy();
                let options = AnyConnectOptions::from_url(&url)?;
                // Not through the pool: it gives up after BUSY_FOR_MAX, which a new file may take on a slow disk, and says of
                // any failure that the time was up.
                let mut first = AnyConnection::connect_with(&options).await?;
                first.execute(SQLITE_SETTINGS).await?;
                let pool = AnyPoolOptions::new()
                    .max_connections(SQLITE_CONNECTIONS_MAX)
                    .acquire_timeout(BUSY_FOR_MAX)
                    .after_connect(|connection, _| {
                        Box::pin(async move { connection.execute(SQLITE_SETTINGS).await.map(|_| ()) })
                    })
                    .connect_with(options)
                    .await?;
                SQLITE.run(&pool).await?;
                // Only now: the last connection to close would write the log into the file, once for every command.
                first.close().await?;
                Ok(Self { pool, postgres: false, writing: Arc::default() })
            }
            Database::Postgres(url) => {
                let pool = AnyPoolOptions::new()
                    .max_connections(POSTGRES_CONNECTIONS_MAX)
                    .acquire_timeout(BUSY_FOR_MAX)
                    .after_connect(|connection, _| {
                        Box::pin(async move {
                            // As for SQLite: an acknowledged revocation is on disk, and nothing waits for ever.
                            let settings = "SET synchronous_commit = on; SET statement_timeout = 5000";
                            connection.execute(settings).await.map(|_| ())
                        })
                    })
                    .connect_with(url.parse::<AnyConnectOptions>()?)
                    .await?;
                // Postgres' migrations lock each other out by themselves.
                POSTGRES.run(&pool).await?;
                Ok(Self { pool, postgres: true, writing: Arc::default() })
            }
        }
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1").execute(&self.pool).await?;
        Ok(())
    }

    /// Finishes what is under way and closes the files.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// The number that grows with every change of policy, whoever makes it.
    pub async fn seq(&self) -> Result<u64, StoreError> {
        let seq: i64 = sqlx::query_scalar("SELECT seq FROM state WHERE id = 1").fetch_one(&self.pool).await?;
        count(seq)
    }

    /// A transaction that holds the write lock from its first moment, so what it reads stays true until it commits.
    async fn write(&self) -> Result<Write, StoreError> {
        let _turn = Arc::clone(&self.writing).lock_owned().await;
        if !self.postgres {
            return Ok(Write { transaction: self.pool.begin_with("BEGIN IMMEDIATE").await?, _turn });
        }
        let mut transaction = self.pool.begin().await?;
        sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(WRITE_LOCK).execute(&mut *transaction).await?;
        Ok(Write { transaction, _turn })
    }
}

/// Says that policy changed. In milliseconds of the clock where that is more than one up, so that a database that was
/// put back from a copy overtakes what verifiers know of its later self.
async fn changed(connection: &mut AnyConnection) -> Result<(), StoreError> {
    sqlx::query("UPDATE state SET seq = CASE WHEN seq < $1 THEN $1 ELSE seq + 1 END WHERE id = 1")
        .bind(column(unix_now().saturating_mul(1000)))
        .execute(connection)
        .await?;
    Ok(())
}

/// Creates the database file for its owner alone, and takes the lock that lets one process at a time set it up.
async fn start_lock(path: PathBuf) -> Result<File, StoreError> {
    let locked = tokio::task::spawn_blocking(move || {
        let open = |path: &Path| OpenOptions::new().create(true).append(true).mode(0o600).open(path);
        let mut beside = path.as_os_str().to_owned();
        beside.push(".lock");
        let lock = open(&path).and_then(|_| open(Path::new(&beside))).and_then(|lock| lock.lock().map(|()| lock));
        lock.map_err(|source| StoreError::Io { path, source })
    });
    locked.await.map_err(|_| StoreError::Corrupt("the start lock's thread died"))?
}

/// A count from its column. Every such column is checked to be non-negative by the schema.
fn count(value: i64) -> Result<u64, StoreError> {
    u64::try_from(value).map_err(|_| StoreError::Corrupt("a negative count"))
}

/// A count for its column. Counts beyond the databases' range are capped: no limit is that large.
fn column(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_shown_without_its_password() {
        for (url, shown) in [
            ("postgres://vecmill:pa@ss@db.internal:5432/signer?sslmode=require", "postgres://db.internal:5432/signer"),
            ("postgresql://db/signer", "postgres://db/signer"),
            ("postgres://u:p@h", "postgres://h"),
        ] {
            let database = Database::Postgres(url.to_owned());
            assert_eq!(database.to_string(), shown);
            assert_eq!(format!("{database:?}"), format!("Database({shown})"));
        }
        assert_eq!(Database::from(Path::new("signer.db")).to_string(), "signer.db");
    }
}
