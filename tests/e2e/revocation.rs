//! What was cut off is not computed: queued or under way, with Redis up or down, and only for as long as the signer is
//! heard of. What was not goes on.

use std::time::{Duration, Instant};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use vecmill_producer::{contract::JobKeys, store::Store};
use vecmill_signer::claims::{JobId, RevokedName};
use vecmill_tests::{
    Cluster, Tenant, WorkerOptions, corpus, eventually,
    results::{check_completed, count_tokens, done_chunks, in_mid_job},
};

const CHUNK_ROWS: &[&str] = &["--chunk-rows", "5"];
const LIMIT: Duration = Duration::from_secs(120);
/// Verifiers ask every 2 s, a signer looks at its database twice a second, and it is looked at again before each chunk is
/// written. The rest is room for a busy machine.
const SECONDS: Duration = Duration::from_secs(10);

/// The same tenant with a new key.
fn with_new_key(cluster: &Cluster, tenant: &Tenant) -> Tenant {
    Tenant { api_key: cluster.api_key(&tenant.id, "writer"), ..tenant.clone() }
}

/// Objects that hold vectors of the job.
async fn parts(store: &Store, keys: &JobKeys) -> usize {
    let objects = store.list(keys.prefix(), None).await.unwrap();
    objects.iter().filter(|object| object.key.ends_with(".parquet")).count()
}

struct Queued {
    tenant: Tenant,
    job: JobId,
    texts: Vec<(String, String)>,
}

async fn queue(cluster: &Cluster, name: &str, seed: u64) -> Queued {
    let (tenant, texts) = (cluster.tenant(name, &[]), corpus::texts(seed, 30));
    let file = corpus::write_jsonl(cluster.dir.path(), &format!("{name}.jsonl"), &texts);
    let job = cluster.submit(&tenant, &file, CHUNK_ROWS);
    Queued { tenant, job, texts }
}

