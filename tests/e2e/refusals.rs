//! What proves no right to be computed is not computed, not stored and not charged; and it harms nobody else.
//!
//! The test plays the signer, so that it can sign anything, and the producer, so that it can publish anything.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{Json, Router, routing::get};
use lapin::types::FieldTable;
use serde_json::{Value, json};
use vecmill_producer::{
    contract::{
        CONTRACT_VERSION, ChunkMessage, EmbedAnswer, EmbedInput, EmbedRequest, JobKeys, JobSpec, Manifest, RefusalKind,
    },
    life::Event,
    prepare::{Corpus, prepare},
    publish::Publisher,
    read::{InputFormat, ReadOptions},
    source::Source,
    split::Cut,
    store::Store,
};
use vecmill_signer::{
    claims::{DEFAULT_ISSUER, Digest, JobId, RevocationClaims, TenantId},
    mint::{Minter, SigningKey},
    store::TenantSettings,
};
use vecmill_tests::{
    Cluster, Servers, WorkerOptions,
    attacks::{Bench, Kind},
    cluster::{MODEL, Process},
    corpus::{texts, write_jsonl},
    eventually,
    forge::{ForgeKey, sign_hs256, unsigned},
    job::{FIRST_RUN, first_run, spec},
    receivers::served,
    requests::Asker,
};
use vecmill_worker::audit::{AuditRecord, Decision};

const LIMIT: Duration = Duration::from_secs(60);
const OBJECT_BYTES_MAX: usize = 1 << 20;
/// Of the key that the test signs with.
const FORGE_SEED: u8 = 1;
/// Invented key ids in the flood.
const FLOOD: usize = 20;

/// A job on S3 whose grant the test signs.
#[derive(Clone)]
struct Job {
    tenant: TenantId,
    id: JobId,
    keys: JobKeys,
    manifest: Manifest,
    manifest_sha256: Digest,
}

impl Job {
    /// The claims that an honest signer would put into the job's grant.
    fn claims(&self) -> Value {
        let now = now();
        json!({
            "iss": "vecmill-signer",
            "sub": self.tenant,
            "aud": "vecmill-workers",
            "jti": self.id,
            "iat": now,
            "nbf": now,
            "exp": now + 3600,
            "manifest_sha256": self.manifest_sha256,
            "model": self.manifest.spec.model,
            "dimensions": self.manifest.spec.dimensions,
            "rows": self.manifest.rows,
            "key_id": "test",
            "lane": 0,
            "life": FIRST_RUN.life,
            "run": FIRST_RUN.run,
            "limits": TenantSettings::default().limits,
            "epoch": 0,
        })
    }

    /// The claims with some of them replaced.
    fn claims_with(&self, changes: Value) -> Value {
        with(self.claims(), changes)
    }

    /// What an honest signer would put into an access token of the job's tenant.
    fn access_claims(&self, scope: &str) -> Value {
        let claims = self.claims();
        json!({
            "iss": claims["iss"], "sub": claims["sub"], "aud": "vecmill-api", "jti": claims["jti"], "iat": claims["iat"],
            "nbf": claims["nbf"], "exp": now() + 300, "scope": scope, "client_id": "test", "limits": claims["limits"],
            "epoch": 0,
        })
    }

    /// What an honest signer would put into an embed token of the job's tenant.
    fn embed_claims(&self) -> Value {
        let claims = self.claims();
        json!({
            "iss": claims["iss"], "sub": claims["sub"], "aud": "vecmill-embed", "jti": "ab".repeat(16),
            "iat": claims["iat"], "nbf": claims["nbf"], "exp": now() + 90, "model": MODEL, "dimensions_max": 64,
            "client_id": "test", "parent": "cd".repeat(16), "limits": claims["limits"], "epoch": 0,
        })
    }

    fn chunk(&self, chunk: u32) -> String {
        self.keys.chunk(chunk, &self.manifest.chunks[chunk as usize].sha256)
    }

    fn message(&self, chunk: u32, grant: &str) -> ChunkMessage {
        ChunkMessage {
            version: CONTRACT_VERSION,
            job: self.id.to_string(),
            run: FIRST_RUN.run,
            chunk,
            sha256: self.manifest.chunks.get(chunk as usize).map_or(Digest::of(b""), |entry| entry.sha256),
            grant: grant.to_owned(),
        }
    }
}

