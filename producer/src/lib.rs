//! The producer: the job contract and everything that hands a job in.
//!
//! A corpus becomes a job in these steps, a module each: [`source`] brings it to local disk, [`read`] takes rows from
//! it, [`split`](mod@split) cuts them into chunks on S3, [`prepare`](mod@prepare) writes the manifest, the signer
//! vouches for it, and [`submit`](mod@submit) publishes a small message a chunk. [`status`] and
//! [`fetch`](mod@fetch) look at what workers made of it. [`contract`] is what both sides agree on. [`gateway`] offers all of
//! it over HTTP, and [`client`] asks it.

pub mod cli;
pub mod client;
pub mod contract;
pub mod control;
pub mod digest;
pub mod fetch;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod gateway;
pub mod life;
pub mod part;
pub mod prepare;
pub mod publish;
pub mod read;
pub mod redis;
pub mod shares;
pub mod source;
pub mod split;
pub mod status;
pub mod store;
pub mod submit;
pub mod topology;
