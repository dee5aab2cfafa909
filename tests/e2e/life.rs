//! Orders of submit, cancel, repair, delete and look that must not be able to break a job, provoked on real servers; each is tried
//! as often as it would have shown.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use vecmill_producer::{
    contract::{Dtype, FinalManifest, JobSpec, MANIFEST_BYTES_MAX, RunId, Truncate},
    life::{DIRECT, EndState, Event, Ledger, NewRun, RunView},
    prepare::{Corpus, prepare},
    read::{InputFormat, ReadOptions},
    source::Source,
    split::Cut,
    store::Store,
};
use vecmill_signer::claims::{Digest, JobId};
use vecmill_tests::{
    Cluster, Tenant, WorkerOptions,
    cluster::MODEL,
    corpus, eventually, history,
    program::json_of,
    results::{check_completed, document, done_chunks},
};

use crate::batches::{Caller, admin, jsonl};

const LIMIT: Duration = Duration::from_secs(90);
/// Texts, of a chunk each, of a job whose middle must be seen.
const MIDDLE: usize = 500;

/// Milliseconds from a seed that is printed, so that what was found can be tried again.
struct Delays(u64);

impl Delays {
    fn new(test: &str) -> Self {
        let seed = std::env::var("VECMILL_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
        println!("{test}: VECMILL_TEST_SEED={seed}");
        Self(seed)
    }

    /// The next, below `below_ms`: xorshift64.
    async fn wait(&mut self, below_ms: u64) {
        self.0 = self.0.max(1);
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        tokio::time::sleep(Duration::from_millis(self.0 % below_ms)).await;
    }
}

fn signal(process: &vecmill_tests::cluster::Process, name: &str) {
    let pid = process.id().to_string();
    assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
}

/// The parts that a complete job's summary names are there, and are what it says.
async fn is_whole(store: &Store, tenant: &Tenant, job: &JobId) -> FinalManifest {
    let ledger = Ledger::new(store.clone(), &tenant.id, job);
    let entry = ledger.head().await.unwrap().expect("a ledger");
    let keys = ledger.keys_of(entry.job.at());
    let end = entry.job.run.and_then(|run| run.end).expect("an end");
    let summary: FinalManifest = document(store, &keys.summary(&end.summary)).await;
    for part in &summary.parts {
        let bytes = store.get(&keys.object(&part.path), MANIFEST_BYTES_MAX).await.unwrap();
        let bytes = bytes.unwrap_or_else(|| panic!("{} is not there", part.path));
        assert_eq!(Digest::of(&bytes), part.sha256, "{}", part.path);
    }
    if end.state == EndState::Completed {
        assert_eq!(summary.parts.len() as u32, summary.chunks, "a complete job has all its parts");
        assert!(store.exists(&keys.success()).await.unwrap());
    }
    summary
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_write_at_once_one_has_written() {
    let cluster = Cluster::shared().await;
    let store = cluster.store().await;
    // Few: SeaweedFS has those that meet wait for its lock, a second or more each.
    for round in 0..6 {
        let key = format!("{}/at-once/{round}", cluster.unique());
        let writing = (0..3).map(|writer: u8| {
            let (store, key) = (store.clone(), key.clone());
            tokio::spawn(async move {
                store.put_new(&key, vec![writer; 100], "text/plain").await.unwrap().then_some(writer)
            })
        });
        let written = futures_util::future::join_all(writing).await;
        let writers: Vec<u8> = written.into_iter().filter_map(|writer| writer.unwrap()).collect();
        let [writer] = writers[..] else { panic!("{writers:?} have written {key}") };
        assert_eq!(store.get(&key, 1 << 10).await.unwrap().unwrap().to_vec(), vec![writer; 100], "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_who_retry_a_job_with_a_dead_chunk_never_make_it_complete() {
    let cluster = Cluster::shared().await;
    let (store, tenant, texts) = (cluster.store().await, cluster.tenant("a", &[]), corpus::texts(401, 3));
    let file = corpus::write_jsonl(cluster.dir.path(), "corpus.jsonl", &texts);
    let job = cluster.submit(&tenant, &file, &["--chunk-rows", "1"]);
    let keys = cluster.keys(&tenant, &job);
    let input = store.list(&format!("{}chunk-000001", keys.input_prefix()), None).await.unwrap();
    let object = store.get(&input[0].key, 1 << 20).await.unwrap().unwrap();
    store.delete(&input[0].key).await.unwrap();
    let _worker = cluster.worker(WorkerOptions::default()).await;

    let until = Instant::now() + Duration::from_secs(15);
    let retried = std::sync::atomic::AtomicU32::new(0);
    let client = async |name: &str| {
        let mut delays = Delays::new(name);
        while Instant::now() < until {
            let repaired = json_of(&cluster.vecmill(&tenant, &["repair", job.as_str(), "--json"]));
            assert_ne!(repaired["was"], "completed", "a chunk is missing");
            retried.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            cluster.status(&tenant, &job);
            delays.wait(150).await;
        }
    };
    tokio::join!(client("one who retries"), client("another"));
    assert!(!store.exists(&keys.success()).await.unwrap(), "a chunk is missing");
    println!("retried {retried:?} times");

    // With the chunk back it is what it should be.
    store.put(&input[0].key, object, "application/zstd").await.unwrap();
    eventually("the job is complete", LIMIT, || async {
        let was = json_of(&cluster.vecmill(&tenant, &["repair", job.as_str(), "--json"]))["was"].clone();
        tokio::time::sleep(Duration::from_millis(500)).await;
        (was == "completed").then_some(())
    })
    .await;
    check_completed(&store, &keys, &tenant, &cluster.model_dir(), &texts).await;
    history::check();
}

/// A tenant, a gateway, and a file of rows.
struct Scene {
    cluster: Cluster,
    store: Store,
    tenant: Tenant,
    gateway: vecmill_tests::cluster::Process,
}

impl Scene {
    async fn new() -> Self {
        let cluster = Cluster::shared().await;
        let (store, tenant) = (cluster.store().await, admin(&cluster, "a", &[]));
        let gateway = cluster.gateway(&[]).await;
        Self { cluster, store, tenant, gateway }
    }

    fn caller(&self) -> Caller<'_> {
        Caller::new(&self.gateway, &self.tenant)
    }

    async fn worker(&self) -> vecmill_tests::cluster::Process {
        self.cluster.worker(WorkerOptions::default()).await
    }

    /// A worker that has little at once and so is slow.
    async fn slow_worker(&self) -> vecmill_tests::cluster::Process {
        let env = vec![("VECMILL_PREFETCH", "1".to_owned()), ("VECMILL_BATCH_TOKENS", "64".to_owned())];
        self.cluster.worker(WorkerOptions { env }).await
    }
}

/// A batch of rows of a chunk each that no other batch has asked for with the same words.
fn order(unique: &str, chunk_rows: u32) -> Value {
    json!({"output": {"dimensions": 32}, "chunk_rows": chunk_rows, "metadata": {"unique": unique}})
}

fn job_of(batch: &Value) -> JobId {
    batch["job"].as_str().expect("a job").parse().expect("a job's id")
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
async fn workers_that_compute_other_bits_leave_one_result() {
    let scene = Scene::new().await;
    let Scene { cluster, store, tenant, .. } = &scene;
    let worker = async |path: &str| {
        let env = vec![("VECMILL_CPU_PATH", path.to_owned()), ("VECMILL_COMPUTE_DTYPE", "f32".to_owned())];
        cluster.worker(WorkerOptions { env }).await
    };
    // The reference on candle's tensors sums in another order than the others.
    let _workers = [worker("portable-f32").await, worker("candle-f32").await];
    for seed in 0..6 {
        let texts = corpus::texts(410 + seed, 25);
        let file = corpus::write_jsonl(cluster.dir.path(), &format!("{seed}.jsonl"), &texts);
        let job = cluster.submit(tenant, &file, &["--chunk-rows", "5"]);
        for _ in 0..3 {
            cluster.vecmill(tenant, &["repair", job.as_str()]);
        }
        cluster.reaches(tenant, &job, "completed", LIMIT).await;
        check_completed(store, &cluster.keys(tenant, &job), tenant, &cluster.model_dir(), &texts).await;
        let out = cluster.dir.path().join(format!("out-{seed}"));
        let fetched =
            json_of(&cluster.vecmill(tenant, &["get", job.as_str(), "--out", out.to_str().unwrap(), "--json"]));
        assert_eq!((&fetched["parts"], &fetched["complete"]), (&json!(5), &json!(true)));
    }
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
async fn a_cancel_that_was_acknowledged_is_obeyed_by_its_run() {
    let scene = Scene::new().await;
    let Scene { cluster, store, tenant, .. } = &scene;
    let (caller, _worker) = (scene.caller(), scene.worker().await);
    let mut delays = Delays::new("cancel");
    let mut acknowledged = 0;
    for seed in 0..6 {
        let texts = corpus::texts(450 + seed, MIDDLE);
        let file = corpus::write_jsonl(cluster.dir.path(), &format!("{seed}.jsonl"), &texts);
        let mut submit =
            cluster.vecmill_in_background(tenant, &["submit", file.to_str().unwrap(), "--chunk-rows", "1"]);
        // At the first moment at which the job is known, or a little later.
        let job = eventually("the job is known", LIMIT, || async {
            let known: Vec<JobId> = caller.get("/v1/jobs").await["data"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|job| job["name"].as_str().is_some_and(|name| name.ends_with(&format!("/{seed}.jsonl"))))
                .map(job_of)
                .collect();
            known.into_iter().next()
        })
        .await;
        delays.wait(60).await;
        let said = caller.post(&format!("/v1/jobs/{job}/cancel"), json!({})).await;
        submit.wait().unwrap();
        if said["state"] != "cancelling" {
            continue;
        }
        acknowledged += 1;
        let end = cluster.reaches(tenant, &job, "cancelled", LIMIT).await;
        assert_eq!(end["run"], said["run"], "{end}");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(cluster.status(tenant, &job), end, "it stays so");
        is_whole(store, tenant, &job).await;
        // Submitted again it goes on, as another run.
        if seed == 0 {
            assert_eq!(cluster.submit(tenant, &file, &["--chunk-rows", "1"]), job);
            let done = cluster.reaches(tenant, &job, "completed", LIMIT).await;
            assert_eq!(done["run"].as_u64(), end["run"].as_u64().map(|run| run + 1));
            check_completed(store, &cluster.keys(tenant, &job), tenant, &cluster.model_dir(), &texts).await;
        }
    }
    println!("{acknowledged} cancellations were acknowledged");
    assert!(acknowledged > 2, "too few to prove anything");
    history::check();
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
async fn a_grant_of_an_earlier_run_has_no_effect_on_the_next() {
    let scene = Scene::new().await;
    let Scene { cluster, store, tenant, .. } = &scene;
    let texts = corpus::texts(495, 40);
    let file = corpus::write_jsonl(cluster.dir.path(), "corpus.jsonl", &texts);
    let other = cluster.signer(&["key", "create", "--tenant", tenant.id.as_str(), "--role", "writer"]);
    let other = Tenant { api_key: other["key"].as_str().unwrap().to_owned(), ..tenant.clone() };
    // A day's grant of a key that is revoked, and then an hour's of one that is good.
    let job = cluster.submit(&other, &file, &["--chunk-rows", "2", "--window-hours", "24"]);
    cluster.signer(&["key", "revoke", other.key_id()]);
    let repaired = json_of(&cluster.vecmill(tenant, &["repair", job.as_str(), "--window-hours", "1", "--json"]));
    assert_eq!((&repaired["published"], &repaired["run"]), (&json!(20), &json!(2)));
    // Who asks for more time than the run has left does not join it; who asks for as much does.
    let longer = ["submit", file.to_str().unwrap(), "--chunk-rows", "2", "--window-hours", "24", "--json"];
    for published in [20, 0] {
        let submitted = json_of(&cluster.vecmill(tenant, &longer));
        assert_eq!((&submitted["published"], &submitted["run"]), (&json!(published), &json!(3)), "{submitted}");
    }
    let worker = scene.worker().await;
    cluster.reaches(tenant, &job, "completed", LIMIT).await;
    check_completed(store, &cluster.keys(tenant, &job), tenant, &cluster.model_dir(), &texts).await;
    eventually("the earlier run's messages are dropped", LIMIT, || async {
        (worker.settled("Superseded").await == 40).then_some(())
    })
    .await;
    assert_eq!(worker.settled("Dead").await, 0);
    history::check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_window_is_over_has_expired_for_good_and_its_job_goes_on() {
    let cluster = Cluster::shared().await;
    let (store, tenant, texts) = (cluster.store().await, cluster.tenant("a", &[]), corpus::texts(496, 30));
    let file = corpus::write_jsonl(cluster.dir.path(), "corpus.jsonl", &texts);
    // As a submission leaves it, but for a window of seconds: the shortest that can be asked for is an hour.
    let spec = JobSpec {
        model: MODEL.to_owned(),
        dimensions: 32,
        dtype: Dtype::F32,
        instruction: None,
        truncate: Truncate::None,
        precision: None,
    };
    let options = ReadOptions { dimensions: Some(32), model: Some(MODEL.to_owned()), ..ReadOptions::default() };
    let cut = Cut { chunk_rows: 5, chunk_bytes: 256 << 10 };
    let (source, format) = (Source::File(file.clone()), InputFormat::Jsonl);
    let cut_corpus = Corpus { source, format, options, cut, strict: false };
    let prepared = prepare(&store, &tenant.id, &spec, &cut_corpus, |_| {}).await.unwrap();
    let run = NewRun {
        at: RunId { life: 1, run: 1 },
        holder: Some(DIRECT.to_owned()),
        expires_at: jiff::Timestamp::now() + Duration::from_secs(4),
        name: "corpus.jsonl".to_owned(),
        lane: None,
        inherited: None,
    };
    for event in [Event::Begin(run), Event::Publish(1)] {
        prepared.ledger.append(|_| Ok(event.clone())).await.unwrap();
    }
    assert_eq!(cluster.status(&tenant, &prepared.job)["state"], "queued");
    let expired = cluster.reaches(&tenant, &prepared.job, "expired", LIMIT).await;
    // Two who look at once tell the same.
    let looks: Vec<_> = (0..4).map(|_| cluster.status(&tenant, &prepared.job)).collect();
    assert!(looks.iter().all(|look| *look == expired), "{looks:?}");

    let _worker = cluster.worker(WorkerOptions::default()).await;
    assert_eq!(cluster.submit(&tenant, &file, &["--chunk-rows", "5"]), prepared.job, "the same corpus is the same job");
    let done = cluster.reaches(&tenant, &prepared.job, "completed", LIMIT).await;
    assert_eq!(done["run"], 2);
    check_completed(&store, &cluster.keys(&tenant, &prepared.job), &tenant, &cluster.model_dir(), &texts).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_corpus_is_what_it_was_when_it_was_named() {
    let cluster = Cluster::shared().await;
    let (store, tenant, texts) = (cluster.store().await, cluster.tenant("a", &[]), corpus::texts(499, 20));
    // A pipe gives its bytes once.
    let file = corpus::write_jsonl(cluster.dir.path(), "corpus.jsonl", &texts);
    let fifo = cluster.dir.path().join("pipe.jsonl");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let writing = std::thread::spawn({
        let (file, fifo) = (file.clone(), fifo.clone());
        move || std::fs::copy(file, fifo).unwrap()
    });
    let piped = cluster.submit(&tenant, &fifo, &[]);
    writing.join().unwrap();
    assert_eq!(cluster.submit(&tenant, &file, &[]), piped);

    // A file that grows while it is read is no corpus. It is written to for as long as it is read.
    let growing = corpus::write_jsonl(cluster.dir.path(), "growing.jsonl", &corpus::texts(500, 60_000));
    let mut submit = cluster.vecmill_in_background(&tenant, &["submit", growing.to_str().unwrap()]);
    let appending = |path: &Path| {
        use std::io::Write;
        let mut file = std::fs::File::options().append(true).open(path).unwrap();
        writeln!(file, r#"{{"id":"late","text":"late"}}"#).unwrap();
    };
    while submit.try_wait().unwrap().is_none() {
        appending(&growing);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let output = submit.wait_with_output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(4), "{told}");
    assert!(told.contains("has changed while it was read"), "{told}");
    let listed = json_of(&cluster.vecmill(&tenant, &["list", "--json"]));
    assert_eq!(listed["job"], json!(piped), "the refused one is no job");
    let jobs = store.list(&format!("{}/jobs/", tenant.id), None).await.unwrap();
    let left: Vec<_> = jobs.iter().filter(|object| !object.key.contains(piped.as_str())).collect();
    assert!(left.iter().all(|object| object.key.contains("/ledger/")), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_may_fetch_into_one_folder_and_none_into_anothers() {
    let cluster = Cluster::shared().await;
    let tenant = cluster.tenant("a", &[]);
    let _worker = cluster.worker(WorkerOptions::default()).await;
    let job = |seed: u64| {
        let file = corpus::write_jsonl(cluster.dir.path(), &format!("{seed}.jsonl"), &corpus::texts(seed, 30));
        cluster.submit(&tenant, &file, &["--chunk-rows", "2"])
    };
    let jobs = [job(510), job(511)];
    for job in &jobs {
        cluster.reaches(&tenant, job, "completed", LIMIT).await;
    }
    let out = cluster.dir.path().join("out");
    let get =
        |job: &JobId| cluster.vecmill_in_background(&tenant, &["get", job.as_str(), "--out", out.to_str().unwrap()]);
    for _ in 0..5 {
        let at_once: Vec<_> = (0..4).map(|_| get(&jobs[0])).collect();
        for one in at_once {
            let output = one.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        let names: Vec<String> = std::fs::read_dir(&out)
            .unwrap()
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.contains("partial"))
            .collect();
        assert!(names.is_empty(), "{names:?}");
        std::fs::remove_file(out.join("part-000003.parquet")).unwrap();
    }
    let output = get(&jobs[1]).wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(4));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains(jobs[0].as_str()) && told.contains("another folder"), "{told}");
}
