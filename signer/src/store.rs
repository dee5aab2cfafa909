//! The policy database. SQLite in WAL mode; every change is one `BEGIN IMMEDIATE` transaction with its event in it.

mod api_keys;
mod bootstrap;
mod events;
mod signing_keys;
mod tenants;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Sqlite, SqlitePool, Transaction};

pub use api_keys::{KeyInfo, NewKey, StoredKey};
pub use bootstrap::{Bootstrapped, FirstTenant};
pub use tenants::{Tenant, TenantSettings};

use crate::vault::VaultError;

/// SQLite has one writer at a time; a few readers beside it are plenty for token requests.
const CONNECTIONS_MAX: u32 = 4;
/// How long a writer waits for another. Writes take milliseconds.
const BUSY_FOR_MAX: Duration = Duration::from_secs(5);

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
    /// The tenant is there already.
    #[error("there is a tenant {0} already")]
    TenantExists(String),
    /// No such tenant.
    #[error("there is no tenant {0}; see `vecmill-signer tenant list`")]
    NoTenant(String),
    /// No such role.
    #[error("there is no role {0}; there are admin, writer and reader")]
    NoRole(String),
    /// The database file can't be opened.
    #[error("the database {path} can't be opened")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A stored value is not what was written.
    #[error("the database holds a value that makes no sense: {0}")]
    Corrupt(&'static str),
    /// The master key or the crypto library.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The schema can't be brought up to date.
    #[error("the database's schema can't be brought up to date")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// SQLite.
    #[error("the database failed")]
    Sql(#[from] sqlx::Error),
}

/// The policy database. Clones share connections.
#[derive(Debug, Clone)]
pub struct Store {
    pool: SqlitePool,
}

impl Store {
    /// Opens the database at `path`, which must be there.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        if !path.exists() {
            return Err(StoreError::Missing(path.to_owned()));
        }
        Self::connect(path).await
    }

    /// Opens the database at `path`, making it if need be.
    pub async fn open_or_create(path: &Path) -> Result<Self, StoreError> {
        Self::connect(path).await
    }

    async fn connect(path: &Path) -> Result<Self, StoreError> {
        // SQLite has no lock around "is this migration applied, if not apply it", nor around the switch to WAL: two
        // processes that start on a new database would trip over each other.
        let _starting = start_lock(path.to_owned()).await?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            // A revocation that was acknowledged must survive a power cut.
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_FOR_MAX);
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .acquire_timeout(BUSY_FOR_MAX)
            .connect_with(options)
            .await?;
        sqlx::migrate!("./migrations").run(&pool).await?;
        Ok(Self { pool })
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

    /// A transaction that holds the write lock from its first moment, so what it reads stays true until it commits.
    async fn write(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        Ok(self.pool.begin_with("BEGIN IMMEDIATE").await?)
    }
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

/// A count for its column. Counts beyond SQLite's range are capped: no limit is that large.
fn column(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
