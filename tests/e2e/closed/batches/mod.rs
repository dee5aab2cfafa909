//! The doors of files, batches, jobs and webhooks: what a tenant sends through them must not stop, slow or outspend another.

mod limits;
mod preparing;
mod uploads;
mod webhooks;

use std::time::Duration;

use serde_json::Value;
use vecmill_producer::store::Store;
use vecmill_tests::{Tenant, cluster::Process};

use crate::batches::Caller;

const LIMIT: Duration = Duration::from_secs(90);

/// What lies at a key, as JSON.
async fn document(store: &Store, key: &str) -> Option<Value> {
    store.get_json(key, 1 << 20).await.unwrap()
}

/// The status and the body of a request that may be refused.
async fn ask(caller: &Caller<'_>, method: &str, path: &str, body: Value) -> (u16, Value) {
    let body = (method == "POST").then_some(body);
    caller.ask(method.parse().unwrap(), path, body).await
}

/// An upload that may be refused, over a connection of its own.
async fn upload(gateway: &Process, tenant: &Tenant, bytes: &[u8]) -> (u16, Value) {
    Caller::new(gateway, tenant).try_upload("f.jsonl", bytes).await
}
