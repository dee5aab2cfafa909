//! Local mode: the whole pipeline in one process, for a first look, a laptop, or a pipeline's own tests.
//!
//! Real: minting (with a throw-away key), the job's encoding, admission, the engine, writing, audit, completion. Only
//! the edges differ: chunks come over a channel, quotas are in memory, and S3 is a server in the process over a folder.
//! Nothing outside this module imports it.

mod cli;
mod run;
mod s3;
mod sample;
mod search;

pub use cli::main;
