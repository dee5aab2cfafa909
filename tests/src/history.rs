//! Everything that a test has seen of jobs and batches, and whether it could have been so: within a run no state and no count goes
//! back, counts add up, and what was final stays as it was.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use serde_json::Value;

/// One look: when it was asked for, when it was answered, and the answer.
struct Look {
    asked: Instant,
    answered: Instant,
    seen: Value,
}

static LOOKS: Mutex<BTreeMap<String, Vec<Look>>> = Mutex::new(BTreeMap::new());

/// Counts that only grow, as a status of a job names them.
const JOB_COUNTS: [&str; 4] = ["rows_done", "chunks_done", "chunks_dead", "tokens"];
/// The same of a batch.
const BATCH_COUNTS: [&str; 3] = ["/request_counts/completed", "/request_counts/failed", "/usage/total_tokens"];

/// Remembers an answer that was asked for at `asked`, if it is where a job or a batch stands; or a list of those.
pub fn saw(asked: Instant, seen: &Value) {
    let answered = Instant::now();
    for seen in seen["data"].as_array().map_or(std::slice::from_ref(seen), Vec::as_slice) {
        let Some(name) = name_of(seen) else { continue };
        let mut looks = LOOKS.lock().unwrap_or_else(PoisonError::into_inner);
        looks.entry(name).or_default().push(Look { asked, answered, seen: seen.clone() });
    }
}

/// What an answer is about: a run of a job, or a batch.
fn name_of(seen: &Value) -> Option<String> {
    if seen["object"] == "batch" {
        return Some(seen["id"].as_str()?.to_owned());
    }
    let (job, run) = (seen["job"].as_str()?, seen["run"].as_u64()?);
    // Of a job that is being cut for the first time nothing is known.
    // The prefix has the tenant, of which the answer itself says nothing.
    (seen["state"].is_string() && run > 0).then(|| format!("{} {job} {run}", seen["prefix"]))
}

/// How far a state is from the beginning; states of one rank follow in any order.
fn rank(seen: &Value) -> u32 {
    match seen["state"].as_str().or(seen["status"].as_str()).unwrap_or_default() {
        "validating" => 0,
        "queued" | "in_progress" => 1,
        "running" => 2,
        "finalizing" => 3,
        "cancelling" => 4,
        "completed" | "failed" | "expired" | "cancelled" => 5,
        other => panic!("{other:?} is no state: {seen}"),
    }
}

/// Checks all that was seen so far; gives how much that was.
///
/// # Panics
/// At what can't have been so.
pub fn check() -> usize {
    let looks = LOOKS.lock().unwrap_or_else(PoisonError::into_inner);
    for (name, looks) in &*looks {
        looks.iter().for_each(|look| adds_up(name, &look.seen));
        let mut ordered: Vec<&Look> = looks.iter().collect();
        ordered.sort_by_key(|look| look.answered);
        for (place, later) in ordered.iter().enumerate() {
            // The last that was answered before this one was asked for: what overlaps has no order.
            let earlier = ordered[..place].iter().rev().find(|earlier| earlier.answered <= later.asked);
            if let Some(earlier) = earlier {
                follows(name, &earlier.seen, &later.seen);
            }
        }
    }
    looks.values().map(Vec::len).sum()
}

/// Checks answers that came one after the other over one connection.
///
/// # Panics
/// At what can't have been so.
pub fn in_order(answers: &[Value]) {
    answers.iter().for_each(|seen| adds_up("a stream", seen));
    for pair in answers.windows(2).filter(|pair| name_of(&pair[0]) == name_of(&pair[1])) {
        follows("a stream", &pair[0], &pair[1]);
    }
}

fn count(seen: &Value, name: &str) -> Option<u64> {
    if name.starts_with('/') { seen.pointer(name)?.as_u64() } else { seen[name].as_u64() }
}

