use std::collections::HashMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::{Class, Item, Scheduler};

/// Budget of most tests: a quantum of 64.
const BUDGET: usize = 1_024;
const QUANTUM: usize = BUDGET / 16;
/// Longest text of the fairness tests: longer than a quantum, so that credit must be carried.
const TEXT_MAX: usize = 200;

/// A row that knows its tenant and its place in the tenant's queue.
type Row = Item<(String, usize)>;

fn row(tenant: &str, place: usize, len: usize) -> Row {
    Item { tag: (tenant.to_owned(), place), tokens: vec![0; len] }
}

fn tokens(batch: &[Row], tenant: &str) -> i64 {
    batch.iter().filter(|row| row.tag.0 == tenant).map(|row| row.tokens.len() as i64).sum()
}

fn push_all(scheduler: &mut Scheduler<(String, usize)>, tenant: &str, lens: &[usize]) {
    for (place, &len) in lens.iter().enumerate() {
        scheduler.push(tenant, Class::Bulk, row(tenant, place, len));
    }
}

#[test]
fn a_lone_tenant_fills_the_batch() {
    let mut scheduler = Scheduler::new(BUDGET);
    push_all(&mut scheduler, "a", &[1; 3 * BUDGET]);
    assert_eq!(scheduler.next_batch().len(), BUDGET);
    assert_eq!(scheduler.waiting_tokens_of("a"), 2 * BUDGET as u64);
}

#[test]
fn a_text_longer_than_the_budget_goes_alone() {
    let mut scheduler = Scheduler::new(BUDGET);
    push_all(&mut scheduler, "a", &[10, 5 * BUDGET, 10]);
    let lens = |batch: Vec<Row>| batch.iter().map(|row| row.tokens.len()).collect::<Vec<_>>();
    assert_eq!(lens(scheduler.next_batch()), [10]);
    assert_eq!(lens(scheduler.next_batch()), [5 * BUDGET]);
    assert_eq!(lens(scheduler.next_batch()), [10]);
    assert!(scheduler.next_batch().is_empty());
    assert!(scheduler.is_empty());
}

#[test]
fn a_text_longer_than_the_budget_waits_for_its_credit() {
    let mut scheduler = Scheduler::new(BUDGET);
    push_all(&mut scheduler, "long", &[3 * BUDGET]);
    push_all(&mut scheduler, "short", &[32; 1_000]);
    let mut before = 0;
    loop {
        let batch = scheduler.next_batch();
        if tokens(&batch, "long") > 0 {
            break;
        }
        before += tokens(&batch, "short");
    }
    let late = before - 3 * BUDGET as i64;
    assert!(late.unsigned_abs() as usize <= QUANTUM + 32, "the others got {before} tokens before it");
}

#[test]
fn credit_lapses_when_nothing_waits() {
    let mut scheduler = Scheduler::new(BUDGET);
    for place in 0..50 {
        // Each turn leaves most of its quantum, which must not add up.
        scheduler.push("idle", Class::Bulk, row("idle", place, 1));
        assert_eq!(scheduler.next_batch().len(), 1);
    }
    push_all(&mut scheduler, "idle", &[8; 1_000]);
    push_all(&mut scheduler, "busy", &[8; 1_000]);
    let batch = scheduler.next_batch();
    assert_eq!(tokens(&batch, "idle"), tokens(&batch, "busy"));
}

