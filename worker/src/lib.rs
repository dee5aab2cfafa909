//! The worker: admission, quotas, batching, the Qwen3 engine, writing, audit and completion.

pub mod engine;