/// A message that must not be computed, and what must be said of it.
struct Case {
    name: String,
    body: Vec<u8>,
    /// Empty where the table of attacks does not say which check refuses.
    code: &'static str,
    /// The audit record's key, where the grant is good and only the chunk is not: the job is then told.
    chunk: Option<(JobKeys, u32)>,
}

/// An object with some of its entries replaced.
fn with(mut object: Value, changes: Value) -> Value {
    object.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    object
}

/// Everything that the test holds.
struct Scene {
    cluster: Cluster,
    store: Store,
    key: ForgeKey,
    /// How often the signer was asked for its keys.
    jwks_asked: Arc<AtomicUsize>,
}

impl Scene {
    /// A cluster whose signer is the test.
    async fn new() -> Self {
        let key = ForgeKey::new(FORGE_SEED);
        let (signer, jwks_asked) = serve_as_signer(&key).await;
        let mut cluster = Cluster::without_signer(Servers::shared());
        cluster.env.insert("VECMILL_SIGNER_URL".to_owned(), signer);
        let store = cluster.store().await;
        Self { cluster, store, key, jwks_asked }
    }

    async fn job(&self, tenant: &str, seed: u64, spec: JobSpec) -> Job {
        let tenant: TenantId = format!("{}-{tenant}", self.cluster.unique()).parse().unwrap();
        let path = write_jsonl(self.cluster.dir.path(), &format!("{tenant}-{seed}.jsonl"), &texts(seed, 9));
        let corpus = Corpus {
            source: Source::File(path),
            format: InputFormat::Jsonl,
            options: ReadOptions::default(),
            cut: Cut { chunk_rows: 3, chunk_bytes: 1 << 20 },
            strict: true,
        };
        let prepared = prepare(&self.store, &tenant, &spec, &corpus, |_| {}).await.unwrap();
        assert_eq!(prepared.manifest.chunk_count(), 3);
        let begun = first_run(Duration::from_secs(3600));
        prepared.ledger.append(|_| Ok(Event::Begin(begun.clone()))).await.unwrap();
        Job {
            tenant,
            id: prepared.job,
            keys: prepared.ledger.keys_of(FIRST_RUN),
            manifest: prepared.manifest,
            manifest_sha256: prepared.manifest_sha256,
        }
    }

    fn grant(&self, claims: &Value) -> String {
        self.key.sign(&self.key.grant_header(), claims)
    }

    fn good(&self, job: &Job, chunk: u32) -> Vec<u8> {
        job.message(chunk, &self.grant(&job.claims())).to_bytes()
    }

    async fn object(&self, key: &str) -> Vec<u8> {
        self.store.get(key, OBJECT_BYTES_MAX).await.unwrap().unwrap_or_else(|| panic!("{key} is not there")).to_vec()
    }

    async fn put(&self, key: &str, bytes: Vec<u8>) {
        self.store.put(key, bytes, "application/octet-stream").await.unwrap();
    }

    async fn record(&self, key: &str) -> AuditRecord {
        serde_json::from_slice(&self.object(key).await).unwrap()
    }

