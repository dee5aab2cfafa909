//! Files: streamed and never held, whole or not there, and gone when their time is over.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use vecmill_signer::claims::Digest;
use vecmill_tests::{Cluster, eventually};

use super::{Caller, LIMIT};

/// Five of the parts in which it goes to S3.
const BYTES: usize = 40 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_comes_back_as_it_was_and_is_never_held() {
    let cluster = Cluster::shared().await;
    let tenant = cluster.admin("a", &[]);
    let gateway = cluster.gateway(&[("VECMILL_GATEWAY_FILE_BYTES_MAX", BYTES.to_string())]).await;
    let caller = Caller::new(&gateway, &tenant);
    // Bytes that no compression and no repetition makes equal.
    let bytes: Vec<u8> = (0..BYTES as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
    let before = gateway.memory_mib().unwrap();
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(caller.upload("large.jsonl", bytes.clone()).await);
    }
    let after = gateway.memory_mib().unwrap();
    assert!(after < before + 100, "120 MiB went through; memory went from {before} to {after} MiB");
    let file = caller.get(&format!("/v1/files/{}", ids[0])).await;
    assert_eq!(file["sha256"], Digest::of(&bytes).to_string());
    assert!(caller.bytes(&format!("/v1/files/{}/content", ids[2])).await == bytes);

    // Over the bound, it is refused and leaves nothing.
    let (status, refused) = caller.try_upload("f", &[bytes.as_slice(), b"x"].concat()).await;
    assert_eq!((status, &refused["error"]["code"]), (413, &json!("request_too_large")), "{refused}");
    // Cut off in its middle, it leaves nothing either.
    let form = "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"cut.jsonl\"\r\n\r\n";
    let mut stream = caller.begin_upload(BYTES, form).await;
    stream.write_all(&bytes[..BYTES / 2]).await.unwrap();
    drop(stream);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(caller.get("/v1/files").await["data"].as_array().unwrap().len(), 3);
    let store = cluster.store().await;
    let kept = store.list(&format!("{}/file-content/", tenant.id), None).await.unwrap();
    assert_eq!(kept.len(), 3, "{kept:?}");
}

#[tokio::test]
async fn a_file_is_kept_for_its_time_and_no_longer() {
    let cluster = Cluster::shared().await;
    let (store, tenant) = (cluster.store().await, cluster.admin("a", &[]));
    let gateway = cluster.gateway(&[]).await;
    let caller = Caller::new(&gateway, &tenant);
    let form = "--b\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n\
                --b\r\nContent-Disposition: form-data; name=\"expires_after[anchor]\"\r\n\r\ncreated_at\r\n\
                --b\r\nContent-Disposition: form-data; name=\"expires_after[seconds]\"\r\n\r\n3600\r\n\
                --b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f.jsonl\"\r\n\r\n\"a\"\n\r\n--b--\r\n";
    let request = caller.client.post(format!("{}/v1/files", gateway.url)).bearer_auth(&caller.key);
    let request = request.header("content-type", "multipart/form-data; boundary=b").body(form);
    let file: Value = request.send().await.unwrap().json().await.unwrap();
    assert_eq!(file["expires_at"].as_u64().unwrap(), file["created_at"].as_u64().unwrap() + 3600, "{file}");
    let id = file["id"].as_str().unwrap();
    assert_eq!(caller.get(&format!("/v1/files/{id}")).await, file);

    // An hour later: its record and the list of those that expire say so.
    let (record_key, past) = (format!("{}/files/{id}.json", tenant.id), 1_700_000_000_u64);
    let mut record: Value = store.get_json(&record_key, 1 << 20).await.unwrap().unwrap();
    let at = record["expires_at"].as_u64().unwrap();
    record["expires_at"] = json!(past);
    store.put_json(&record_key, &record).await.unwrap();
    let expiring = |at: u64| format!("{}/files-expiring/{at:012}-{id}.json", tenant.id);
    assert!(store.exists(&expiring(at)).await.unwrap());
    store.delete(&expiring(at)).await.unwrap();
    store.put(&expiring(past), Vec::new(), "text/plain").await.unwrap();
    // Whoever lists has it removed, without asking for it.
    eventually("it is gone", LIMIT, || async { (caller.get("/v1/files").await["data"] == json!([])).then_some(()) })
        .await;
    for prefix in ["files", "file-content", "files-expiring"] {
        let left = store.list(&format!("{}/{prefix}/", tenant.id), None).await.unwrap();
        assert!(left.is_empty(), "{left:?}");
    }
}
