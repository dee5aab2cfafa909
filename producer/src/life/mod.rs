//! The life cycle of a job.
//!
//! [`job`] says what can happen to a job and what becomes of it then, without clock and I/O. The rest brings that to S3: [`Ledger`]
//! is the order of events, [`RunView`] what the chunks of a run came to, [`conclude`] the end of a run.

mod conclude;
pub mod job;
mod ledger;
mod legacy;
#[cfg(test)]
mod model;
mod outcomes;

pub use self::conclude::{Concluded, conclude, read_summary, summarize, write_summary};
pub use self::job::{
    CANCELLING_S, DIRECT, End, EndState, Event, HOLDERS_MAX, Job, Moot, NewRun, Plan, Run, Standing, UNRECORDED,
};
pub use self::ledger::{Appended, Entry, Ledger, LedgerError};
pub use self::outcomes::{Inherited, RunView, chunks_of};
