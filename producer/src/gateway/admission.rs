//! How many requests for embeddings may be under way: as many as the workers answer in a part of the time that a request has.
//!
//! Without it, more requests than can be done all wait until their time is nearly over, and then a worker begins on each too
//! late: twice the load comes to no answer at all. By Little's law the time that a request will take is what is under way over
//! what is done a second; a gateway knows both, and counts only its own.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Requests that are let in whatever has been measured: as many as a worker takes at once, so that it is seen what it can do.
const LEAST: usize = 32;
/// Time over which what is done is measured: long beside a request, short beside a load that changes.
const MEASURED_OVER_S: f64 = 5.0;

/// What is under way, and how fast it is done.
#[derive(Debug)]
pub(super) struct Admission {
    /// Time that a request may take before the next is refused.
    target: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    under_way: usize,
    /// When the last request came or was done.
    last: Instant,
    /// Requests done, and seconds with any under way; both fade, so that their ratio is of the last seconds.
    done: f64,
    busy_s: f64,
}

/// A request that is under way, until it is dropped.
#[derive(Debug)]
pub(super) struct Entered<'a> {
    admission: &'a Admission,
    answered: bool,
}

impl Admission {
    /// For requests that are to be answered within `answer_within`.
    pub(super) fn new(answer_within: Duration) -> Self {
        let state = State { under_way: 0, last: Instant::now(), done: 0.0, busy_s: 0.0 };
        Self { target: answer_within / 4, state: Mutex::new(state) }
    }

    /// Lets a request in, or says how long what is under way will take.
    pub(super) fn enter(&self) -> Result<Entered<'_>, Duration> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.pass(Instant::now());
        let expected_s = (state.under_way + 1) as f64 * state.busy_s / state.done.max(f64::MIN_POSITIVE);
        if state.under_way >= LEAST && state.done > 0.0 && expected_s > self.target.as_secs_f64() {
            return Err(Duration::from_secs_f64(expected_s.min(60.0)));
        }
        state.under_way += 1;
        Ok(Entered { admission: self, answered: false })
    }
}

impl State {
    /// Time has passed.
    fn pass(&mut self, now: Instant) {
        let elapsed_s = now.saturating_duration_since(self.last).as_secs_f64();
        self.last = now;
        if self.under_way > 0 {
            let fade = (-elapsed_s / MEASURED_OVER_S).exp();
            self.done *= fade;
            self.busy_s = self.busy_s * fade + elapsed_s;
        }
    }
}

impl Entered<'_> {
    /// A worker has answered.
    pub(super) fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut state = self.admission.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.pass(Instant::now());
        state.under_way -= 1;
        if self.answered {
            state.done += 1.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As if so many had been done a second, for long.
    fn measured(per_s: f64) -> Admission {
        let admission = Admission::new(Duration::from_secs(30));
        {
            let mut state = admission.state.lock().expect("no panic");
            (state.done, state.busy_s) = (per_s * MEASURED_OVER_S, MEASURED_OVER_S);
        }
        admission
    }

    fn let_in(admission: &Admission) -> usize {
        let entered: Vec<_> = std::iter::from_fn(|| admission.enter().ok()).take(10_000).collect();
        entered.len()
    }

    #[test]
    fn as_many_are_let_in_as_are_done_in_a_quarter_of_the_time() {
        for (per_s, about) in [(10.0, 75), (100.0, 750)] {
            let let_in = let_in(&measured(per_s));
            assert!(let_in.abs_diff(about) <= about / 20, "{per_s} a second: {let_in}, not {about}");
        }
    }

    #[test]
    fn who_is_slow_gets_some_and_who_is_unknown_gets_all() {
        assert_eq!(let_in(&measured(0.1)), LEAST);
        assert_eq!(let_in(&Admission::new(Duration::from_secs(30))), 10_000);
    }

    #[test]
    fn what_is_answered_counts_and_what_is_given_up_does_not() {
        let admission = measured(10.0);
        let before = admission.state.lock().expect("no panic").done;
        drop(admission.enter().expect("room"));
        assert!(admission.state.lock().expect("no panic").done <= before);
        admission.enter().expect("room").answered();
        let after = admission.state.lock().expect("no panic");
        assert!(after.done > before && after.under_way == 0);
    }

    #[test]
    fn the_refusal_says_how_long_it_will_take() {
        let admission = measured(10.0);
        let entered: Vec<_> = std::iter::from_fn(|| admission.enter().ok()).collect();
        let wait = admission.enter().expect_err("full");
        assert!((7.0..9.0).contains(&wait.as_secs_f64()), "{wait:?} for {}", entered.len());
    }
}
