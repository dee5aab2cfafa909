//! What each role may not do on the servers: `infra/roles` says what it may, and the other tests show that this is enough.

use std::time::Duration;

use lapin::{
    Connection, ExchangeKind,
    options::{BasicConsumeOptions, BasicGetOptions, ExchangeDeclareOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::FieldTable,
};
use vecmill_producer::{
    publish::{PublishError, Publisher, connect},
    store::Store,
};
use vecmill_signer::claims::Digest;
use vecmill_tests::{Cluster, Role, Servers, WorkerOptions, corpus, eventually, redis::ask_unless_refused};
use vecmill_worker::audit::AuditRecord;

const LIMIT: Duration = Duration::from_secs(60);
/// The folder of a run of a job, of which a tenant may have any number.
const LIFE: &str = "jobs/00000000000000000000000000000001/000001";

async fn refused_to_write(store: &Store, key: &str) {
    let error = store.put(key, Vec::new(), "text/plain").await.expect_err(key);
    assert!(error.to_string().contains("AccessDenied"), "{key}: {error}");
    let error = store.put_new(key, Vec::new(), "text/plain").await.expect_err(key);
    assert!(error.to_string().contains("AccessDenied"), "{key}: {error}");
}

async fn refused_to_read(store: &Store, key: &str) {
    let error = store.get(key, 1 << 20).await.expect_err(key);
    assert!(error.to_string().contains("AccessDenied"), "{key}: {error}");
}

async fn refused_to_delete(store: &Store, key: &str) {
    let error = store.delete(key).await.expect_err(key);
    assert!(error.to_string().contains("AccessDenied"), "{key}: {error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_s3_each_role_writes_what_is_its_own_to_write() {
    let cluster = Cluster::without_signer(Servers::shared());
    let operator = cluster.store().await;
    let [producer, gateway, worker, of_one] =
        [Role::Producer, Role::Gateway, Role::Worker, Role::ProducerOfOne].map(|role| cluster.store_as(role));
    let (producer, gateway, worker, of_one) = (producer.await, gateway.await, worker.await, of_one.await);
    let [input, part, ended, audit, upload, credential, webhook] = [
        format!("acme/{LIFE}/input/chunk-000000.x.jsonl.zst"),
        format!("acme/{LIFE}/vectors/part-000000.x.parquet"),
        format!("acme/{LIFE}/runs/000001/ended/chunk-000000.json"),
        "audit/acme/jobs/00000000000000000000000000000001/000001/chunk-000000.dead.jsonl".to_owned(),
        "acme/file-content/file-1".to_owned(),
        "_preparing/acme/batch-1.json".to_owned(),
        "_webhooks/batch-1.json".to_owned(),
    ];
    for key in [&input, &part, &ended, &audit, &upload, &credential, &webhook] {
        operator.put(key, Vec::new(), "text/plain").await.expect("an operator may");
    }

    // What workers say was computed is nobody else's to say, and the audit is nobody's to change.
    for store in [&producer, &gateway] {
        for key in [&part, &ended, &audit] {
            refused_to_write(store, key).await;
        }
        refused_to_delete(store, &audit).await;
        refused_to_read(store, &audit).await;
    }
    refused_to_delete(&worker, &audit).await;
    refused_to_read(&worker, &audit).await;
    // A worker computes what it was given, knows no credential, and removes nothing.
    for key in [&input, &upload, &credential, &webhook] {
        refused_to_write(&worker, key).await;
    }
    for key in [&upload, &credential, &webhook] {
        refused_to_read(&worker, key).await;
    }
    for key in [&input, &part, &ended] {
        refused_to_delete(&worker, key).await;
    }
    // Who submits by command sees jobs.
    for key in [&upload, &credential, &webhook] {
        refused_to_read(&producer, key).await;
        refused_to_write(&producer, key).await;
    }
    refused_to_delete(&producer, &part).await;
    // In earnest, of one tenant.
    let others = [&input, &part];
    for key in others {
        refused_to_read(&of_one, key).await;
        refused_to_write(&of_one, key).await;
    }
    for prefix in ["", "acme/jobs/", "_preparing/", "only-this"] {
        let error = of_one.list(prefix, None).await.expect_err(prefix);
        assert!(error.to_string().contains("AccessDenied"), "{prefix}: {error}");
    }
    let own = format!("only-this/{LIFE}/input/chunk-000000.x.jsonl.zst");
    of_one.put(&own, Vec::new(), "text/plain").await.expect("its own");
    assert_eq!(of_one.list("only-this/jobs/", None).await.expect("its own").len(), 1);
    assert_eq!(of_one.get("only-this/jobs/none", 1).await.expect("it may look for what is not there"), None);
    // A folder in the audit that looks like its own.
    refused_to_write(&of_one, &format!("audit/only-this/{LIFE}/input/x")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_may_have_a_bucket_of_its_own_and_is_written_once() {
    let cluster = Cluster::shared().await;
    let (bucket, audit) = cluster.another_bucket("audit").await;
    let tenant = cluster.tenant("a", &[]);
    let file = corpus::write_jsonl(cluster.dir.path(), "corpus.jsonl", &corpus::texts(1, 3));
    let job = cluster.submit(&tenant, &file, &[]);
    let _worker = cluster.worker(WorkerOptions { env: vec![("VECMILL_S3_AUDIT_BUCKET", bucket)] }).await;
    cluster.reaches(&tenant, &job, "completed", LIMIT).await;
    let keys = cluster.keys(&tenant, &job);
    assert_eq!(audit.list(keys.audit_prefix(), None).await.expect("the audit").len(), 1, "one chunk");
    assert_eq!(cluster.store().await.list("audit/", None).await.expect("the bucket").len(), 0, "nothing beside it");

    let record = |reason| AuditRecord::refused("a worker", Digest::of(b"a message"), "malformed", reason);
    for reason in ["the first", "the second"] {
        record(reason).write_refusal(&audit).await.expect("it is there");
    }
    let refusals = audit.list("audit/_refused/", None).await.expect("the audit");
    assert_eq!(refusals.len(), 1);
    let kept = audit.get(&refusals[0].key, 1 << 20).await.expect("S3 answers").expect("a record");
    assert!(String::from_utf8_lossy(&kept).contains("the first"), "what is there stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_its_audit_bucket_is_not_ready_and_says_so() {
    let cluster = Cluster::shared().await;
    let env = vec![("VECMILL_S3_AUDIT_BUCKET", format!("{}-none", cluster.unique()))];
    let worker = cluster.worker_unready(WorkerOptions { env });
    eventually("the worker says what it lacks", LIMIT, || async {
        let (status, lacking) = worker.get("/readyz").await?;
        (status == 503 && lacking.contains(&format!("{}-none", cluster.unique()))).then_some(())
    })
    .await;
}

/// What a role tried and was refused.
async fn refused<T: std::fmt::Debug>(what: &str, tried: impl Future<Output = Result<T, lapin::Error>>) {
    let error = tried.await.expect_err(what);
    assert!(error.to_string().contains("ACCESS_REFUSED"), "{what}: {error}");
}

/// Tries, each on a channel of its own, for a refusal closes it.
struct Tries<'a> {
    connection: &'a Connection,
}

impl Tries<'_> {
    async fn channel(&self) -> lapin::Channel {
        self.connection.create_channel().await.expect("a channel")
    }

    async fn refused_to_read(&self, queue: &str) {
        let channel = self.channel().await;
        refused(queue, channel.basic_get(queue.into(), BasicGetOptions::default())).await;
        let channel = self.channel().await;
        let consuming =
            channel.basic_consume(queue.into(), "t".into(), BasicConsumeOptions::default(), FieldTable::default());
        refused(queue, consuming).await;
    }

    async fn refused_to_publish(&self, exchange: &str, key: &str) {
        let publisher = Publisher::open(self.connection).await.expect("a channel");
        let error = publisher.publish(exchange, key, b"x", FieldTable::default()).await.expect_err(exchange);
        assert!(matches!(&error, PublishError::Broker(_)), "{exchange}: {error}");
        assert!(error.to_string().contains("ACCESS_REFUSED"), "{exchange}: {error}");
    }

    async fn refused_to_configure(&self, queue: &str, exchange: &str) {
        let channel = self.channel().await;
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        refused(queue, channel.queue_declare("another".into(), options, FieldTable::default())).await;
        let channel = self.channel().await;
        refused(queue, channel.queue_delete(queue.into(), QueueDeleteOptions::default())).await;
        let channel = self.channel().await;
        let declaring = channel.exchange_declare(
            exchange.into(),
            ExchangeKind::Direct,
            ExchangeDeclareOptions { durable: true, ..Default::default() },
            FieldTable::default(),
        );
        refused(exchange, declaring).await;
        let channel = self.channel().await;
        let binding =
            channel.queue_bind(queue.into(), exchange.into(), "x".into(), <_>::default(), FieldTable::default());
        refused(queue, binding).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_rabbitmq_each_role_publishes_and_consumes_what_is_its_own() {
    let cluster = Cluster::without_signer(Servers::shared());
    let topology = cluster.topology();
    let (lane, embed, dead) = (topology.lane_queue("00"), topology.embed_queue(), topology.dead_queue());
    let (jobs, rung, dead_exchange) = (topology.jobs_exchange(), topology.rung(0), topology.dead_exchange());
    let (requests, abandoned) = (topology.embed_exchange(), topology.abandoned());
    // By its name, past every exchange's own rights.
    let by_name = ("", lane.as_str());

    for (role, may_not_publish) in [
        (Role::Producer, vec![rung.as_str(), &dead_exchange, &requests, &abandoned]),
        (Role::Gateway, vec![rung.as_str(), &dead_exchange]),
        (Role::Worker, vec![requests.as_str(), abandoned.as_str()]),
        (Role::Ops, vec![jobs.as_str(), &rung, &dead_exchange, &requests, &abandoned]),
    ] {
        let url = &cluster.env[&role.variable("VECMILL_AMQP_URL")];
        let connection = connect(url, "vecmill tests", &<_>::default()).await.expect("RabbitMQ");
        let tries = Tries { connection: &connection };
        // Anybody may ask whether the queues are there; nobody but the operator may make or remove one.
        topology.check(&connection).await.unwrap_or_else(|error| panic!("{role:?}: {error}"));
        tries.refused_to_configure(&lane, &jobs).await;
        tries.refused_to_read(&dead).await;
        for exchange in may_not_publish {
            tries.refused_to_publish(exchange, "00").await;
        }
        if role != Role::Worker {
            tries.refused_to_read(&lane).await;
            tries.refused_to_read(&embed).await;
            tries.refused_to_publish(by_name.0, by_name.1).await;
        }
        if role != Role::Ops {
            let publisher = Publisher::open(&connection).await.expect("a channel");
            publisher.publish(&jobs, "00", b"x", FieldTable::default()).await.expect("chunks are published by it");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_redis_each_role_has_its_keys_and_its_commands() {
    let cluster = Cluster::without_signer(Servers::shared());
    let name = cluster.unique();
    let key = |what: &str| format!("vecmill:{{{name}}}:{what}");
    for (role, own, foreign) in [
        (Role::Worker, "quota", ["queued", "requests", "once:x"]),
        (Role::Gateway, "queued", ["unspent:x", "tokens", "usage:x"]),
    ] {
        let url = &cluster.env[&role.variable("VECMILL_REDIS_URL")];
        assert!(ask_unless_refused(url, &["HSET", &key(own), "a", "1"]).is_ok(), "{role:?}: {own}");
        for what in foreign {
            let refused = ask_unless_refused(url, &["HSET", &key(what), "a", "1"]);
            assert!(refused.is_err_and(|error| error.starts_with("NOPERM")), "{role:?}: {what}");
        }
        // Not by way of a script either.
        let script = "return redis.call('HSET', ARGV[1], 'a', '1')";
        let refused = ask_unless_refused(url, &["EVAL", script, "1", &key(own), &key(foreign[0])]);
        assert!(refused.is_err(), "{role:?}: a script");
        for command in
            [&["FLUSHALL"][..], &["KEYS", "*"], &["CONFIG", "GET", "*"], &["ACL", "LIST"], &["CLIENT", "LIST"]]
        {
            let refused = ask_unless_refused(url, command);
            assert!(refused.is_err_and(|error| error.starts_with("NOPERM")), "{role:?}: {command:?}");
        }
    }
}

/// What stands behind the private S3 server's one door asks nobody for a key by itself: a program that is talked into a request to
/// this machine must find nothing there.
#[tokio::test(flavor = "multi_thread")]
async fn behind_s3_nothing_answers_who_has_no_key() {
    let cluster = Cluster::without_signer(Servers::shared());
    let (bucket, secret) = (&cluster.env["VECMILL_S3_BUCKET"], "a tenant's text");
    let store = cluster.store().await;
    store.put("acme/files/one", secret, "text/plain").await.expect("an object");
    let door: u16 = cluster.env["VECMILL_S3_ENDPOINT"].rsplit(':').next().and_then(|port| port.parse().ok()).unwrap();
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build().unwrap();
    let paths = [
        "/".to_owned(),
        format!("/buckets/{bucket}/acme/files/one"),
        format!("/buckets/{bucket}/?pretty=y"),
        format!("/buckets/{bucket}/acme/files/one?mv.from=/buckets/{bucket}/acme/files/two"),
        format!("/buckets/{bucket}/?recursive=true"),
        format!("/{bucket}/acme/files/one"),
        format!("/col/delete?collection={bucket}"),
        "/vol/vacuum?garbageThreshold=0".to_owned(),
        "/dir/status".to_owned(),
        "/dir/assign".to_owned(),
        "/submit".to_owned(),
    ];
    let mut heard = 0;
    // Its door, and the seven ports of what is behind it.
    for port in door..=door + 7 {
        for path in &paths {
            for method in [reqwest::Method::GET, reqwest::Method::POST, reqwest::Method::PUT, reqwest::Method::DELETE] {
                let asked = client.request(method.clone(), format!("http://127.0.0.1:{port}{path}")).body("x");
                let Ok(answer) = asked.send().await else { continue };
                heard += 1;
                let status = answer.status();
                let body = answer.text().await.unwrap_or_default();
                assert!(!status.is_success() && !body.contains(secret), "{method} {port} {path}: {status} {body}");
            }
        }
    }
    assert!(heard > 0, "something listens");
    let kept = store.get("acme/files/one", 100).await.expect("S3 answers").expect("the object is there");
    assert_eq!(kept, secret.as_bytes());
}
