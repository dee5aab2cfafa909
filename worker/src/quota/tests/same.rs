//! The two quotas give the same verdicts: the script in a real Redis, and the rules in memory.

use std::cell::Cell;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::server::{Server, set_clock};
use crate::quota::memory::MemoryQuota;
use crate::quota::{Charge, Limits, Verdict, Work};

/// Sequences tried; each is up to 40 charges, some milliseconds.
const CASES: u32 = 64;

/// Limits and charges from tiny to beyond what the arithmetic holds.
fn amount() -> impl Strategy<Value = u64> {
    prop_oneof![1 => 0_u64..3, 8 => 1_u64..2_000, 2 => 1_u64..70_000_000_000, 1 => Just(u64::MAX)]
}

fn limits() -> impl Strategy<Value = Limits> {
    (amount(), amount(), amount()).prop_map(|(tokens_per_minute, tokens_burst, tokens_per_day)| Limits {
        tokens_per_minute,
        tokens_burst,
        tokens_per_day,
    })
}

/// One charge: how far the clock goes first (back as well), the chunk and its tokens.
#[derive(Clone, Debug)]
struct Step {
    clock_ms: i64,
    chunk: u32,
    tokens: u64,
    /// Whether it is computed at once, if it may be.
    spent: bool,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let clock_ms = prop_oneof![
        2 => Just(0),
        4 => 0_i64..5_000,
        3 => 0_i64..600_000,
        2 => 0_i64..100_000_000,
        1 => -5_000_i64..0,
    ];
    let step = (clock_ms, 0_u32..30, amount(), any::<bool>()).prop_map(|(clock_ms, chunk, tokens, spent)| Step {
        clock_ms,
        chunk,
        tokens,
        spent,
    });
    vec(step, 1..40)
}

#[test]
fn the_script_and_the_memory_agree() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = runtime.block_on(Server::start());
    let quota = server.quota_with_clock();
    let redis = runtime.block_on(server.connection());
    // The runner wants a closure that changes nothing: what it counts is in cells.
    let (charged, already, later, tenants) = (Cell::new(0), Cell::new(0), Cell::new(0), Cell::new(0));
    let count = |cell: &Cell<u32>| cell.replace(cell.get() + 1);
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&(limits(), steps()), |(limits, steps)| {
            let tenant = format!("tenant {}", count(&tenants));
            let mut memory = MemoryQuota::new();
            let mut now_ms = 20_000 * 86_400_000_u64 + 80_000_000;
            for Step { clock_ms, chunk, tokens, spent } in steps {
                now_ms = now_ms.saturating_add_signed(clock_ms);
                // A year: real expiries in Redis follow its own clock, not the test's.
                let keep_s = 365 * 86_400;
                let charge = Charge {
                    work: Work { tenant: tenant.clone(), of: "j".to_owned(), piece: chunk.to_string() },
                    tokens,
                    limits,
                    usage: String::new(),
                    keep_s,
                };
                let in_redis = runtime.block_on(async {
                    set_clock(&mut redis.clone(), now_ms).await;
                    quota.charge(&charge).await.unwrap()
                });
                prop_assert_eq!(memory.charge(&charge, now_ms), in_redis, "{:?} at {}", charge, now_ms);
                if spent && !matches!(in_redis, Verdict::Later { .. }) {
                    memory.spent(&charge.work);
                    runtime.block_on(quota.spent(&charge.work)).unwrap();
                }
                count(match in_redis {
                    Verdict::Charged => &charged,
                    Verdict::AlreadyCharged => &already,
                    Verdict::Later { .. } => &later,
                });
            }
            Ok(())
        })
        .unwrap();
    let seen = [charged.get(), already.get(), later.get()];
    assert!(seen.iter().all(|count| *count > 20), "verdicts compared, by kind: {seen:?}");
}