/// Waits until the signer's statement has all four.
async fn says_is_revoked(cluster: &Cluster, suspended: &Queued, voided: &Queued, by_key: &Queued, by_job: &Queued) {
    let url = format!("{}/v1/revocations/2", cluster.env["VECMILL_SIGNER_URL"]);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    eventually("the signer says that it is revoked", LIMIT, || async {
        let statement = client.get(&url).send().await.ok()?.text().await.ok()?;
        let claims = URL_SAFE_NO_PAD.decode(statement.split('.').nth(1)?).ok()?;
        let claims = String::from_utf8(claims).ok()?;
        let cut_off = [
            RevokedName::of_tenant(&suspended.tenant.id),
            RevokedName::of_tenant(&voided.tenant.id),
            RevokedName::of_key(by_key.tenant.key_id()),
            RevokedName::of_job(&by_job.tenant.id, &by_job.job),
        ];
        cut_off.into_iter().all(|name| claims.contains(&String::from(name))).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_is_cut_off_while_it_waits_is_never_computed_with_redis_up_or_down() {
    for redis_is_down in [false, true] {
        let cluster = Cluster::private().await;
        let store = cluster.store().await;
        let [suspended, voided, by_key, by_job, control] = [
            queue(&cluster, "suspended", 41).await,
            queue(&cluster, "voided", 42).await,
            queue(&cluster, "by-key", 43).await,
            queue(&cluster, "by-job", 44).await,
            queue(&cluster, "control", 45).await,
        ];
        cluster.signer(&["tenant", "suspend", suspended.tenant.id.as_str()]);
        cluster.signer(&["tenant", "void-tokens", voided.tenant.id.as_str()]);
        cluster.signer(&["key", "revoke", by_key.tenant.key_id()]);
        cluster.signer(&["job", "revoke", by_job.job.as_str(), "--tenant", by_job.tenant.id.as_str()]);
        if redis_is_down {
            cluster.servers.control("kill", &["redis"]);
        }
        // The commands wrote to the database; the running signer looks at it twice a second.
        says_is_revoked(&cluster, &suspended, &voided, &by_key, &by_job).await;
        let worker = cluster.worker_unready(WorkerOptions::default());

        // Their tenants can read what became of them, with a key that is good.
        let by_key_reader = with_new_key(&cluster, &by_key.tenant);
        for (reader, queued, code) in [
            (&voided.tenant, &voided, "tenant_cut_off"),
            (&by_key_reader, &by_key, "key_revoked"),
            (&by_job.tenant, &by_job, "job_revoked"),
        ] {
            let status = cluster.reaches(reader, &queued.job, "failed", LIMIT).await;
            assert_eq!(status["chunks_dead"], 6, "{status}");
            assert_eq!(status["dead"][0]["code"], code, "{status}");
            assert!(
                status["dead"][0]["reason"]
                    .as_str()
                    .is_some_and(|reason| reason.contains("revoked") || reason.contains("cut off"))
            );
        }
        eventually("the suspended tenant's chunks are refused", LIMIT, || async {
            (worker.settled("Dead").await == 24).then_some(())
        })
        .await;
        if redis_is_down {
            assert!(
                done_chunks(&store, &cluster.keys(&control.tenant, &control.job)).await.is_empty(),
                "no quota, no work"
            );
            cluster.servers.control("start", &["redis"]);
        }
        cluster.reaches(&control.tenant, &control.job, "completed", LIMIT).await;
        let keys = cluster.keys(&control.tenant, &control.job);
        check_completed(&store, &keys, &control.tenant, &cluster.model_dir(), &control.texts).await;
        for queued in [&suspended, &voided, &by_key, &by_job] {
            let keys = cluster.keys(&queued.tenant, &queued.job);
            assert_eq!((parts(&store, &keys).await, done_chunks(&store, &keys).await.len()), (0, 0));
        }
        // Nothing of theirs has been before the model: its tokens are the control's.
        let tokens: u64 = count_tokens(&cluster.model_dir(), &control.texts).into_iter().map(u64::from).sum();
        assert_eq!(worker.counter("vecmill_worker_tokens_total").await, tokens);

        // Let back in, the same corpus is submitted again and completes.
        cluster.signer(&["tenant", "resume", suspended.tenant.id.as_str()]);
        for (reader, queued, name) in [
            (&suspended.tenant, &suspended, "suspended"),
            (&by_key_reader, &by_key, "by-key"),
            (&by_job.tenant, &by_job, "by-job"),
        ] {
            let again = cluster.submit(reader, &cluster.dir.path().join(format!("{name}.jsonl")), CHUNK_ROWS);
            assert_eq!(again, queued.job);
            cluster.reaches(reader, &again, "completed", LIMIT).await;
            let keys = cluster.keys(reader, &again);
            check_completed(&store, &keys, reader, &cluster.model_dir(), &queued.texts).await;
        }
    }
}

/// A job in its middle.
struct UnderWay {
    cluster: Cluster,
    store: Store,
    tenant: Tenant,
    job: JobId,
    keys: JobKeys,
    texts: Vec<(String, String)>,
    worker: vecmill_tests::cluster::Process,
}

impl UnderWay {
    async fn reach(seed: u64, texts: usize, env: Vec<(&'static str, String)>) -> Self {
        let cluster = Cluster::private().await;
        let (store, tenant, texts) = (cluster.store().await, cluster.tenant("a", &[]), corpus::texts(seed, texts));
        let file = corpus::write_jsonl(cluster.dir.path(), "corpus.jsonl", &texts);
        let job = cluster.submit(&tenant, &file, CHUNK_ROWS);
        let keys = cluster.keys(&tenant, &job);
        let worker = cluster.worker_unready(WorkerOptions { env });
        in_mid_job(&store, &keys).await;
        Self { cluster, store, tenant, job, keys, texts, worker }
    }

    async fn done(&self) -> usize {
        done_chunks(&self.store, &self.keys).await.len()
    }

    /// Waits until no chunk is finished any more, and says how long after `since` the last was.
    async fn stands_still(&self, since: Instant) -> Duration {
        let (mut done, mut last) = (self.done().await, Instant::now());
        while last.elapsed() < Duration::from_secs(4) {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let now = self.done().await;
            if now != done {
                (done, last) = (now, Instant::now());
            }
            assert!(since.elapsed() < LIMIT, "it goes on and on");
        }
        assert!(done < self.texts.len() / 5, "the job was done before it could be stopped");
        last.duration_since(since)
    }

    async fn completes(&self) {
        self.cluster.reaches(&self.tenant, &self.job, "completed", LIMIT).await;
        check_completed(&self.store, &self.keys, &self.tenant, &self.cluster.model_dir(), &self.texts).await;
    }

    fn submit_again(&self, more: &[&str]) {
        let again = self.cluster.submit(
            &self.tenant,
            &self.cluster.dir.path().join("corpus.jsonl"),
            &[CHUNK_ROWS, more].concat(),
        );
        assert_eq!(again, self.job);
    }
}

#[tokio::test]
async fn a_tenant_cut_off_in_mid_job_is_served_no_longer_and_goes_on_where_it_was() {
    let it = UnderWay::reach(51, 1_500, Vec::new()).await;
    let since = Instant::now();
    it.cluster.signer(&["tenant", "suspend", it.tenant.id.as_str()]);
    let took = it.stands_still(since).await;
    println!("the last chunk was finished {took:?} after the suspension");
    assert!(took < SECONDS, "{took:?}");
    let done = it.done().await;
    it.cluster.signer(&["tenant", "resume", it.tenant.id.as_str()]);
    let status = it.cluster.reaches(&it.tenant, &it.job, "failed", LIMIT).await;
    assert_eq!(status["dead"][0]["code"], "tenant_cut_off");
    it.submit_again(&[]);
    it.completes().await;
    assert!(it.worker.settled("Embedded").await <= 300 + 8, "{done} chunks were not computed again");
}

#[tokio::test]
async fn a_rotation_in_mid_job_breaks_nothing() {
    let it = UnderWay::reach(52, 1_500, Vec::new()).await;
    for _ in 0..3 {
        it.cluster.signer(&["signing-key", "rotate"]);
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    it.completes().await;
    assert!(it.cluster.dead_letters().await.is_empty());
    assert_eq!(it.worker.settled("Refused").await, 0);
}

#[tokio::test]
async fn what_a_withdrawn_key_has_signed_is_refused_within_seconds() {
    let it = UnderWay::reach(53, 1_500, Vec::new()).await;
    let keys = it.cluster.signer(&["signing-key", "list"]);
    let since = Instant::now();
    it.cluster.signer(&["signing-key", "withdraw", keys[0]["kid"].as_str().unwrap()]);
    let took = it.stands_still(since).await;
    println!("the last chunk was finished {took:?} after the withdrawal");
    assert!(took < SECONDS, "{took:?}");
    eventually("the rest is refused", LIMIT, || async { (it.worker.settled("Refused").await > 0).then_some(()) }).await;
    assert_eq!(it.worker.settled("Dead").await, 0, "the word of such a key ends no job");
    // With the successor's grant the job goes on where it was. For a moment nothing can be signed; submit says so.
    eventually("the signer signs again", LIMIT, || async {
        let output = it.cluster.vecmill(&it.tenant, &["status", it.job.as_str()]);
        output.status.success().then_some(())
    })
    .await;
    it.submit_again(&["--republish"]);
    it.completes().await;
}

#[tokio::test]
async fn a_worker_that_hears_nothing_of_revocations_pauses_and_goes_on() {
    // A chunk of a lane at a time: the job must be longer than the bound.
    let slow = vec![("VECMILL_REVOCATIONS_MAX_AGE_S", "10".to_owned()), ("VECMILL_PREFETCH", "1".to_owned())];
    let mut it = UnderWay::reach(54, 7_000, slow).await;
    let since = Instant::now();
    it.cluster.stop_signer();
    let took = it.stands_still(since).await;
    println!("the last chunk was finished {took:?} after the signer went away");
    assert!(took < Duration::from_secs(10) + SECONDS, "{took:?}");
    let (status, lacking) = it.worker.get("/readyz").await.unwrap();
    assert!(status == 503 && lacking.contains("revocations"), "{status} {lacking}");
    it.cluster.start_signer_again().await;
    it.completes().await;
    assert!(it.cluster.dead_letters().await.is_empty(), "a pause costs nobody anything");
}
