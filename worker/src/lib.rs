//! The worker: admission, quotas, batching, the Qwen3 engine, writing, audit and completion.
//!
//! A delivery comes over a channel ([`delivery`]), from RabbitMQ ([`broker`]) or from local mode's loop ([`local`]).
//! [`pipeline`] takes it through its steps; [`embedder`] owns the model and packs all tenants' rows into batches by
//! [`schedule`]; [`part`] is what is written, [`finish`] completes jobs. [`worker`] puts it together.

pub mod audit;
pub mod broker;
pub mod built_in;
pub mod cli;
pub mod delivery;
pub mod embedder;
pub mod engine;
pub mod finish;
pub mod health;
pub mod hub;
pub mod kill_point;
pub mod local;
pub mod manifests;
pub mod metrics;
pub mod model_source;
pub mod panics;
pub mod part;
pub mod pipeline;
pub mod quota;
pub mod request_audit;
pub mod schedule;
pub mod settings;
pub mod synchronous;
pub mod turnstile;
pub mod worker;
