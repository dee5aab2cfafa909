//! What a worker hears when Redis is gone, stuck, or empty again.

use std::time::{Duration, Instant};

use deadpool_redis::redis::cmd;

use super::server::{Server, until};
use super::{charge, limits};
use crate::quota::{QuotaError, RedisQuota, Verdict};

/// A worker must know within this time that it has to pause.
const PROMPT: Duration = Duration::from_secs(2);

async fn assert_unavailable(quota: &RedisQuota) {
    let began = Instant::now();
    let verdict = quota.charge(&charge(0, 1, limits(1, 10, 10))).await;
    assert!(matches!(verdict, Err(QuotaError::Unavailable(_))), "{verdict:?}");
    assert!(began.elapsed() < PROMPT, "{:?}", began.elapsed());
}

/// Fills the pool, so that there are connections that can go stale.
async fn use_all_connections(quota: &RedisQuota) {
    let asks = (0..64).map(|chunk| async move { quota.charge(&charge(chunk, 1, limits(1, 1_000, 1_000))).await });
    for verdict in futures_util::future::join_all(asks).await {
        assert_eq!(verdict.unwrap(), Verdict::Charged);
    }
}

#[tokio::test]
async fn a_killed_server_is_unavailable_and_a_new_one_is_found() {
    let mut server = Server::start().await;
    let quota = server.quota();
    use_all_connections(&quota).await;
    server.kill();
    assert_unavailable(&quota).await;
    assert!(quota.ping().await.is_err());
    server.restart().await;
    // The new server knows neither the script nor the charge.
    let again = charge(0, 1, limits(1, 10, 10));
    let verdict = until("it works again", async || quota.charge(&again).await.ok()).await;
    assert_eq!(verdict, Verdict::Charged);
}

#[tokio::test]
async fn a_stuck_server_is_unavailable_until_it_goes_on() {
    let server = Server::start().await;
    let quota = server.quota();
    use_all_connections(&quota).await;
    server.signal("STOP");
    assert_unavailable(&quota).await;
    assert_unavailable(&quota).await;
    server.signal("CONT");
    let verdict = until("it works again", async || quota.charge(&charge(0, 1, limits(1, 10, 10))).await.ok()).await;
    assert_eq!(verdict, Verdict::AlreadyCharged);
}

#[tokio::test]
async fn a_forgotten_script_is_loaded_again() {
    let server = Server::start().await;
    let quota = server.quota();
    let mut redis = server.connection().await;
    for chunk in 0..3 {
        let verdict = quota.charge(&charge(chunk, 1, limits(1, 10, 10))).await.unwrap();
        assert_eq!(verdict, Verdict::Charged);
        cmd("SCRIPT").arg("FLUSH").exec_async(&mut redis).await.unwrap();
    }
}

#[tokio::test]
async fn an_error_of_redis_is_unavailable() {
    let server = Server::start().await;
    let quota = server.quota();
    let mut redis = server.connection().await;
    // A key of another type, as a stand-in for all that a server can refuse: out of memory, read only.
    cmd("SET").arg("vecmill:{acme}:quota").arg("x").exec_async(&mut redis).await.unwrap();
    assert_unavailable(&quota).await;
}
