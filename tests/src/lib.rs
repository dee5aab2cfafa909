//! What the end-to-end tests share: real servers, real programs, generated corpora.
//!
//! `infra/test` brings up one RabbitMQ, Redis and S3 for the tests that leave them alone; a test that kills a server
//! starts instances of its own ([`Servers::private`]).

mod address;
#[path = "../../signer/tests/it/attacks/table.rs"]
pub mod attacks;
pub mod bombs;
pub mod cluster;
pub mod corpus;
pub mod forge;
pub mod form;
pub mod history;
pub mod job;
pub mod process;
#[path = "../../signer/tests/it/program.rs"]
pub mod program;
pub mod receivers;
pub mod redis;
pub mod requests;
pub mod results;
pub mod servers;

pub use address::{connect_from, free_address};
pub use cluster::{Cluster, Tenant, WorkerOptions};
pub use servers::{Role, Servers};

use std::time::{Duration, Instant};

/// Waits until `look` finds something, or fails after `limit` saying what was waited for. The one place where tests
/// wait by the clock; what they wait for is an event.
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> F,
) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begun.elapsed() < limit, "after {limit:?} still not: {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
