//! The rules, on a real Redis.

use std::sync::Arc;
use std::time::{Duration, Instant};

use deadpool_redis::redis::cmd;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::server::{Server, set_clock, until};
use super::{charge, limits};
use crate::quota::{Ask, Over, RedisQuota, SetupError, Verdict, serve};

/// 1 token a minute: nothing comes in while a test runs.
const SLOW: u64 = 1;
const LARGE: u64 = u64::MAX;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn exactly_the_cap_is_admitted() {
    let server = Server::start().await;
    // Eight workers of eight clients each; 512 chunks of 10 tokens against a cap of 1,000.
    let workers: Vec<_> = (0..8).map(|_| Arc::new(server.quota())).collect();
    let mut clients = JoinSet::new();
    for client in 0..64 {
        let quota = Arc::clone(&workers[client as usize % 8]);
        clients.spawn(async move {
            let mut charged = 0;
            for nth in 0..8 {
                let charge = charge(client * 8 + nth, 10, limits(SLOW, 1_000, LARGE));
                let first = quota.charge(&charge).await.unwrap();
                let again = quota.charge(&charge).await.unwrap();
                match first {
                    Verdict::Charged => {
                        assert_eq!(again, Verdict::AlreadyCharged);
                        charged += 1;
                    }
                    Verdict::Later { over, .. } => assert_eq!(over, Over::Minute),
                    Verdict::AlreadyCharged => panic!("chunks are charged once"),
                }
            }
            charged
        });
    }
    assert_eq!(clients.join_all().await.iter().sum::<i32>(), 100);
}

#[tokio::test]
async fn one_chunk_asked_by_many_is_charged_once() {
    let server = Server::start().await;
    let quota = Arc::new(server.quota());
    let mut clients = JoinSet::new();
    for _ in 0..64 {
        let quota = Arc::clone(&quota);
        clients.spawn(async move { quota.charge(&charge(u32::MAX, 10, limits(SLOW, 20, 20))).await.unwrap() });
    }
    let verdicts = clients.join_all().await;
    assert_eq!(verdicts.iter().filter(|verdict| **verdict == Verdict::Charged).count(), 1);
    assert_eq!(verdicts.iter().filter(|verdict| **verdict == Verdict::AlreadyCharged).count(), 63);
    // And the other half of the bucket is still there.
    assert_eq!(quota.charge(&charge(0, 10, limits(SLOW, 20, 20))).await.unwrap(), Verdict::Charged);
}

#[tokio::test]
async fn tenants_and_jobs_and_contents_are_apart() {
    let server = Server::start().await;
    let quota = server.quota();
    // Three of the four are one tenant's.
    let first = charge(0, 10, limits(SLOW, 30, 30));
    let mut other_job = first.clone();
    other_job.work.of = "other".to_owned();
    let mut other_tenant = first.clone();
    other_tenant.work.tenant = "other".to_owned();
    let mut other_content = first.clone();
    other_content.work.piece = "0:another digest".to_owned();
    for charge in [&first, &other_job, &other_tenant, &other_content] {
        assert_eq!(quota.charge(charge).await.unwrap(), Verdict::Charged);
    }
}

#[tokio::test]
async fn what_is_computed_again_is_charged_again() {
    let server = Server::start().await;
    let quota = server.quota();
    let charge = charge(0, 10, limits(SLOW, 30, 30));
    for _ in 0..3 {
        assert_eq!(quota.charge(&charge).await.unwrap(), Verdict::Charged);
        // A worker that died before the result was there.
        assert_eq!(quota.charge(&charge).await.unwrap(), Verdict::AlreadyCharged);
        // Said twice, it is as good.
        quota.spent(&charge.work).await.unwrap();
        quota.spent(&charge.work).await.unwrap();
    }
    assert!(matches!(quota.charge(&charge).await.unwrap(), Verdict::Later { .. }), "three times is all there was");
    let keys: Vec<String> =
        cmd("KEYS").arg("vecmill:{acme}:unspent:*").query_async(&mut server.connection().await).await.unwrap();
    assert!(keys.is_empty(), "of what is done nothing is kept: {keys:?}");
}

