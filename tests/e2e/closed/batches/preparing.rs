//! Batches that are being made into jobs: one that a gateway dies of, and one that is cancelled.

use std::time::{Duration, Instant};

use serde_json::json;
use vecmill_tests::{Cluster, Tenant, corpus, eventually};

use super::{LIMIT, document};
use crate::batches::{Caller, jsonl};

/// A corpus that takes long to cut: each line makes a chunk of its own.
fn slow_corpus(tenant: &Tenant) -> Vec<u8> {
    (0..60_000).flat_map(|n| format!("{{\"id\":\"{n}\",\"text\":\"{} {n}\"}}\n", tenant.id).into_bytes()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_gateways_die_of_is_failed_and_others_are_not() {
    let cluster = Cluster::shared().await;
    let (store, tenant, other) = (cluster.store().await, cluster.admin("a", &[]), cluster.admin("b", &[]));
    let begun = async |key: &str, count: u64| {
        let what = format!("the preparation has begun {count} times and not come back");
        eventually(&what, LIMIT, || async {
            (document(&store, key).await.is_some_and(|pending| pending["begun"] == count)).then_some(())
        })
        .await;
    };
    let mut gateway = cluster.gateway(&[]).await;
    let (key, batch) = {
        let caller = Caller::new(&gateway, &tenant);
        let file = caller.upload("corpus.jsonl", slow_corpus(&tenant)).await;
        let batch = caller.batch(&file, json!({"chunk_rows": 1})).await;
        (format!("_preparing/{}/{batch}.json", tenant.id), batch)
    };
    begun(&key, 1).await;
    // One that is told to stop has not died of it.
    assert!(gateway.terminate().await);
    begun(&key, 0).await;
    for death in 1..=3 {
        gateway = cluster.gateway(&[]).await;
        begun(&key, death).await;
        gateway.kill();
    }
    gateway = cluster.gateway(&[]).await;
    let caller = Caller::new(&gateway, &tenant);
    let failed = caller.reaches(&batch, "failed").await;
    let first = &failed["errors"]["data"][0];
    assert_eq!(first["code"], "preparation_failed", "{failed}");
    assert!(first["message"].as_str().unwrap().contains("died"), "{failed}");
    assert!(!store.exists(&key).await.unwrap(), "nobody takes it up again");

    // Another's goes on, and so does the tenant's next.
    for (tenant, seed) in [(&other, 901), (&tenant, 902)] {
        let caller = Caller::new(&gateway, tenant);
        let file = caller.upload("corpus.jsonl", jsonl(&corpus::texts(seed, 10))).await;
        let batch = caller.batch(&file, json!({})).await;
        caller.reaches(&batch, "in_progress").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_batch_stops_in_the_middle_of_its_preparation() {
    let cluster = Cluster::shared().await;
    let (store, tenant) = (cluster.store().await, cluster.admin("a", &[]));
    let gateway = cluster.gateway(&[("VECMILL_GATEWAY_PREPARING", "1".to_owned())]).await;
    let caller = Caller::new(&gateway, &tenant);
    let file = caller.upload("corpus.jsonl", slow_corpus(&tenant)).await;
    let slow = caller.batch(&file, json!({"chunk_rows": 1})).await;
    let waiting = caller.batch(&file, json!({"chunk_rows": 2})).await;
    let jobs = format!("{}/jobs/", tenant.id);
    eventually("it is being cut", LIMIT, || async {
        (store.list_some(&jobs, None, 100).await.unwrap().len() == 100).then_some(())
    })
    .await;
    let asked = Instant::now();
    // One that has not had its turn does not wait for it either.
    for batch in [&waiting, &slow] {
        caller.post(&format!("/v1/batches/{batch}/cancel"), json!({})).await;
        caller.reaches(batch, "cancelled").await;
    }
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(20), "cutting it to its end would have taken longer: {took:?}");
    eventually("what was cut of it is gone", LIMIT, || async {
        let left = store.list(&jobs, None).await.unwrap();
        left.iter().all(|object| object.key.contains("/ledger/")).then_some(())
    })
    .await;
    // Its place is another's.
    let other = cluster.admin("b", &[]);
    let caller = Caller::new(&gateway, &other);
    let file = caller.upload("corpus.jsonl", jsonl(&corpus::texts(903, 10))).await;
    let batch = caller.batch(&file, json!({})).await;
    caller.reaches(&batch, "in_progress").await;
}