fn adds_up(name: &str, seen: &Value) {
    let number = |field: &str| count(seen, field).unwrap_or_default();
    if seen["object"] == "batch" {
        let [total, completed, failed] =
            ["total", "completed", "failed"].map(|of| number(&format!("/request_counts/{of}")));
        assert!(completed + failed <= total, "{name} counts more than there is: {seen}");
        let ended = rank(seen) == 5 && !seen["submitted"].is_null();
        assert!(!ended || completed + failed == total, "{name} has ended and counts less than there is: {seen}");
        let whole = seen["status"] != "completed" || completed + number("/request_counts/failed") == total;
        assert!(whole, "{name} is completed without its lines: {seen}");
        return;
    }
    let (rows, chunks) = (number("rows"), number("chunks"));
    assert!(number("rows_done") + number("rows_waiting") <= rows, "{name} counts more rows than there are: {seen}");
    assert!(
        number("chunks_done") + number("chunks_dead") <= chunks,
        "{name} counts more chunks than there are: {seen}"
    );
    if seen["state"] == "completed" {
        assert_eq!((number("rows_done"), number("chunks_done")), (rows, chunks), "{name} is completed in part: {seen}");
    }
}

fn follows(name: &str, earlier: &Value, later: &Value) {
    assert!(rank(earlier) <= rank(later), "{name} went back, from {earlier} to {later}");
    let counts: &[&str] = if earlier["object"] == "batch" { &BATCH_COUNTS } else { &JOB_COUNTS };
    for field in counts {
        if let (Some(before), Some(after)) = (count(earlier, field), count(later, field)) {
            assert!(before <= after, "{field} of {name} went back, from {earlier} to {later}");
        }
    }
    if rank(earlier) == 5 {
        for field in ["state", "status", "request_counts", "usage", "rows_done", "rows_failed", "tokens", "chunks_dead"]
        {
            assert_eq!(earlier[field], later[field], "{field} of {name} changed after its end: {earlier}, {later}");
        }
        for field in ["ended_at", "completed_at", "failed_at", "expired_at", "cancelled_at", "output_file_id"] {
            assert_eq!(earlier[field], later[field], "{field} of {name} changed after its end: {earlier}, {later}");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn job(state: &str, done: u64, tokens: Option<u64>) -> Value {
        json!({
            "job": "j", "run": 1, "state": state, "rows": 10, "rows_done": done, "rows_waiting": 10 - done,
            "chunks": 10, "chunks_done": done, "chunks_dead": 0, "tokens": tokens,
        })
    }

    fn refused(earlier: &Value, later: &Value) -> bool {
        std::panic::catch_unwind(|| {
            adds_up("j", earlier);
            adds_up("j", later);
            follows("j", earlier, later);
        })
        .is_err()
    }

    #[test]
    fn what_goes_back_is_found() {
        let good = [
            job("queued", 0, Some(0)),
            job("running", 3, None),
            job("running", 3, Some(9)),
            job("completed", 10, Some(30)),
        ];
        for pair in good.windows(2) {
            assert!(!refused(&pair[0], &pair[1]), "{pair:?}");
        }
        assert!(refused(&job("running", 3, None), &job("running", 2, None)), "a count");
        assert!(refused(&job("running", 3, None), &job("validating", 3, None)), "a state");
        assert!(refused(&job("cancelled", 3, None), &job("completed", 10, None)), "another end");
        assert!(refused(&job("cancelled", 3, Some(9)), &job("cancelled", 4, Some(12))), "more after the end");
        assert!(refused(&job("running", 9, None), &job("completed", 9, None)), "completed in part");
        let batch = |status: &str, completed: u64| json!({"object": "batch", "id": "b", "status": status, "submitted": {}, "request_counts": {"total": 4, "completed": completed, "failed": 0}});
        assert!(refused(&batch("in_progress", 1), &batch("completed", 3)), "an end that does not add up");
        assert!(refused(&batch("cancelled", 4), &batch("cancelling", 4)), "a cancellation");
    }
}