#[tokio::test]
async fn a_refused_charge_writes_nothing() {
    let server = Server::start().await;
    let quota = server.quota();
    let mut redis = server.connection().await;
    assert_eq!(quota.charge(&charge(0, 100, limits(SLOW, 100, LARGE))).await.unwrap(), Verdict::Charged);
    let mut state = async || {
        let keys: u64 = cmd("DBSIZE").query_async(&mut redis).await.unwrap();
        let usage: Vec<String> = cmd("HGETALL").arg("vecmill:{acme}:quota").query_async(&mut redis).await.unwrap();
        (keys, usage)
    };
    let before = state().await;
    assert_eq!(before.1.len(), 8);
    for _ in 0..10 {
        let refused = quota.charge(&charge(65_536, 100, limits(SLOW, 100, LARGE))).await.unwrap();
        assert!(matches!(refused, Verdict::Later { over: Over::Minute, .. }), "{refused:?}");
    }
    assert_eq!(state().await, before);
}

#[tokio::test]
async fn later_is_admitted_when_its_time_has_come() {
    let server = Server::start().await;
    let quota = server.quota();
    // One token a millisecond.
    let limits = limits(60_000, 200, LARGE);
    let began = Instant::now();
    assert_eq!(quota.charge(&charge(0, 200, limits)).await.unwrap(), Verdict::Charged);
    let second = charge(1, 150, limits);
    until("the bucket holds it", async || match quota.charge(&second).await.unwrap() {
        Verdict::Charged => Some(()),
        Verdict::Later { wait_ms, over } => {
            assert!(over == Over::Minute && (1..=150).contains(&wait_ms), "{wait_ms}");
            None
        }
        Verdict::AlreadyCharged => panic!("a refused charge is not remembered"),
    })
    .await;
    // Whole milliseconds: the first may have begun one before the time it is given.
    assert!(began.elapsed() >= Duration::from_millis(149), "{:?}", began.elapsed());
}

#[tokio::test]
async fn the_day_ends_at_midnight_utc() {
    let server = Server::start().await;
    let (quota, mut redis) = (server.quota_with_clock(), server.connection().await);
    let limits = limits(LARGE, LARGE, 100);
    let midnight_ms = 20_000 * 86_400_000;
    set_clock(&mut redis, midnight_ms - 60_000).await;
    assert_eq!(quota.charge(&charge(0, 90, limits)).await.unwrap(), Verdict::Charged);
    assert_eq!(quota.charge(&charge(1, 10, limits)).await.unwrap(), Verdict::Charged);
    let refused = quota.charge(&charge(2, 1, limits)).await.unwrap();
    assert_eq!(refused, Verdict::Later { wait_ms: 60_000, over: Over::Day });
    set_clock(&mut redis, midnight_ms - 1).await;
    let refused = quota.charge(&charge(2, 1, limits)).await.unwrap();
    assert_eq!(refused, Verdict::Later { wait_ms: 1, over: Over::Day });
    set_clock(&mut redis, midnight_ms).await;
    assert_eq!(quota.charge(&charge(2, 1, limits)).await.unwrap(), Verdict::Charged);
    // A replica whose clock is behind takes over: the day that has begun goes on.
    set_clock(&mut redis, midnight_ms - 1).await;
    let refused = quota.charge(&charge(3, 100, limits)).await.unwrap();
    assert_eq!(refused, Verdict::Later { wait_ms: 1, over: Over::Day });
    set_clock(&mut redis, midnight_ms).await;
    // A chunk larger than a day needs a fresh one, and there it is admitted.
    let refused = quota.charge(&charge(3, 500, limits)).await.unwrap();
    assert_eq!(refused, Verdict::Later { wait_ms: 86_400_000, over: Over::Day });
    set_clock(&mut redis, midnight_ms + 86_400_000).await;
    assert_eq!(quota.charge(&charge(3, 500, limits)).await.unwrap(), Verdict::Charged);
}

#[tokio::test]
async fn a_chunk_larger_than_the_bucket_leaves_a_debt() {
    let server = Server::start().await;
    let (quota, mut redis) = (server.quota_with_clock(), server.connection().await);
    // One token a second.
    let limits = limits(60, 100, LARGE);
    let start_ms = 20_000 * 86_400_000;
    set_clock(&mut redis, start_ms).await;
    assert_eq!(quota.charge(&charge(0, 250, limits)).await.unwrap(), Verdict::Charged);
    // 150 below zero.
    let small = quota.charge(&charge(1, 1, limits)).await.unwrap();
    assert_eq!(small, Verdict::Later { wait_ms: 151_000, over: Over::Minute });
    let large = quota.charge(&charge(2, 250, limits)).await.unwrap();
    assert_eq!(large, Verdict::Later { wait_ms: 250_000, over: Over::Minute });
    set_clock(&mut redis, start_ms + 250_000 - 1).await;
    let large = quota.charge(&charge(2, 250, limits)).await.unwrap();
    assert_eq!(large, Verdict::Later { wait_ms: 1, over: Over::Minute });
    set_clock(&mut redis, start_ms + 250_000).await;
    assert_eq!(quota.charge(&charge(2, 250, limits)).await.unwrap(), Verdict::Charged);
}

