//! Jobs that a test hands in itself, without a signer.

use std::time::Duration;

use vecmill_producer::{
    contract::{Dtype, JobSpec, RunId, Truncate},
    life::{DIRECT, NewRun},
};

use crate::cluster::MODEL;

/// The run that a job's first submission begins.
pub const FIRST_RUN: RunId = RunId { life: 1, run: 1 };

/// A job's parameters, of the tests' model.
pub fn spec() -> JobSpec {
    JobSpec {
        model: MODEL.to_owned(),
        dimensions: 32,
        dtype: Dtype::F32,
        instruction: None,
        truncate: Truncate::None,
        precision: None,
    }
}

/// A job's first run, which expires after a time.
pub fn first_run(expires_in: Duration) -> NewRun {
    NewRun {
        at: FIRST_RUN,
        holder: Some(DIRECT.to_owned()),
        expires_at: jiff::Timestamp::now() + expires_in,
        name: "corpus.jsonl".to_owned(),
        lane: Some(0),
        inherited: None,
    }
}
