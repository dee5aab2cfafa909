//! Jobs that ask for a precision, on workers that have it and on workers that have not; and what computed a part, wherever a
//! result is described. A bf16 worker starts on CPUs with AVX512-BF16 alone: elsewhere what needs one is left out.

use std::{cell::RefCell, collections::BTreeMap};

use bytes::Bytes;
use lapin::{
    options::{BasicGetOptions, QueueDeleteOptions},
    types::AMQPValue,
};
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::{Value, json};
use vecmill_producer::contract::{ATTEMPT_HEADER, FinalManifest, JobKeys, Precision};
use vecmill_signer::claims::JobId;
use vecmill_tests::{
    Cluster, WorkerOptions,
    cluster::Process,
    corpus, eventually,
    results::{check_completed, document, done_chunks},
};
use vecmill_worker::{engine::ComputePath, kill_point};

use super::{Caller, LIMIT, jsonl};

const OBJECT_BYTES_MAX: usize = 64 << 20;

fn computing_in(precision: &str) -> WorkerOptions {
    WorkerOptions { env: vec![("VECMILL_COMPUTE_DTYPE", precision.to_owned())] }
}

/// What a Parquet file says of itself.
fn said(parquet: Bytes) -> BTreeMap<String, String> {
    let reader = SerializedFileReader::new(parquet).unwrap();
    let entries = reader.metadata().file_metadata().key_value_metadata().cloned().unwrap_or_default();
    entries.into_iter().map(|entry| (entry.key, entry.value.unwrap_or_default())).collect()
}

/// How many workers the broker counts in a precision.
async fn counted(cluster: &Cluster, precision: Precision) -> u32 {
    let (_connection, publisher) = cluster.publisher().await;
    publisher.workers_in(&cluster.topology(), precision).await.unwrap()
}

/// The summary of a completed job, whose parts all say what it says of them. That records and audit do, `check_completed`
/// has seen.
async fn summary(cluster: &Cluster, keys: &JobKeys) -> FinalManifest {
    let store = cluster.store().await;
    let summary: FinalManifest = document(&store, &keys.final_manifest()).await;
    for part in &summary.parts {
        let bytes = store.get(&keys.object(&part.path), OBJECT_BYTES_MAX).await.unwrap().unwrap();
        let said = said(bytes);
        assert_eq!(said.get("vecmill.compute"), part.compute.as_ref(), "part {}: {said:?}", part.chunk);
        assert!(part.compute.as_ref().is_some_and(|path| path.ends_with(&said["vecmill.precision"])), "{said:?}");
    }
    summary
}

