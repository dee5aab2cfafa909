//! Tasks over threads that each have a workplace of their own.

use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

/// Runs `work` on every task, on as many threads as there are places; a thread that is done takes the next task.
pub(super) fn spread<P: Send, T: Send>(places: &mut [P], tasks: Vec<T>, work: impl Fn(&mut P, T) + Sync) {
    let tasks = Mutex::new(tasks.into_iter());
    places.par_iter_mut().with_max_len(1).for_each(|place| {
        loop {
            // A panic in `work` poisons nothing: the lock is held for taking alone.
            let next = tasks.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(task) = next else { return };
            work(place, task);
        }
    });
}
