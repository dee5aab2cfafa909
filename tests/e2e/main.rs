//! End-to-end tests: real programs on real servers. `infra/test` brings the servers up.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod bad_input;
mod cli;
mod local_mode;
mod refusals;
mod topology;