#[tokio::test]
async fn a_job_has_the_precision_it_asks_for_and_all_it_leaves_says_what_computed_it() {
    let cluster = Cluster::shared().await;
    let (store, tenant, texts) = (cluster.store().await, cluster.admin("a", &[]), corpus::texts(171, 40));
    let _worker = cluster.worker(computing_in("f32")).await;
    let gateway = cluster.gateway(&[]).await;
    let caller = Caller::new(&gateway, &tenant);
    let file = corpus::write_jsonl(cluster.dir.path(), "corpus.jsonl", &texts);
    let job = cluster.submit(&tenant, &file, &["--chunk-rows", "10", "--precision", "f32"]);
    let plain = cluster.submit(&tenant, &file, &["--chunk-rows", "10"]);
    assert_ne!(job, plain, "what is asked for is part of the job");
    for job in [&job, &plain] {
        cluster.reaches(&tenant, job, "completed", LIMIT).await;
        let keys = cluster.keys(&tenant, job);
        check_completed(&store, &keys, &tenant, &cluster.model_dir(), &texts).await;
        let summary = summary(&cluster, &keys).await;
        assert!(matches!(&summary.compute[..], [path] if path.ends_with("f32")), "{:?}", summary.compute);
        let parts = caller.get(&format!("/v1/jobs/{job}/parts")).await;
        for part in parts["data"].as_array().unwrap() {
            assert_eq!(part["compute"], summary.compute[0].as_str(), "{parts}");
        }
        assert_eq!(caller.get(&format!("/v1/jobs/{job}/manifest")).await["compute"], json!(summary.compute));
    }
    assert_eq!(cluster.status(&tenant, &job)["precision"], "f32");
    assert_eq!(cluster.status(&tenant, &plain)["precision"], Value::Null);

    // A precision that there is not is refused as a type of numbers is that there is not.
    let id = caller.upload("corpus.jsonl", jsonl(&texts)).await;
    let refused = async |output: Value| {
        let body =
            json!({"input_file_id": id, "endpoint": "/v1/embeddings", "completion_window": "24h", "output": output});
        caller.ask(reqwest::Method::POST, "/v1/batches", Some(body)).await
    };
    let (precision, dtype) = (refused(json!({"precision": "f16"})).await, refused(json!({"dtype": "bf16"})).await);
    assert_eq!((precision.0, &precision.1["error"]["code"]), (400, &json!("invalid_body")), "{}", precision.1);
    assert_eq!((dtype.0, &dtype.1["error"]["code"]), (precision.0, &precision.1["error"]["code"]));
    let output = cluster.vecmill(&tenant, &["submit", &file.display().to_string(), "--precision", "f16"]);
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Takes all chunks of a cluster out of its lanes and puts them back; gives how often each has been tried.
async fn attempts(cluster: &Cluster, chunks: usize) -> Vec<AMQPValue> {
    let (connection, publisher) = cluster.publisher().await;
    let (topology, channel) = (cluster.topology(), connection.create_channel().await.unwrap());
    let messages = RefCell::new(Vec::new());
    eventually("all chunks are back in their lane", LIMIT, || async {
        for key in topology.lane_keys() {
            let queue = topology.lane_queue(&key);
            while let Some(message) =
                channel.basic_get(queue.as_str().into(), BasicGetOptions { no_ack: true }).await.unwrap()
            {
                messages.borrow_mut().push((key.clone(), message.delivery));
            }
        }
        (messages.borrow().len() >= chunks).then_some(())
    })
    .await;
    let messages = messages.into_inner();
    assert_eq!(messages.len(), chunks, "each is there once");
    let mut attempts = Vec::new();
    for (key, message) in messages {
        let headers = message.properties.headers().clone().unwrap_or_default();
        attempts.push(headers.inner().get(ATTEMPT_HEADER).expect("the attempt").clone());
        publisher.publish(&topology.jobs_exchange(), &key, &message.data, headers).await.unwrap();
    }
    attempts
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_precision_nobody_has_waits_at_no_cost_and_says_so() {
    let cluster = Cluster::shared().await;
    let (store, tenant, texts) = (cluster.store().await, cluster.admin("a", &[]), corpus::texts(172, 40));
    let mut worker = cluster.worker(computing_in("f32")).await;
    let gateway = cluster.gateway(&[]).await;
    let caller = Caller::new(&gateway, &tenant);
    let file = corpus::write_jsonl(cluster.dir.path(), "corpus.jsonl", &texts);
    let path = file.display().to_string();
    let submit = ["submit", &path, "--chunk-rows", "10", "--json"];
    let output = cluster.vecmill_with_env(&tenant, &submit, &[("VECMILL_PRECISION", "bf16")]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("no worker computes in bf16 now"),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let submitted: Value = serde_json::from_slice(&output.stdout).unwrap();
    let job: JobId = submitted["job"].as_str().unwrap().parse().unwrap();

    // The same through the gateway's doors.
    let id = caller.upload("corpus.jsonl", jsonl(&texts)).await;
    let more = json!({"output": {"dimensions": 32, "precision": "bf16"}, "chunk_rows": 10});
    let batch = caller.batch(&id, more).await;
    assert_eq!(caller.reaches(&batch, "in_progress").await["job"], job.as_str(), "one path, two doors");
    let outside = [("VECMILL_GATEWAY_URL", gateway.url.as_str()), ("VECMILL_PRECISION", "bf16")];
    let output = cluster.vecmill_with_env(&tenant, &submit, &outside);
    let submitted: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(submitted["job"], job.as_str(), "{}", String::from_utf8_lossy(&output.stderr));

    let status = eventually("the gateway says that nobody has it", LIMIT, || async {
        let status = caller.get(&format!("/v1/jobs/{job}")).await;
        (status["waiting"]["reason"] == "no_worker_in_precision").then_some(status)
    })
    .await;
    let note = status["note"].as_str().unwrap();
    assert!(note.contains("in bf16") && note.contains("--dtype bf16"), "{status}");
    assert_eq!(status["precision"], "bf16");

    // It goes round, and costs nothing; who asks for nothing is computed meanwhile.
    eventually("each chunk was left twice", LIMIT, || async { (worker.settled("Elsewhere").await >= 8).then_some(()) })
        .await;
    let plain = cluster.submit(&tenant, &file, &["--chunk-rows", "10", "--dimensions", "48"]);
    cluster.reaches(&tenant, &plain, "completed", LIMIT).await;
    let keys = cluster.keys(&tenant, &job);
    assert_eq!(done_chunks(&store, &keys).await.len(), 0, "nothing of it is computed");
    for outcome in ["Later", "Retry", "Refused", "Dead"] {
        assert_eq!(worker.settled(outcome).await, 0, "{outcome}");
    }
    let usage = caller.get("/v1/usage").await;
    let spent = usage["data"].as_array().unwrap().iter().flat_map(|day| day["by"].as_array().unwrap());
    let jobs: Vec<&Value> = spent.map(|by| &by["job"]).collect();
    assert_eq!(jobs, [plain.as_str()], "nothing of it is charged");
    assert!(worker.terminate().await);
    assert_eq!(attempts(&cluster, 4).await, vec![AMQPValue::LongUInt(0); 4], "no attempt is spent");
    assert!(cluster.dead_letters().await.is_empty());

    // A CPU without it, or one that the run holds to another path.
    if ComputePath::Avx512Bf16.lacking().is_some() || std::env::var_os("VECMILL_CPU_PATH").is_some() {
        return;
    }
    let _worker = cluster.worker(computing_in("bf16")).await;
    cluster.reaches(&tenant, &job, "completed", LIMIT).await;
    check_completed(&store, &keys, &tenant, &cluster.model_dir(), &texts).await;
    let summary = summary(&cluster, &keys).await;
    assert!(matches!(&summary.compute[..], [path] if path.ends_with("bf16")), "{:?}", summary.compute);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_two_kinds_of_workers_names_both() {
    let cluster = Cluster::shared().await;
    let (store, tenant, texts) = (cluster.store().await, cluster.admin("a", &[]), corpus::texts(173, 80));
    let gateway = cluster.gateway(&[]).await;
    let caller = Caller::new(&gateway, &tenant);
    let id = caller.upload("corpus.jsonl", jsonl(&texts)).await;
    let batch = caller.batch(&id, json!({"output": {"format": "parquet"}, "chunk_rows": 10})).await;
    let job: JobId = caller.reaches(&batch, "in_progress").await["job"].as_str().unwrap().parse().unwrap();

    // One dies in the middle, one of another kind goes on.
    let by = |path: ComputePath| WorkerOptions { env: vec![("VECMILL_CPU_PATH", path.to_string())] };
    let mut options = by(ComputePath::PortableF32);
    options.env.push((kill_point::VARIABLE, "before-part:5".to_owned()));
    let mut doomed: Process = cluster.worker_unready(options);
    eventually("the worker has died", LIMIT, || std::future::ready(doomed.end())).await;
    let _worker = cluster.worker(by(ComputePath::CandleF32)).await;
    let ended = caller.reaches(&batch, "completed").await;

    let keys = cluster.keys(&tenant, &job);
    check_completed(&store, &keys, &tenant, &cluster.model_dir(), &texts).await;
    let summary = summary(&cluster, &keys).await;
    let mut paths = summary.compute.clone();
    paths.sort_unstable();
    assert_eq!(paths, ["candle-f32", "portable-f32"]);
    // The one file of all parts says of itself what holds for all of them.
    let output = caller.bytes(&format!("/v1/files/{}/content", ended["output_file_id"].as_str().unwrap())).await;
    let said = said(output.into());
    assert_eq!(said["vecmill.compute"], summary.compute.join(", "));
    assert_eq!(said["vecmill.precision"], "f32");
    assert!(!said.contains_key("vecmill.chunk"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_counted_in_its_precision_while_it_takes_chunks() {
    let cluster = Cluster::shared().await;
    assert_eq!(counted(&cluster, Precision::F32).await, 0);
    let mut worker = cluster.worker(computing_in("f32")).await;
    let _another = cluster.worker(computing_in("f32")).await;
    let reaches = async |workers: u32| {
        eventually(&format!("{workers} workers are counted"), LIMIT, || async {
            (counted(&cluster, Precision::F32).await == workers).then_some(())
        })
        .await;
    };
    reaches(2).await;
    assert_eq!(counted(&cluster, Precision::Bf16).await, 0);
    // A queue that is lost is an end of the session like a lane that is: both come back and are counted again.
    let (connection, _publisher) = cluster.publisher().await;
    let channel = connection.create_channel().await.unwrap();
    let queue = cluster.topology().computes_queue(Precision::F32);
    channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    reaches(2).await;
    assert!(worker.terminate().await);
    reaches(1).await;
}