    /// Tokens that have been charged to a tenant today; `None` when nothing ever was.
    fn charged(&self, tenant: &TenantId) -> Option<u64> {
        let keys = self.cluster.redis(&["KEYS", &format!("vecmill:{{{tenant}}}:*")]).texts();
        if keys.is_empty() {
            return None;
        }
        let tokens = self.cluster.redis(&["HGET", &format!("vecmill:{{{tenant}}}:quota"), "day_tokens"]);
        Some(tokens.text().parse().unwrap())
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Serves the key's JWK Set, and that nothing is revoked; counts how often the set was asked for.
async fn serve_as_signer(key: &ForgeKey) -> (String, Arc<AtomicUsize>) {
    let (jwks, asked) = (key.jwks(), Arc::new(AtomicUsize::new(0)));
    let counter = asked.clone();
    let handler = get(move || {
        counter.fetch_add(1, Ordering::SeqCst);
        std::future::ready(Json(jwks))
    });
    let minter = Minter::new(DEFAULT_ISSUER.to_owned(), SigningKey::from_seed(&[FORGE_SEED; 32]).unwrap());
    let minter = Arc::new(minter);
    let statement = get(move || std::future::ready(minter.mint_revocations(RevocationClaims::default()).unwrap()));
    let routes = Router::new().route("/.well-known/jwks.json", handler).route("/v1/revocations/2", statement);
    (format!("http://{}", served(routes).await), asked)
}

/// Messages whose grant, or whose claim on a job, proves nothing.
fn refused(scene: &Scene, job: &Job) -> Vec<Case> {
    let key = &scene.key;
    let header = |changes: Value| with(key.grant_header(), changes);
    let claims = job.claims();
    let with = |changes: Value| scene.grant(&job.claims_with(changes));
    let grants = [
        ("another key's signature", ForgeKey::new(2).sign(&key.grant_header(), &claims), "bad_signature"),
        (
            "a key that nobody publishes",
            ForgeKey::new(2).sign(&ForgeKey::new(2).grant_header(), &claims),
            "unknown_key",
        ),
        ("no algorithm", unsigned(&header(json!({ "alg": "none" })), &claims), "wrong_algorithm"),
        ("no signature", unsigned(&key.grant_header(), &claims), "bad_signature"),
        (
            "HMAC with the public key",
            sign_hs256(key.public(), &header(json!({ "alg": "HS256" })), &claims),
            "wrong_algorithm",
        ),
        ("HMAC under another name", sign_hs256(key.public(), &key.grant_header(), &claims), "bad_signature"),
        ("a path as key id", key.sign(&header(json!({ "kid": "../../etc/passwd" })), &claims), "malformed"),
        ("a query as key id", key.sign(&header(json!({ "kid": "' OR 1=1 --" })), &claims), "malformed"),
        (
            "keys of its own by address",
            key.sign(&header(json!({ "jku": "http://127.0.0.1:9/jwks" })), &claims),
            "forbidden_header",
        ),
        (
            "keys of its own",
            key.sign(&header(json!({ "jwk": ForgeKey::new(2).jwks()["keys"][0] })), &claims),
            "forbidden_header",
        ),
        ("rules of its own", key.sign(&header(json!({ "crit": ["exp"] })), &claims), "forbidden_header"),
        ("an access token's type", key.sign(&header(json!({ "typ": "at+jwt" })), &claims), "wrong_type"),
        ("expired", with(json!({ "iat": now() - 7200, "nbf": now() - 7200, "exp": now() - 3600 })), "expired"),
        (
            "expired by a second more than the leeway",
            with(json!({ "iat": now() - 7200, "nbf": now() - 7200, "exp": now() - 31 })),
            "expired",
        ),
        ("not yet valid", with(json!({ "nbf": now() + 600 })), "not_yet_valid"),
        ("valid for a year", with(json!({ "exp": now() + 365 * 86_400 })), "lifetime_too_long"),
        ("meant for the API", with(json!({ "aud": "vecmill-api" })), "wrong_audience"),
        ("issued by another", with(json!({ "iss": "somebody-else" })), "wrong_issuer"),
        ("a tenant that is a path", with(json!({ "sub": "../../etc" })), "bad_claims"),
        ("a claim that nobody knows", with(json!({ "admin": true })), "bad_claims"),
        (
            "two tenants",
            key.sign_text(&key.grant_header(), &claims.to_string().replacen('{', r#"{"sub":"another","#, 1)),
            "bad_claims",
        ),
        ("longer than any grant", with(json!({ "model": "m".repeat(8 << 10) })), "too_long"),
        ("not a token", "grant".to_owned(), "malformed"),
    ];
    let mut cases: Vec<Case> = grants
        .into_iter()
        .map(|(name, grant, code)| Case {
            name: name.to_owned(),
            body: job.message(0, &grant).to_bytes(),
            code,
            chunk: None,
        })
        .collect();

    let grant = scene.grant(&claims);
    let changed = |change: &dyn Fn(&mut ChunkMessage)| {
        let mut message = job.message(0, &grant);
        change(&mut message);
        message.to_bytes()
    };
    let unknown_field = format!(r#"{{"key":"x",{}"#, &String::from_utf8(changed(&|_| {})).unwrap()[1..]);
    let messages = [
        ("another job's number", changed(&|message| message.job = "0".repeat(32)), "wrong_job"),
        ("another run's number", changed(&|message| message.run = 2), "wrong_run"),
        ("another digest", changed(&|message| message.sha256 = Digest::of(b"another")), "tampered"),
        ("another chunk's digest", changed(&|message| message.chunk = 1), "tampered"),
        ("a chunk past the end", changed(&|message| message.chunk = 3), "no_such_chunk"),
        ("the last number there is", changed(&|message| message.chunk = u32::MAX), "no_such_chunk"),
        ("another version", changed(&|message| message.version = 2), "malformed"),
        ("a field too many", unknown_field.into_bytes(), "malformed"),
        ("not JSON", b"embed this, please".to_vec(), "malformed"),
        ("empty", Vec::new(), "malformed"),
        ("too long", vec![b' '; 1 << 20], "malformed"),
    ];
    cases.extend(messages.into_iter().map(|(name, body, code)| Case {
        name: name.to_owned(),
        body,
        code,
        chunk: None,
    }));
    cases
}

/// The table of attacks, as grants of the good job; and honest access tokens with everything that is wrong with those.
/// The control of each is [`Scene::good`]: the same header, claims and key.
fn attacks(scene: &Scene, job: &Job) -> Vec<Case> {
    let claims = job.claims();
    let (access, embed) = (job.access_claims("jobs:submit"), job.embed_claims());
    let mut cases = Vec::new();
    for (kind, own, other) in
        [(Kind::Grant, &claims, &access), (Kind::Access, &access, &claims), (Kind::Embed, &embed, &access)]
    {
        let bench = Bench::new(kind, FORGE_SEED, scene.key.kid(), own.clone(), other.clone());
        let mut tokens: Vec<_> = bench.attacks().into_iter().map(|attack| (attack.name, attack.token)).collect();
        if kind != Kind::Grant {
            // For a bench of access tokens, that is an honest grant.
            tokens.retain(|(name, _)| kind != Kind::Access || name != "an honest token of the other kind");
            tokens.push((format!("an honest token of the kind {kind:?}"), bench.control()));
        }
        cases.extend(tokens.into_iter().map(|(name, token)| Case {
            name: format!("{kind:?}: {name}"),
            body: job.message(0, &token).to_bytes(),
            code: "",
            chunk: None,
        }));
    }
    // Some attacks need no claims of their own, and are the same whatever kind they were made for.
    let mut bodies = std::collections::BTreeSet::new();
    cases.retain(|case| bodies.insert(case.body.clone()));
    cases
}

#[tokio::test(flavor = "multi_thread")]
async fn only_embed_tokens_are_answered() {
    let scene = Scene::new().await;
    let (connection, _publisher) = scene.cluster.publisher().await;
    let worker = scene.cluster.worker(WorkerOptions::default()).await;
    let job = scene.job("good", 10, spec()).await;
    let (embed, access, grant) = (job.embed_claims(), job.access_claims("embed"), job.claims());
    let bench =
        |kind, own: &Value, other: &Value| Bench::new(kind, FORGE_SEED, scene.key.kid(), own.clone(), other.clone());
    let attacks = bench(Kind::Embed, &embed, &access).attacks();
    let mut tokens: Vec<_> = attacks.into_iter().map(|attack| (attack.name, attack.token)).collect();
    tokens.push(("an honest access token".to_owned(), bench(Kind::Access, &access, &grant).control()));
    tokens.push(("an honest grant".to_owned(), bench(Kind::Grant, &grant, &access).control()));
    let good = bench(Kind::Embed, &embed, &access).control();

    let mut asker = Asker::new(&scene.cluster, &connection).await;
    let mut ask = async |token: &str, dimensions| {
        let request = EmbedRequest {
            version: CONTRACT_VERSION,
            id: "test".to_owned(),
            token: token.to_owned(),
            model: MODEL.to_owned(),
            inputs: vec![EmbedInput::Text("tide".to_owned())],
            dimensions,
            instruction: None,
            deadline_ms: (now() + 60) * 1000,
        };
        asker.ask(&request).await
    };
    for (name, token) in &tokens {
        match ask(token, None).await {
            EmbedAnswer::Refused(refusal) => assert_eq!(refusal.kind, RefusalKind::Unauthorized, "{name}: {refusal:?}"),
            EmbedAnswer::Embedded { .. } => panic!("{name}: it was answered"),
        }
    }
    assert_eq!(worker.counter("vecmill_worker_tokens_total").await, 0);
    assert_eq!(scene.charged(&job.tenant), None);
    for (changes, dimensions, allowed) in [
        (json!({}), None, true),
        (json!({ "dimensions_max": 32 }), Some(32), true),
        (json!({ "dimensions_max": 32 }), None, false),
        (json!({ "model": "another/model" }), None, false),
    ] {
        let claims = with(embed.clone(), changes.clone());
        match ask(&bench(Kind::Embed, &claims, &access).control(), dimensions).await {
            EmbedAnswer::Embedded { .. } => assert!(allowed, "{changes}"),
            EmbedAnswer::Refused(refusal) => {
                let told = (refusal.kind, refusal.code.as_str());
                assert!(!allowed && told == (RefusalKind::Forbidden, "access_denied"), "{changes}: {refusal:?}");
            }
        }
    }
    assert!(matches!(ask(&good, None).await, EmbedAnswer::Embedded { .. }), "nothing of that has hurt");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_computed_again_is_charged_again() {
    let scene = Scene::new().await;
    let (_connection, publisher) = scene.cluster.publisher().await;
    let worker = scene.cluster.worker(WorkerOptions::default()).await;
    let job = scene.job("again", 20, spec()).await;
    let lane = scene.cluster.topology().lane_keys().next().unwrap();
    // Whoever may write to S3 may have a chunk computed again, and other texts under the same id.
    for times in 1..=3 {
        publish(&scene, &publisher, &lane, &scene.good(&job, 0)).await;
        eventually("it is computed", LIMIT, || async { (worker.settled("Embedded").await == times).then_some(()) })
            .await;
        let tokens = worker.counter("vecmill_worker_tokens_total").await;
        assert_eq!(scene.charged(&job.tenant), Some(tokens), "after {times} times");
        scene.store.delete(&job.keys.ended(0)).await.unwrap();
        // Best effort, and a moment behind the record.
        eventually("the charge is spent", LIMIT, || {
            let keys = scene.cluster.redis(&["KEYS", &format!("vecmill:{{{}}}:unspent:*", job.tenant)]).texts();
            std::future::ready(keys.is_empty().then_some(()))
        })
        .await;
    }
}

/// Messages with a good grant for a chunk that is not, or is no longer, what the signer vouched for.
async fn dead(scene: &Scene) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut case = |name: &str, job: &Job, chunk, body, code| {
        cases.push(Case { name: name.to_owned(), body, code, chunk: Some((job.keys.clone(), chunk)) });
    };

    let job = scene.job("chunks", 11, spec()).await;
    let mut flipped = scene.object(&job.chunk(0)).await;
    *flipped.last_mut().unwrap() ^= 1;
    scene.put(&job.chunk(0), flipped).await;
    case("a chunk with a bit flipped", &job, 0, scene.good(&job, 0), "bad_digest");
    let whole = scene.object(&job.chunk(1)).await;
    scene.put(&job.chunk(1), whole[..whole.len() - 7].to_vec()).await;
    case("a chunk cut off", &job, 1, scene.good(&job, 1), "bad_digest");
    scene.put(&job.chunk(2), [scene.object(&job.chunk(2)).await, vec![0; 100]].concat()).await;
    case("a chunk grown longer", &job, 2, scene.good(&job, 2), "bad_digest");

    let job = scene.job("gone", 12, spec()).await;
    scene.store.delete(&job.chunk(0)).await.unwrap();
    case("a chunk deleted", &job, 0, scene.good(&job, 0), "chunk_missing");

    let job = scene.job("swapped", 13, spec()).await;
    let mut manifest = job.manifest.clone();
    manifest.chunks.swap(0, 1);
    scene.put(&job.keys.manifest(), manifest.to_bytes()).await;
    case("a manifest swapped", &job, 0, scene.good(&job, 0), "bad_manifest");

    let job = scene.job("other", 14, spec()).await;
    let grant = scene.grant(&job.claims_with(json!({ "manifest_sha256": Digest::of(b"another manifest") })));
    case("a grant for another manifest", &job, 1, job.message(1, &grant).to_bytes(), "bad_manifest");
    let grant = scene.grant(&job.claims_with(json!({ "dimensions": 64 })));
    case("a grant for other dimensions", &job, 0, job.message(0, &grant).to_bytes(), "bad_manifest");
    let grant = scene.grant(&job.claims_with(json!({ "rows": 8 })));
    case("a grant for fewer rows", &job, 2, job.message(2, &grant).to_bytes(), "bad_manifest");

    // The other tenant's grant is good, for the other tenant: it looks for the manifest there and finds none.
    let victim = scene.job("victim", 15, spec()).await;
    let thief: TenantId = format!("{}-thief", scene.cluster.unique()).parse().unwrap();
    let thief = Job { keys: JobKeys::new(&thief, &victim.id, FIRST_RUN), tenant: thief, ..victim };
    case("another tenant's grant", &thief, 0, scene.good(&thief, 0), "manifest_missing");

    let mut job = scene.job("garbage", 16, spec()).await;
    let garbage = b"this is not zstd, and the digest is right".to_vec();
    job.manifest.chunks[0].sha256 = Digest::of(&garbage);
    job.manifest.chunks[0].bytes = garbage.len() as u32;
    job.manifest.chunks[1].rows += 1;
    job.manifest.rows += 1;
    job.manifest_sha256 = Digest::of(&job.manifest.to_bytes());
    scene.put(&job.chunk(0), garbage).await;
    scene.put(&job.keys.manifest(), job.manifest.to_bytes()).await;
    case("a chunk that is no zstd", &job, 0, scene.good(&job, 0), "unreadable_chunk");
    case("a chunk of fewer rows than vouched for", &job, 1, scene.good(&job, 1), "unreadable_chunk");

    let job = scene.job("model", 17, JobSpec { model: "another/model".to_owned(), ..spec() }).await;
    case("another model", &job, 0, scene.good(&job, 0), "wrong_model");
    let job = scene.job("wide", 18, JobSpec { dimensions: 128, ..spec() }).await;
    case("more dimensions than the model has", &job, 0, scene.good(&job, 0), "too_many_dimensions");
    cases
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_the_signer_vouched_for_is_computed() {
    let scene = Scene::new().await;
    let (_connection, publisher) = scene.cluster.publisher().await;
    let worker = scene.cluster.worker(WorkerOptions::default()).await;
    let good = scene.job("good", 10, spec()).await;

    let mut cases = refused(&scene, &good);
    let known: Vec<Vec<u8>> = cases.iter().map(|case| case.body.clone()).collect();
    cases.extend(attacks(&scene, &good).into_iter().filter(|case| !known.contains(&case.body)));
    cases.extend(dead(&scene).await);
    for index in 0..FLOOD {
        let header = json!({ "alg": "EdDSA", "typ": "job-grant+jwt", "kid": format!("invented-{index}") });
        let body = good.message(0, &scene.key.sign(&header, &good.claims())).to_bytes();
        cases.push(Case { name: "an invented key id".to_owned(), body, code: "unknown_key", chunk: None });
    }
    let lanes: Vec<String> = scene.cluster.topology().lane_keys().collect();
    for (case, lane) in cases.iter().zip(lanes.iter().cycle()) {
        publish(&scene, &publisher, lane, &case.body).await;
    }

    let mut letters = BTreeMap::new();
    while letters.len() < cases.len() {
        let more = eventually("every message is a dead letter", LIMIT, || async {
            Some(scene.cluster.dead_letters().await).filter(|letters| !letters.is_empty())
        });
        letters.extend(more.await);
    }
    for case in &cases {
        let reason = letters.get(&case.body).unwrap_or_else(|| panic!("{}: no dead letter", case.name));
        // For some bodies only the table knows which check refuses them.
        let code = if case.code.is_empty() { "" } else { &format!("{}: ", case.code) };
        assert!(reason.starts_with(code), "{}: {reason}", case.name);
    }
    check_records(&scene, &cases).await;
    check_nothing_was_done(&scene, &worker, &cases).await;
    let asked = scene.jwks_asked.load(Ordering::SeqCst);
    assert!(asked <= 3, "invented key ids made the worker ask {asked} times");

    // The same worker, the same job: nothing of that has hurt either.
    for chunk in 0..3 {
        publish(&scene, &publisher, &lanes[0], &scene.good(&good, chunk)).await;
    }
    eventually("the good chunks are embedded", LIMIT, || async {
        (worker.settled("Embedded").await == 3).then_some(())
    })
    .await;
    assert!(scene.store.exists(&good.keys.success()).await.unwrap(), "the job is complete");
    let tokens = worker.counter("vecmill_worker_tokens_total").await;
    assert!(tokens > 0);
    assert_eq!(worker.counter("vecmill_worker_rows_total").await, 9);
    assert_eq!(scene.charged(&good.tenant), Some(tokens), "charged is what was computed, once");

    // Replayed, its messages find everything there: the same records, the same bytes, no second charge.
    let before = objects(&scene, &good).await;
    for chunk in 0..3 {
        publish(&scene, &publisher, &lanes[1], &scene.good(&good, chunk)).await;
    }
    eventually("the replays are settled", LIMIT, || async { (worker.settled("AlreadyDone").await == 3).then_some(()) })
        .await;
    assert_eq!(objects(&scene, &good).await, before);
    assert_eq!(worker.settled("Embedded").await, 3);
    assert_eq!(worker.counter("vecmill_worker_tokens_total").await, tokens);
    assert_eq!(scene.charged(&good.tenant), Some(tokens));
    assert_eq!(scene.cluster.dead_letters().await, []);
}

async fn publish(scene: &Scene, publisher: &Publisher, lane: &str, body: &[u8]) {
    publisher.publish(&scene.cluster.topology().jobs_exchange(), lane, body, FieldTable::default()).await.unwrap();
}

/// Each message has one record, with its code, and where the grant was good, its job has been told.
async fn check_records(scene: &Scene, cases: &[Case]) {
    let refusals = scene.store.list("audit/_refused/", None).await.unwrap();
    for Case { name, body, code, chunk } in cases {
        let digest = Digest::of(body);
        let mut records = Vec::new();
        for object in refusals.iter().filter(|object| object.key.ends_with(&format!("/{digest}.jsonl"))) {
            records.push(scene.record(&object.key).await);
        }
        let Some((job, chunk)) = chunk else {
            assert_eq!(records.len(), 1, "{name}: {records:?}");
            let record = &records[0];
            assert_eq!(record.decision, Decision::Refused, "{name}");
            assert!(code.is_empty() || record.code.as_deref() == Some(*code), "{name}: {record:?}");
            assert_eq!((&record.tenant, &record.job), (&None, &None), "{name}: what it claims is not known");
            continue;
        };
        assert!(records.is_empty(), "{name}: {records:?}");
        let record = scene.record(&job.audit(*chunk, "dead")).await;
        assert_eq!((record.decision, record.code.as_deref()), (Decision::Dead, Some(*code)), "{name}");
        let told: Value = serde_json::from_slice(&scene.object(&job.dead(*chunk)).await).unwrap();
        assert_eq!(told["code"], *code, "{name}");
    }
}

/// Zero model calls, zero vectors, zero charges.
async fn check_nothing_was_done(scene: &Scene, worker: &Process, cases: &[Case]) {
    assert_eq!(worker.counter("vecmill_worker_tokens_total").await, 0);
    assert_eq!(worker.counter("vecmill_worker_rows_total").await, 0);
    let verified = cases.iter().filter(|case| case.chunk.is_some()).count() as u64;
    let refused = cases.len() as u64 - verified;
    assert_eq!(worker.settled("Refused").await, refused);
    assert_eq!(worker.settled("Dead").await, verified);
    let tenants = ["good", "chunks", "gone", "swapped", "other", "victim", "thief", "garbage", "model", "wide"];
    for tenant in tenants {
        let tenant: TenantId = format!("{}-{tenant}", scene.cluster.unique()).parse().unwrap();
        assert_eq!(scene.charged(&tenant), None, "{tenant}");
        let objects = scene.store.list(&format!("{tenant}/"), None).await.unwrap();
        let results: Vec<_> = objects
            .iter()
            .filter(|object| ["/vectors/", "/errors/"].iter().any(|folder| object.key.contains(folder)))
            .collect();
        assert!(results.is_empty(), "{results:?}");
    }
}

/// A job's objects and audit records: keys and digests.
async fn objects(scene: &Scene, job: &Job) -> BTreeMap<String, Digest> {
    let mut found = BTreeMap::new();
    for prefix in [job.keys.prefix(), job.keys.audit_prefix()] {
        for object in scene.store.list(prefix, None).await.unwrap() {
            found.insert(object.key.clone(), Digest::of(&scene.object(&object.key).await));
        }
    }
    assert!(found.len() > 3 * 4, "{found:?}");
    found
}