/// What happens to a scheduler: a text of a tenant comes, or a batch goes.
#[derive(Clone, Debug)]
enum Step {
    Push(&'static str, usize),
    Batch,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let tenant = prop_oneof![Just("a"), Just("b"), Just("c"), Just("d")];
    // Up to past the budget of 64 used with it, and without any token.
    let push = (tenant, 0_usize..80).prop_map(|(tenant, len)| Step::Push(tenant, len));
    vec(prop_oneof![6 => push, 1 => Just(Step::Batch)], 0..300)
}

proptest! {
    #[test]
    fn all_texts_come_once_in_order_within_the_budget(steps in steps()) {
        const BUDGET: usize = 64;
        let mut scheduler = Scheduler::new(BUDGET);
        let mut pushed: HashMap<&str, usize> = HashMap::new();
        let mut came: HashMap<String, usize> = HashMap::new();
        let mut waiting = 0_u64;
        let mut check = |scheduler: &mut Scheduler<(String, usize)>, waiting: &mut u64| {
            let batch = scheduler.next_batch();
            let cost: usize = batch.iter().map(|row| row.tokens.len().max(1)).sum();
            prop_assert_eq!(batch.is_empty(), *waiting == 0);
            prop_assert!(cost <= BUDGET || batch.len() == 1, "{} rows of {} tokens", batch.len(), cost);
            *waiting -= cost as u64;
            for row in batch {
                let (tenant, place) = row.tag;
                let next = came.entry(tenant).or_default();
                prop_assert_eq!(place, *next);
                *next += 1;
            }
            prop_assert_eq!(scheduler.waiting_tokens(), *waiting);
            let of_tenants: u64 = ["a", "b", "c", "d"].iter().map(|tenant| scheduler.waiting_tokens_of(tenant)).sum();
            prop_assert_eq!(of_tenants, *waiting);
            Ok(())
        };
        for step in steps {
            match step {
                Step::Push(tenant, len) => {
                    let place = pushed.entry(tenant).or_default();
                    scheduler.push(tenant, Class::Bulk, row(tenant, *place, len));
                    *place += 1;
                    waiting += len.max(1) as u64;
                }
                Step::Batch => check(&mut scheduler, &mut waiting)?,
            }
        }
        while !scheduler.is_empty() {
            check(&mut scheduler, &mut waiting)?;
        }
        for (tenant, places) in pushed {
            prop_assert_eq!(came.get(tenant), Some(&places));
        }
    }

    #[test]
    fn tenants_with_texts_waiting_get_the_same_tokens(
        a in vec(1..=TEXT_MAX, 200..400),
        b in vec(1..=20_usize, 1_000..2_000),
        third in vec(1..=TEXT_MAX, 0..100),
    ) {
        let mut scheduler = Scheduler::new(BUDGET);
        push_all(&mut scheduler, "a", &a);
        push_all(&mut scheduler, "third", &third);
        push_all(&mut scheduler, "b", &b);
        // How far a is ahead of b, after each batch with which both still had texts waiting.
        let mut ahead = vec![0_i64];
        loop {
            let batch = scheduler.next_batch();
            if scheduler.waiting_tokens_of("a") == 0 || scheduler.waiting_tokens_of("b") == 0 {
                break;
            }
            ahead.push(ahead[ahead.len() - 1] + tokens(&batch, "a") - tokens(&batch, "b"));
        }
        prop_assert!(ahead.len() > 5, "the test saw {} batches only", ahead.len());
        for (from, start) in ahead.iter().enumerate() {
            let texts = if from == 0 { 1 } else { 2 };
            for end in &ahead[from..] {
                let apart = (end - start).unsigned_abs() as usize;
                prop_assert!(apart <= QUANTUM + texts * TEXT_MAX, "{} tokens apart", apart);
            }
        }
    }

    #[test]
    fn a_newcomer_waits_for_one_turn_of_each_other(
        others in 1_usize..20,
        backlog in 100_usize..2_000,
        done in 0_usize..20,
        len in 1..=QUANTUM,
    ) {
        let mut scheduler = Scheduler::new(BUDGET);
        for other in 0..others {
            push_all(&mut scheduler, &format!("other {other}"), &vec![TEXT_MAX; backlog]);
        }
        for _ in 0..done {
            scheduler.next_batch();
        }
        scheduler.push("new", Class::Bulk, row("new", 0, len));
        // A turn spends less than a quantum and one text; a batch is closed with less than one text's room.
        let ahead_tokens = others * (QUANTUM + TEXT_MAX) + len;
        let batches_max = ahead_tokens.div_ceil(BUDGET - TEXT_MAX);
        let came = (1..=batches_max).any(|_| tokens(&scheduler.next_batch(), "new") > 0);
        prop_assert!(came, "not in {} batches", batches_max);
    }
}

#[test]
fn who_waits_goes_ahead_of_every_job_and_leaves_it_the_room() {
    let mut scheduler = Scheduler::new(100);
    for place in 0..50 {
        scheduler.push("bulk", Class::Bulk, row("bulk", place, 10));
    }
    scheduler.push("person", Class::Synchronous, row("person", 0, 30));
    scheduler.push("bulk", Class::Synchronous, row("bulk", 100, 20));
    let batch = scheduler.next_batch();
    assert_eq!(tokens(&batch, "person"), 30);
    assert_eq!(batch.iter().map(|item| item.tokens.len()).sum::<usize>(), 100, "the rest is for the job");
    assert_eq!(batch[..2].iter().map(|item| item.tokens.len()).sum::<usize>(), 50, "and comes behind");
    // More than a batch of them: the job gets nothing until they are through.
    for place in 0..15 {
        scheduler.push("person", Class::Synchronous, row("person", 1 + place, 10));
    }
    assert_eq!(tokens(&scheduler.next_batch(), "person"), 100);
    assert_eq!(tokens(&scheduler.next_batch(), "person"), 50);
    assert_eq!(tokens(&scheduler.next_batch(), "person"), 0);
    assert_eq!(scheduler.waiting_tokens_of("person"), 0);
}

#[test]
fn whoever_keeps_the_synchronous_ring_full_stops_no_job() {
    let mut scheduler = Scheduler::new(100);
    for place in 0..40 {
        scheduler.push("job", Class::Bulk, row("job", place, 50));
    }
    for place in 0..1_000 {
        scheduler.push("person", Class::Synchronous, row("person", place, 50));
    }
    for _ in 0..10 {
        let batches: Vec<i64> = (0..8).map(|_| tokens(&scheduler.next_batch(), "job")).collect();
        assert_eq!(batches, [0, 0, 0, 0, 0, 0, 0, 100], "one batch of eight");
    }
}

#[test]
fn whoever_leaves_a_job_too_little_room_each_time_does_not_stop_it() {
    let mut scheduler = Scheduler::new(100);
    for place in 0..40 {
        scheduler.push("job", Class::Bulk, row("job", place, 50));
    }
    // The synchronous ring is emptied by each batch, and the job's next text does not fit beside it.
    let batches: Vec<i64> = (0..8)
        .map(|place| {
            scheduler.push("person", Class::Synchronous, row("person", place, 60));
            tokens(&scheduler.next_batch(), "job")
        })
        .collect();
    assert_eq!(batches, [0, 0, 0, 0, 0, 0, 0, 100], "one batch of eight begins with the job");
}
