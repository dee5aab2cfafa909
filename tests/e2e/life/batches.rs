//! Batches, and what they do to the job that they are of.

use serde_json::{Value, json};
use vecmill_producer::life::RunView;
use vecmill_tests::{
    corpus, eventually, history,
    results::{check_completed, done_chunks},
};

use super::*;
use crate::batches::jsonl;

/// A batch of rows of a chunk each that no other batch has asked for with the same words.
fn order(unique: &str, chunk_rows: u32) -> Value {
    json!({"output": {"dimensions": 32}, "chunk_rows": chunk_rows, "metadata": {"unique": unique}})
}

/// Waits for a batch's end.
async fn ended(caller: &Caller<'_>, batch: &str) -> Value {
    eventually(&format!("batch {batch} has ended"), LIMIT, || async {
        let found = caller.get(&format!("/v1/batches/{batch}")).await;
        let ended = ["completed", "failed", "expired", "cancelled"].iter().any(|state| found["status"] == *state);
        tokio::time::sleep(Duration::from_millis(50)).await;
        ended.then_some(found)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_and_submitted_again_it_shares_nothing_with_what_it_was() {
    let scene = Scene::new().await;
    let Scene { cluster, store, tenant, .. } = &scene;
    let (caller, texts) = (scene.caller(), corpus::texts(402, MIDDLE));
    let file = caller.upload("corpus.jsonl", jsonl(&texts)).await;
    // Two workers, one of which is held up with chunks in its hands.
    let held_up = scene.slow_worker().await;
    let batch = caller.batch(&file, order("first", 1)).await;
    let job = job_of(&caller.reaches(&batch, "in_progress").await);
    let keys = cluster.keys(tenant, &job);
    let _worker = scene.worker().await;
    eventually("some chunks are done", LIMIT, || async { (done_chunks(store, &keys).await.len() > 3).then_some(()) })
        .await;
    signal(&held_up, "STOP");
    caller.post(&format!("/v1/batches/{batch}/cancel"), json!({})).await;
    let cancelled = ended(&caller, &batch).await;
    assert_eq!(cancelled["status"], "cancelled", "{cancelled}");
    let output = cancelled["output_file_id"].as_str().expect("an output file").to_owned();
    let (status, body) = caller.ask(reqwest::Method::DELETE, &format!("/v1/files/{output}"), None).await;
    assert_eq!(status, 200, "{body}");
    assert!(store.list(keys.prefix(), None).await.unwrap().is_empty(), "nothing of it is left");
    assert_eq!(caller.ask(reqwest::Method::GET, &format!("/v1/jobs/{job}"), None).await.0, 404);
    let errors = format!("/v1/files/{}/content", cancelled["error_file_id"].as_str().expect("an error file"));
    let (status, body) = caller.ask(reqwest::Method::GET, &errors, None).await;
    assert_eq!((status, &body["error"]["code"]), (410, &json!("content_deleted")), "{body}");

    let again = caller.batch(&file, order("second", 1)).await;
    assert_eq!(job_of(&caller.reaches(&again, "in_progress").await), job);
    tokio::time::sleep(Duration::from_secs(2)).await;
    signal(&held_up, "CONT");
    let done = ended(&caller, &again).await;
    assert_eq!(
        (&done["status"], &done["request_counts"]["completed"]),
        (&json!("completed"), &json!(MIDDLE)),
        "{done}"
    );
    let summary = is_whole(store, tenant, &job).await;
    assert_eq!((summary.rows, summary.run), (MIDDLE as u64, 2));
    // Its tokens are those of both lives: what was computed twice is paid for twice.
    let spent = caller.get("/v1/usage").await["data"][0]["tokens"].as_u64().unwrap();
    let first = cancelled["usage"]["total_tokens"].as_u64().unwrap();
    assert!(spent >= summary.tokens + first, "{spent} tokens, {} and {first}", summary.tokens);
    let left: Vec<String> =
        store.list(keys.prefix(), None).await.unwrap().into_iter().map(|object| object.key).collect();
    assert!(left.len() <= 8, "a worker that was held up has left what it had in its hands, at most: {left:?}");
    history::check();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_told_of_many_batches_never_goes_back() {
    let scene = Scene::new().await;
    let caller = scene.caller();
    let _workers = [scene.worker().await, scene.worker().await];
    for round in 0..4 {
        let mut batches = Vec::new();
        for number in 0..6 {
            // With rows that fail: a token id that no model has.
            let mut lines = jsonl(&corpus::texts(420 + 10 * round + number, 30));
            lines.extend(br#"{"id":"bad","input":[4000000000]}"#);
            lines.push(b'\n');
            let file = caller.upload("corpus.jsonl", lines).await;
            batches.push(caller.batch(&file, order("", 2)).await);
        }
        // Cancelled at any moment, two of them; polled without a pause.
        let mut delays = Delays::new("batches");
        let watch = futures_util::future::join_all(batches.iter().map(|batch| async {
            let end = ended(&caller, batch).await;
            if let Some(job) = end["job"].as_str() {
                for _ in 0..3 {
                    caller.get(&format!("/v1/jobs/{job}")).await;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            end
        }));
        let cancel = async {
            for batch in &batches[..2] {
                delays.wait(800).await;
                caller.ask(reqwest::Method::POST, &format!("/v1/batches/{batch}/cancel"), Some(json!({}))).await;
            }
        };
        let (ends, ()) = tokio::join!(watch, cancel);
        for end in ends {
            let again = caller.get(&format!("/v1/batches/{}", end["id"].as_str().unwrap())).await;
            assert_eq!(again, end, "what has ended stays");
            let lines = |file: &Value| {
                let path = file.as_str().map(|file| format!("/v1/files/{file}/content"));
                async {
                    match path {
                        Some(path) => caller.bytes(&path).await.iter().filter(|byte| **byte == b'\n').count() as u64,
                        None => 0,
                    }
                }
            };
            let counts = &end["request_counts"];
            assert_eq!(json!(lines(&end["output_file_id"]).await), counts["completed"], "{end}");
            if !end["job"].is_null() {
                assert_eq!(json!(lines(&end["error_file_id"]).await), counts["failed"], "{end}");
            }
        }
    }
    println!("{} looks", history::check());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_cancelled_while_it_is_prepared_becomes_no_job() {
    let scene = Scene::new().await;
    let (caller, _worker) = (scene.caller(), scene.worker().await);
    let mut delays = Delays::new("cancel while validating");
    for seed in 0..12 {
        let file = caller.upload("corpus.jsonl", jsonl(&corpus::texts(470 + seed, 60))).await;
        let batch = caller.batch(&file, order("", 5)).await;
        delays.wait(120).await;
        let (status, said) =
            caller.ask(reqwest::Method::POST, &format!("/v1/batches/{batch}/cancel"), Some(json!({}))).await;
        assert!(status == 200 || status == 409, "{said}");
        let end = ended(&caller, &batch).await;
        assert_eq!(end["status"], if status == 200 { "cancelled" } else { "completed" }, "{said} {end}");
        for _ in 0..10 {
            assert_eq!(caller.get(&format!("/v1/batches/{batch}")).await, end, "it stays so");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    history::check();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_batch_does_with_a_job_leaves_the_others_theirs() {
    let scene = Scene::new().await;
    let Scene { cluster, store, tenant, .. } = &scene;
    let (caller, texts) = (scene.caller(), corpus::texts(490, 60));
    let file = caller.upload("corpus.jsonl", jsonl(&texts)).await;
    let [first, second] = [caller.batch(&file, order("first", 1)).await, caller.batch(&file, order("second", 1)).await];
    for batch in [&first, &second] {
        caller.reaches(batch, "in_progress").await;
    }
    // Cancelled by the one, it goes on for the other.
    caller.post(&format!("/v1/batches/{second}/cancel"), json!({})).await;
    let cancelled = ended(&caller, &second).await;
    assert_eq!((&cancelled["status"], &cancelled["request_counts"]["completed"]), (&json!("cancelled"), &json!(0)));
    let _worker = scene.worker().await;
    let done = ended(&caller, &first).await;
    assert_eq!((&done["status"], &done["request_counts"]["completed"]), (&json!("completed"), &json!(60)), "{done}");
    let job = job_of(&done);
    check_completed(store, &cluster.keys(tenant, &job), tenant, &cluster.model_dir(), &texts).await;

    // A third has what is there. Deleted by the one, it stays for the other.
    let third = caller.batch(&file, order("third", 1)).await;
    let third = ended(&caller, &third).await;
    assert_eq!(third["request_counts"]["completed"], 60);
    let content = |batch: &Value| format!("/v1/files/{}/content", batch["output_file_id"].as_str().unwrap());
    let lines = caller.bytes(&content(&third)).await;
    let delete = async |batch: &Value, file: &str| {
        let path = format!("/v1/files/{}", batch[file].as_str().unwrap());
        let (status, body) = caller.ask(reqwest::Method::DELETE, &path, None).await;
        assert_eq!(status, 200, "{body}");
    };
    delete(&done, "output_file_id").await;
    assert_eq!(caller.ask(reqwest::Method::GET, &content(&done), None).await.0, 404);
    assert_eq!(caller.bytes(&content(&third)).await, lines, "the other's file is what it was");
    delete(&cancelled, "error_file_id").await;
    assert_eq!(caller.bytes(&content(&third)).await, lines);
    // The last one takes it along.
    delete(&third, "output_file_id").await;
    assert_eq!(caller.ask(reqwest::Method::GET, &format!("/v1/jobs/{job}"), None).await.0, 404);
    assert!(store.list(cluster.keys(tenant, &job).prefix(), None).await.unwrap().is_empty());

    // What has ended is not the same request any more.
    let keyless = async || {
        let more = order("again", 1);
        let mut body = json!({"input_file_id": file, "endpoint": "/v1/embeddings", "completion_window": "24h"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        caller.post("/v1/batches", body).await["id"].as_str().unwrap().to_owned()
    };
    let once = keyless().await;
    ended(&caller, &once).await;
    let twice = keyless().await;
    assert_ne!(twice, once);
    ended(&caller, &twice).await;
    history::check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_thousands_of_chunks_counts_all_of_them_at_its_end() {
    const ROWS: usize = 2_100;
    let scene = Scene::new().await;
    let (caller, texts) = (scene.caller(), corpus::texts(497, ROWS));
    let mut lines = jsonl(&texts);
    lines.extend(br#"{"id":"bad","input":[4000000000]}"#);
    lines.push(b'\n');
    let file = caller.upload("corpus.jsonl", lines).await;
    let env = vec![("VECMILL_PREFETCH", "32".to_owned())];
    let _worker = scene.cluster.worker(WorkerOptions { env }).await;
    let batch = caller.batch(&file, order("", 1)).await;
    let done = ended(&caller, &batch).await;
    let counts = json!({"total": ROWS + 1, "completed": ROWS, "failed": 1});
    assert_eq!((&done["status"], &done["request_counts"]), (&json!("completed"), &counts), "{done}");
    let summary = is_whole(&scene.store, &scene.tenant, &job_of(&done)).await;
    assert_eq!(done["usage"]["total_tokens"], json!(summary.tokens));
    let view = Ledger::new(scene.store.clone(), &scene.tenant.id, &job_of(&done));
    let entry = view.head().await.unwrap().unwrap();
    let run = entry.job.run.as_ref().unwrap();
    let view = RunView::open(&scene.store, &view.keys_of(entry.job.at()), run, ROWS as u32 + 1).await.unwrap();
    assert_eq!(view.results(&scene.store).await.unwrap().len(), ROWS + 1);
    history::check();
}
