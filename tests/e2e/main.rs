//! End-to-end tests: real servers, real programs, nothing mocked. Run by `infra/test`, which starts the servers.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod bad_input;
mod batches;
mod cli;
mod closed;
mod crashes;
mod embeddings;
mod guard;
mod life;
mod local_mode;
mod old_jobs;
mod outages;
mod quota;
mod refusals;
mod repair;
mod revocation;
mod roles;
mod stock_clients;
mod tls;
mod topology;
mod two_tenants;
