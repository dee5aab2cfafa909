//! Two tenants at once: every text has its own vector, whoever's text lay beside it in the batch.

use std::{collections::HashSet, path::Path, time::Duration};

use vecmill_producer::{contract::JobKeys, store::Store};
use vecmill_signer::claims::JobId;
use vecmill_tests::{
    Cluster, Tenant, WorkerOptions, corpus,
    results::{StoredRow, check_completed},
};
use vecmill_worker::engine::{Compute, Model, Tokenizer, finish};

const TEXTS: usize = 2_500;
const CHUNK_ROWS: usize = 100;
const DIMENSIONS: usize = 32;
const LIMIT: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_vector_of_two_tenants_at_once_is_that_of_its_text_alone() {
    let cluster = Cluster::shared().await;
    let store = cluster.store().await;
    let tenants = [cluster.tenant("a", &[]), cluster.tenant("ab", &[])];
    let texts = [corpus::texts(1, TEXTS), corpus::texts(2, TEXTS)];
    let files = [1, 2].map(|n| corpus::write_jsonl(cluster.dir.path(), &format!("{n}.jsonl"), &texts[n - 1]));
    let rows = CHUNK_ROWS.to_string();
    let submit = |n: usize| cluster.submit(&tenants[n], &files[n], &["--chunk-rows", &rows]);
    // Submitted before there are workers, so that both backlogs are there when they come.
    let jobs = [submit(0), submit(1)];
    let keys = [0, 1].map(|n| cluster.keys(&tenants[n], &jobs[n]));

    let workers = (cluster.worker(WorkerOptions::default()).await, cluster.worker(WorkerOptions::default()).await);
    let looking = tokio::spawn(never_success_before_parts(store.clone(), keys.clone()));
    for (tenant, job) in tenants.iter().zip(&jobs) {
        cluster.reaches(tenant, job, "completed", LIMIT).await;
    }
    looking.await.expect("_SUCCESS came last");

    for n in [0, 1] {
        let rows = check_completed(&store, &keys[n], &tenants[n], &cluster.model_dir(), &texts[n]).await;
        let worst = worst_cosine(&cluster.model_dir(), &rows, &texts[n]);
        println!("{}: the worst cosine to a text's own vector is {worst:.9}", tenants[n].id);
        assert!(worst > 0.9999, "a vector is not its text's: cosine {worst}");
        let alike = rows.windows(2).filter(|pair| cosine(&pair[0].vector, &pair[1].vector) > 0.9999).count();
        assert!(
            alike < TEXTS / 10,
            "{alike} vectors are like their neighbour's: the comparison can't tell texts apart"
        );
        success_is_the_newest(&store, &keys[n]).await;
    }
    // Both workers, and batches of both tenants: what the comparison above is about.
    for worker in [&workers.0, &workers.1] {
        assert!(worker.settled("Embedded").await > 0, "a worker did nothing: this was no test of two");
    }
    sees_only_its_own(&cluster, &tenants, &jobs);
    assert!(cluster.dead_letters().await.is_empty());
}

/// Looks again and again until both jobs end: where `_SUCCESS` is, every part is, and the summary that names them.
async fn never_success_before_parts(store: Store, keys: [JobKeys; 2]) {
    let mut ended = HashSet::new();
    while ended.len() < keys.len() {
        for keys in &keys {
            if store.exists(&keys.success()).await.expect("an answer") {
                let parts = store.list(&keys.parts_prefix(), None).await.expect("a listing");
                assert_eq!(parts.len(), TEXTS / CHUNK_ROWS, "_SUCCESS was there before all parts");
                assert!(store.exists(&keys.final_manifest()).await.expect("an answer"), "_SUCCESS before the summary");
                ended.insert(keys.prefix());
            }
        }
    }
}

async fn success_is_the_newest(store: &Store, keys: &JobKeys) {
    let objects = store.list(keys.prefix(), None).await.expect("a listing");
    let success = objects.iter().find(|object| object.key == keys.success()).expect("_SUCCESS").modified_s;
    for object in objects {
        assert!(object.modified_s <= success, "{} was written after _SUCCESS", object.key);
    }
}

/// The smallest cosine between a stored vector and the engine's own of the same text computed alone.
fn worst_cosine(model: &Path, rows: &[StoredRow], texts: &[(String, String)]) -> f64 {
    let tokenizer = Tokenizer::load(model).expect("the model's tokenizer");
    let model = Model::load(model, &Compute::default()).expect("the model");
    let cosines = rows.iter().zip(texts).map(|(row, (_, text))| {
        let tokens = tokenizer.encode(text, None).expect("tokens");
        let hidden = model.forward(&[&tokens]).expect("a forward pass");
        let alone = finish(&hidden[0], DIMENSIONS).expect("a vector");
        assert_eq!(row.vector.len(), DIMENSIONS, "dimensions of {}", row.id);
        cosine(&row.vector, &alone)
    });
    cosines.fold(f64::INFINITY, f64::min)
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The tenants are called `…-a` and `…-ab`: a prefix of the other's name opens nothing either.
fn sees_only_its_own(cluster: &Cluster, tenants: &[Tenant; 2], jobs: &[JobId; 2]) {
    for (own, other) in [(0, 1), (1, 0)] {
        let listed = cluster.vecmill(&tenants[own], &["list", "--json"]);
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert!(listed.contains(jobs[own].as_str()), "a tenant does not see its own job: {listed}");
        assert!(!listed.contains(jobs[other].as_str()), "a tenant sees another's job: {listed}");
        let status = cluster.vecmill(&tenants[own], &["status", jobs[other].as_str(), "--json"]);
        assert_eq!(status.status.code(), Some(4), "the status of another tenant's job");
        assert!(status.stdout.is_empty());
        let absent = JobId::from_digest(&[0; 32]);
        let nothing = cluster.vecmill(&tenants[own], &["status", absent.as_str(), "--json"]);
        let without_id = |output: &[u8], job: &JobId| String::from_utf8_lossy(output).replace(job.as_str(), "JOB");
        assert_eq!(
            without_id(&status.stderr, &jobs[other]),
            without_id(&nothing.stderr, &absent),
            "another's job must look like none"
        );
    }
}
