//! Submitted, repaired, cancelled, expired and fetched, by command.

use std::{path::Path, process::Command, time::Instant};

use serde_json::json;
use vecmill_producer::{
    life::Event,
    prepare::{Corpus, prepare},
    read::{InputFormat, ReadOptions},
    source::Source,
    split::Cut,
};
use vecmill_tests::{
    corpus, eventually, history,
    job::{FIRST_RUN, first_run, spec},
    program::json_of,
    results::check_completed,
};

use super::*;

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
async fn a_grant_of_an_earlier_run_has_no_effect_on_the_next() {
    let scene = Scene::new().await;
    let Scene { cluster, store, tenant, .. } = &scene;
    let texts = corpus::texts(495, 40);
    let file = corpus::write_jsonl(cluster.dir.path(), "corpus.jsonl", &texts);
    let other = Tenant { api_key: cluster.api_key(&tenant.id, "writer"), ..tenant.clone() };
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
    let spec = spec();
    let options =
        ReadOptions { dimensions: Some(spec.dimensions), model: Some(spec.model.clone()), ..ReadOptions::default() };
    let cut = Cut { chunk_rows: 5, chunk_bytes: 256 << 10 };
    let (source, format) = (Source::File(file.clone()), InputFormat::Jsonl);
    let cut_corpus = Corpus { source, format, options, cut, strict: false };
    let prepared = prepare(&store, &tenant.id, &spec, &cut_corpus, |_| {}).await.unwrap();
    for event in [Event::Begin(first_run(Duration::from_secs(4))), Event::Publish(FIRST_RUN.run)] {
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
