//! Connections to Redis: with every limit set, and TLS as all other connections have it.

use std::time::Duration;

use deadpool_redis::redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionInfo, IntoConnectionInfo, RedisError, TlsCertificates,
};
use deadpool_redis::{BuildError, Manager, Pool, PoolConfig, Runtime, Timeouts};
use vecmill_signer::edge::{self, ClientTls};

/// Time for a TCP (and TLS) handshake. A server in the same region takes a few milliseconds; one lost SYN costs 1 s, so a
/// caller who meets one hears "unavailable" and asks again.
const CONNECT_MS: u64 = 750;
/// Time for one answer. Scripts run in well under a millisecond; half a second is a stall such as a fork for a snapshot.
const RESPONSE_MS: u64 = 500;
/// Time for a whole ask, waiting for a connection included. The parts above could add up (each stale connection of the pool
/// fails on its own); whoever asks should learn within 2 s that there is no answer.
pub const ASK_MS: u64 = 1_500;

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

/// At most `size` connections to the server of a `redis://` or `rediss://` URL; `tls` is for the latter. Connects to nothing
/// yet.
///
/// # Errors
/// When the URL is not usable.
pub fn pool(url: &str, tls: &ClientTls, size: usize) -> Result<Pool, SetupError> {
    // Neither library sets all of its limits by default, so each is set here.
    let connection = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(Duration::from_millis(CONNECT_MS)))
        .set_response_timeout(Some(Duration::from_millis(RESPONSE_MS)));
    let manager =
        Manager::new_with_config(address(url, tls).map_err(SetupError::Url)?, connection).map_err(SetupError::Url)?;
    let timeouts = Timeouts {
        wait: Some(Duration::from_millis(ASK_MS)),
        create: Some(Duration::from_millis(CONNECT_MS)),
        recycle: Some(Duration::from_millis(RESPONSE_MS)),
    };
    Pool::builder(manager)
        .config(PoolConfig { max_size: size, timeouts, ..PoolConfig::default() })
        .runtime(Runtime::Tokio1)
        .build()
        .map_err(SetupError::Pool)
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