#[tokio::test]
async fn zero_is_closed() {
    let server = Server::start().await;
    let quota = server.quota();
    for (closed, over) in
        [(limits(0, 100, 100), Over::Minute), (limits(100, 0, 100), Over::Minute), (limits(100, 100, 0), Over::Day)]
    {
        let verdict = quota.charge(&charge(0, 1, closed)).await.unwrap();
        assert_eq!(verdict, Verdict::Later { wait_ms: 86_400_000, over });
    }
}

#[tokio::test]
async fn all_that_is_written_expires() {
    let server = Server::start().await;
    let quota = server.quota();
    let mut redis = server.connection().await;
    let mut charge = charge(0, 90, limits(60, 100, LARGE));
    quota.charge(&charge).await.unwrap();
    let mut ttl_s = async |key: &str| cmd("TTL").arg(key).query_async::<i64>(&mut redis).await.unwrap();
    // 90 s until the bucket is full, or until the day is over.
    assert!((89..=86_400).contains(&ttl_s("vecmill:{acme}:quota").await));
    let unspent = "vecmill:{acme}:unspent:job";
    assert!((3_590..=3_600).contains(&ttl_s(unspent).await));
    // Another grant of the job may end later, never makes it end sooner; and absurd times are refused by nobody.
    for (chunk, keep_s, at_least) in [(1_u32, 7_200, 7_190), (2, 0, 7_190), (3, u64::MAX, 31_000_000)] {
        (charge.work.piece, charge.keep_s, charge.tokens) = (format!("{chunk}"), keep_s, 1);
        assert_eq!(quota.charge(&charge).await.unwrap(), Verdict::Charged);
        assert!(ttl_s(unspent).await >= at_least);
    }
    let keys: Vec<String> = cmd("KEYS").arg("vecmill:{acme}:usage:*").query_async(&mut redis).await.unwrap();
    let [usage] = &keys[..] else { panic!("a chunk at midnight is the one excuse: {keys:?}") };
    let ttl: i64 = cmd("TTL").arg(usage).query_async(&mut redis).await.unwrap();
    assert!((40 * 86_400 - 10..=40 * 86_400).contains(&ttl), "{ttl}");
    let counted: u64 = cmd("HGET").arg(usage).arg("job key").query_async(&mut redis).await.unwrap();
    assert_eq!(counted, 93, "90 tokens, and three times one");
    let keys: u64 = cmd("DBSIZE").query_async(&mut redis).await.unwrap();
    assert_eq!(keys, 3);
}

#[tokio::test]
async fn asks_are_answered_over_the_channel() {
    let server = Server::start().await;
    let (asks, receiver) = mpsc::channel(4);
    let served = tokio::spawn(serve(server.quota(), receiver));
    let mut replies = Vec::new();
    for chunk in 0..100 {
        let (reply, answer) = oneshot::channel();
        asks.send(Ask::Charge { charge: charge(chunk, 10, limits(SLOW, 500, LARGE)), reply }).await.unwrap();
        // Every third asker goes away; its chunk is charged all the same.
        if chunk % 3 != 0 {
            replies.push(answer);
        }
    }
    drop(asks);
    let mut charged = 0;
    for answer in replies {
        charged += u32::from(answer.await.unwrap().unwrap() == Verdict::Charged);
    }
    served.await.unwrap();
    // 50 of 100 are charged, the first 50 or so: of each three in a row, two are still heard.
    assert!((25..=42).contains(&charged), "{charged}");
}

#[test]
fn a_url_that_is_no_redis_url_is_refused_without_repeating_it() {
    for url in ["", "http://:hunter2@localhost", "redis://:hunter2@"] {
        let refused = RedisQuota::new(url, &<_>::default()).err().unwrap();
        assert!(matches!(refused, SetupError::Url(_)));
        assert!(!format!("{refused:?} {refused}").contains("hunter2"));
    }
}
