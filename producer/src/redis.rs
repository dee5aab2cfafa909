//! Connections to Redis: with every limit set, and TLS as all other connections have it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionInfo, IntoConnectionInfo, RedisError, TlsCertificates,
};
use deadpool_redis::{BuildError, Connection, Manager, Pool, PoolConfig, PoolError, Runtime, Timeouts};
use tokio::sync::Mutex;
use tokio::time::timeout;
use vecmill_signer::edge::{self, ClientTls};

/// Time for a TCP (and TLS) handshake. A server in the same region takes a few milliseconds; one lost SYN costs 1 s, so a
/// caller who meets one hears "unavailable" and asks again.
const CONNECT_MS: u64 = 750;
/// Time for one answer. Scripts run in well under a millisecond; half a second is a stall such as a fork for a snapshot.
const RESPONSE_MS: u64 = 500;
/// Time for a whole ask, connecting included. The parts above could add up; whoever asks should learn within 2 s that there is
/// no answer.
const ASK_MS: u64 = 1_500;

/// Why there can be no connections.
#[derive(thiserror::Error, Debug)]
pub enum SetupError {
    /// Not a Redis URL, or one that asks for what this build lacks. The URL is not repeated: it may hold a password.
    #[error("the Redis URL can't be used")]
    Url(#[source] RedisError),
    /// The pool of connections can't be built.
    #[error("the pool of Redis connections can't be built")]
    Pool(#[source] BuildError),
}

/// Why Redis gave no answer.
#[derive(thiserror::Error, Debug)]
pub enum AskError {
    /// No connection: refused, timed out, or wrong credentials.
    #[error("no connection to Redis: {0}")]
    Connect(#[source] PoolError),
    /// Redis answered with an error, or not in time.
    #[error("Redis did not run the command: {0}")]
    Command(#[source] RedisError),
    /// Connecting and asking together took too long.
    #[error("no answer from Redis in {ASK_MS} ms")]
    Late,
}

/// Redis, over one connection that all asks share: they go out as they come, without waiting for one another's answers, and
/// without a look first whether the connection still works. Cheap to clone.
#[derive(Clone)]
pub struct Redis(Arc<Shared>);

struct Shared {
    /// Makes connections, with every limit set.
    pool: Pool,
    line: Mutex<Option<Line>>,
}

#[derive(Clone)]
struct Line {
    connection: MultiplexedConnection,
    number: u64,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Redis")
    }
}

impl Redis {
    /// The server of a `redis://` or `rediss://` URL; `tls` is for the latter. Connects to nothing yet.
    ///
    /// # Errors
    /// When the URL is not usable.
    pub fn new(url: &str, tls: &ClientTls) -> Result<Self, SetupError> {
        // Neither library sets all of its limits by default, so each is set here.
        let connection = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(Duration::from_millis(CONNECT_MS)))
            .set_response_timeout(Some(Duration::from_millis(RESPONSE_MS)));
        let address = address(url, tls).map_err(SetupError::Url)?;
        let manager = Manager::new_with_config(address, connection).map_err(SetupError::Url)?;
        let timeouts = Timeouts {
            wait: Some(Duration::from_millis(ASK_MS)),
            create: Some(Duration::from_millis(CONNECT_MS)),
            recycle: Some(Duration::from_millis(RESPONSE_MS)),
        };
        let pool = Pool::builder(manager)
            .config(PoolConfig { max_size: 1, timeouts, ..PoolConfig::default() })
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(SetupError::Pool)?;
        Ok(Self(Arc::new(Shared { pool, line: Mutex::default() })))
    }

    /// Asks, and once more over a new connection where the old one is gone: what is asked must bear being asked twice.
    ///
    /// # Errors
    /// Within 1.5 s, when there is no answer.
    pub async fn ask<T, F>(&self, ask: impl Fn(MultiplexedConnection) -> F) -> Result<T, AskError>
    where
        F: Future<Output = Result<T, RedisError>>,
    {
        let asking = async {
            let line = self.line().await?;
            let error = match ask(line.connection).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if !is_broken(&error) {
                return Err(AskError::Command(error));
            }
            self.hang_up(Some(line.number)).await;
            // A stuck server is not asked twice; one that was restarted is.
            if error.is_timeout() {
                return Err(AskError::Command(error));
            }
            ask(self.line().await?.connection).await.map_err(AskError::Command)
        };
        match timeout(Duration::from_millis(ASK_MS), asking).await {
            Ok(answered) => answered,
            Err(_) => {
                self.hang_up(None).await;
                Err(AskError::Late)
            }
        }
    }

    async fn line(&self) -> Result<Line, AskError> {
        let mut held = self.0.line.lock().await;
        if let Some(line) = &*held {
            return Ok(line.clone());
        }
        let connection = Connection::take(self.0.pool.get().await.map_err(AskError::Connect)?);
        let line = Line { connection, number: NUMBER.fetch_add(1, Ordering::Relaxed) };
        *held = Some(line.clone());
        Ok(line)
    }

    /// Gives the connection up, unless another has taken its place.
    async fn hang_up(&self, number: Option<u64>) {
        let mut held = self.0.line.lock().await;
        if number.is_none_or(|number| held.as_ref().is_some_and(|line| line.number == number)) {
            *held = None;
        }
    }
}

/// Tells connections apart.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// Whether an error is of the connection and not of the command.
fn is_broken(error: &RedisError) -> bool {
    error.is_connection_dropped() || error.is_io_error() || error.is_timeout()
}

/// Where Redis is, with what TLS needs to get there.
fn address(url: &str, tls: &ClientTls) -> Result<ConnectionInfo, RedisError> {
    // The library takes the process's crypto provider.
    edge::provider();
    if !url.starts_with("rediss://") {
        return url.into_connection_info();
    }
    let certificates = TlsCertificates {
        client_tls: tls
            .identity_pem()
            .map(|(cert, key)| ClientTlsConfig { client_cert: cert.to_vec(), client_key: key.to_vec() }),
        root_cert: tls.ca_pem().map(<[u8]>::to_vec),
    };
    // The certificates go with the address, and only a client puts them there.
    Ok(Client::build_with_tls(url, certificates)?.get_connection_info().clone())
}
