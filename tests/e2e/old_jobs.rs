//! Jobs from before there were runs, as programs of that time left them (`tests/old-jobs`): read as they are, and taken up again.

use std::{
    collections::BTreeSet,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};
use vecmill_producer::{
    contract::{Cancelled, DeadChunk, JobKeys, RunId, Submission, chunk_of_key},
    part,
    store::Store,
};
use vecmill_signer::claims::JobId;
use vecmill_tests::{
    Cluster, Tenant, WorkerOptions,
    cluster::bare,
    history,
    program::{json_of, told},
    results::document,
};

const LIMIT: Duration = Duration::from_secs(60);
/// Rows of each job.
const ROWS: u64 = 100;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("old-jobs").join(name)
}

/// The files below a folder.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// The one job of a bucket that local mode wrote.
fn job_in(bucket: &Path) -> JobId {
    let mut jobs = std::fs::read_dir(bucket.join("local/jobs")).unwrap();
    jobs.next().unwrap().unwrap().file_name().to_str().unwrap().parse().unwrap()
}

/// Brings an old job to a cluster as a tenant's, with an hour to go.
async fn bring(cluster: &Cluster, store: &Store, name: &str, tenant: &str) -> (Tenant, JobId, JobKeys) {
    let tenant = cluster.tenant(tenant, &[]);
    let bucket = fixture(name).join("vecmill");
    let (job, local) = (job_in(&bucket), bucket.join("local"));
    for path in files(&local) {
        let key = format!("{}/{}", tenant.id, path.strip_prefix(&local).unwrap().display());
        store.put(&key, std::fs::read(&path).unwrap(), "application/octet-stream").await.unwrap();
    }
    let keys = JobKeys::new(&tenant.id, &job, RunId::default());
    let mut submission: Submission = document(store, &keys.submission()).await;
    submission.expires_at = jiff::Timestamp::now() + Duration::from_secs(3600);
    store.put_json(&keys.submission(), &submission).await.unwrap();
    (tenant, job, keys)
}

fn get(cluster: &Cluster, tenant: &Tenant, job: &JobId) -> Value {
    let out = cluster.dir.path().join(format!("out-{}", tenant.id));
    let fetched = json_of(&cluster.vecmill(tenant, &["get", job.as_str(), "--out", out.to_str().unwrap(), "--json"]));
    let rows: usize = files(&out)
        .iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "parquet"))
        .map(|path| part::decode(std::fs::read(path).unwrap().into()).unwrap().len())
        .sum();
    assert_eq!(rows as u64, ROWS, "{fetched}");
    fetched
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_complete_is_read_as_it_is() {
    let cluster = Cluster::shared().await;
    let store = cluster.store().await;
    let (tenant, job, keys) = bring(&cluster, &store, "whole", "a").await;
    let before: BTreeSet<String> =
        store.list(keys.root(), None).await.unwrap().into_iter().map(|object| object.key).collect();
    let status = cluster.status(&tenant, &job);
    assert_eq!((&status["state"], &status["rows_done"]), (&json!("completed"), &json!(ROWS)), "{status}");
    assert_eq!(get(&cluster, &tenant, &job)["complete"], true);
    let repaired = json_of(&cluster.vecmill(&tenant, &["repair", job.as_str(), "--json"]));
    assert_eq!((&repaired["was"], &repaired["published"]), (&json!("completed"), &json!(0)));
    let after: BTreeSet<String> =
        store.list(keys.root(), None).await.unwrap().into_iter().map(|object| object.key).collect();
    let new: Vec<&String> = after.difference(&before).collect();
    assert!(new.iter().all(|key| key.contains("/ledger/") || key.contains("/summaries/")), "{new:?}");
    assert!(before.is_subset(&after), "nothing is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_interrupted_cancelled_or_has_failed_is_taken_up_again() {
    let cluster = Cluster::shared().await;
    let store = cluster.store().await;
    let _worker = cluster.worker(WorkerOptions::default()).await;
    for was in ["running", "cancelled", "failed"] {
        let (tenant, job, keys) = bring(&cluster, &store, "half", was).await;
        let listed = store.list(&keys.ended_prefix(), None).await.unwrap();
        let finished: BTreeSet<u32> = listed.iter().filter_map(|object| chunk_of_key(&object.key)).collect();
        let done = finished.len() as u64;
        assert!(done > 0);
        let chunks = cluster.status(&tenant, &job)["chunks"].as_u64().unwrap();
        match was {
            "cancelled" => {
                let mark = Cancelled { at: jiff::Timestamp::now() - Duration::from_secs(60) };
                store.put_json(&keys.cancelled(), &mark).await.unwrap();
            }
            "failed" => {
                for chunk in (0..chunks as u32).filter(|chunk| !finished.contains(chunk)) {
                    let (code, reason) = ("poison".to_owned(), "a reason".to_owned());
                    let dead = DeadChunk { chunk, code, reason, at: jiff::Timestamp::now() };
                    store.put_json(&keys.dead(chunk), &dead).await.unwrap();
                }
            }
            _ => {}
        }
        let status = cluster.status(&tenant, &job);
        assert_eq!((&status["state"], &status["chunks_done"]), (&json!(was), &json!(done)), "{status}");
        let repaired = json_of(&cluster.vecmill(&tenant, &["repair", job.as_str(), "--json"]));
        assert_eq!(
            (&repaired["was"], &repaired["published"], &repaired["life"], &repaired["run"]),
            (&json!(was), &json!(chunks - done), &json!(0), &json!(1)),
            "what is done is not done again"
        );
        let status = cluster.reaches(&tenant, &job, "completed", LIMIT).await;
        assert_eq!((&status["rows_done"], &status["run"]), (&json!(ROWS), &json!(1)), "{status}");
        assert_eq!(get(&cluster, &tenant, &job)["complete"], true);
        assert!(store.exists(&keys.success()).await.unwrap());
    }
    history::check();
}

#[test]
fn local_mode_goes_on_with_an_old_folder() {
    let dir = tempfile::TempDir::new().unwrap();
    let from = fixture("half");
    for path in files(&from) {
        let to = dir.path().join("vecmill-out").join(path.strip_prefix(&from).unwrap());
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(&path, &to).unwrap();
        std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o644)).unwrap();
    }
    std::fs::copy(fixture("corpus.jsonl"), dir.path().join("corpus.jsonl")).unwrap();
    let mut command = bare("vecmill-local");
    command.args(["corpus.jsonl", "--dimensions", "64", "--json"]).current_dir(dir.path());
    let output = command.env("VECMILL_CACHE_DIR", dir.path().join("cache")).output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
    assert!(told(&output).contains("going on where an earlier run was"), "{}", told(&output));
    let outcome: Value = serde_json::from_slice(&output.stdout).unwrap();
    let status = &outcome["status"];
    assert_eq!((&status["state"], &status["rows_done"]), (&json!("completed"), &json!(ROWS)), "{outcome}");
}
