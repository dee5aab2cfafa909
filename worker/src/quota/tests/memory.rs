//! What only the quota in memory must be told: the time, and when to forget.

use tokio::sync::{mpsc, oneshot};

use super::{charge, limits};
use crate::quota::memory::{MemoryQuota, serve};
use crate::quota::{Ask, Over, Verdict};

const START_MS: u64 = 20_000 * 86_400_000;

#[test]
fn waits_are_exact_to_the_millisecond() {
    let mut quota = MemoryQuota::new();
    // 7 tokens a minute: a token takes 8,571.43 ms.
    let limits = limits(7, 10, 1_000);
    assert_eq!(quota.charge(&charge(0, 10, limits), START_MS), Verdict::Charged);
    let later = quota.charge(&charge(1, 1, limits), START_MS);
    assert_eq!(later, Verdict::Later { wait_ms: 8_572, over: Over::Minute });
    let later = quota.charge(&charge(1, 1, limits), START_MS + 8_571);
    assert_eq!(later, Verdict::Later { wait_ms: 1, over: Over::Minute });
    assert_eq!(quota.charge(&charge(1, 1, limits), START_MS + 8_572), Verdict::Charged);
}

#[test]
fn the_longer_of_two_waits_is_named() {
    let mut quota = MemoryQuota::new();
    let limits = limits(60, 10, 10);
    let evening_ms = START_MS + 86_400_000 - 5_000;
    assert_eq!(quota.charge(&charge(0, 10, limits), evening_ms), Verdict::Charged);
    // The day ends in 5 s, the bucket holds 4 tokens in 4 s and 6 in 6 s.
    let later = quota.charge(&charge(1, 4, limits), evening_ms);
    assert_eq!(later, Verdict::Later { wait_ms: 5_000, over: Over::Day });
    let later = quota.charge(&charge(1, 6, limits), evening_ms);
    assert_eq!(later, Verdict::Later { wait_ms: 6_000, over: Over::Minute });
}

#[test]
fn a_clock_that_goes_back_brings_nothing() {
    let mut quota = MemoryQuota::new();
    let limits = limits(60, 10, 10);
    assert_eq!(quota.charge(&charge(0, 10, limits), START_MS), Verdict::Charged);
    let later = quota.charge(&charge(1, 1, limits), START_MS - 500);
    assert_eq!(later, Verdict::Later { wait_ms: 1_000, over: Over::Minute });
    // The day that has begun goes on, though this one ends in 5 s.
    let later = quota.charge(&charge(1, 1, limits), START_MS - 5_000);
    assert_eq!(later, Verdict::Later { wait_ms: 5_000, over: Over::Day });
}

#[test]
fn a_charge_is_forgotten_when_its_grant_is_over() {
    let mut quota = MemoryQuota::new();
    let charge = charge(0, 1, limits(1, 10, 10));
    assert_eq!(quota.charge(&charge, START_MS), Verdict::Charged);
    let end_ms = START_MS + charge.keep_s * 1_000;
    assert_eq!(quota.charge(&charge, end_ms - 1), Verdict::AlreadyCharged);
    assert_eq!(quota.charge(&charge, end_ms), Verdict::Charged);
}

#[test]
fn memory_follows_the_jobs_that_run() {
    let mut quota = MemoryQuota::new();
    for day in 0..1_000 {
        let mut charge = charge(0, 1, limits(60, 10, 10));
        (charge.work.tenant, charge.work.of) = (format!("tenant {day}"), format!("job {day}"));
        assert_eq!(quota.charge(&charge, START_MS + day * 86_400_000), Verdict::Charged);
        assert!(quota.holds() <= 4, "{} on day {day}", quota.holds());
    }
}

#[tokio::test]
async fn asks_are_answered_over_the_channel() {
    let (asks, receiver) = mpsc::channel(1);
    let served = tokio::spawn(serve(MemoryQuota::new(), receiver));
    for expected in [Verdict::Charged, Verdict::AlreadyCharged] {
        let (reply, answer) = oneshot::channel();
        asks.send(Ask::Charge { charge: charge(0, 1, limits(1, 10, 10)), reply }).await.unwrap();
        assert_eq!(answer.await.unwrap().unwrap(), expected);
    }
    asks.send(Ask::Spent(charge(0, 1, limits(1, 10, 10)).work)).await.unwrap();
    let (reply, answer) = oneshot::channel();
    asks.send(Ask::Charge { charge: charge(0, 1, limits(1, 10, 10)), reply }).await.unwrap();
    assert_eq!(answer.await.unwrap().unwrap(), Verdict::Charged);
    drop(asks);
    served.await.unwrap();
}
