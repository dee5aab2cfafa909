//! `/v1/files`, `/v1/batches` and `/v1/jobs`: the same jobs as `vecmill submit`'s, through the gateway's door.

mod command_line;
mod files;
mod precision;
mod scopes;
mod webhooks;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use vecmill_producer::part;
use vecmill_signer::claims::JobId;
use vecmill_signer::client::SignerClient;
use vecmill_tests::{
    Cluster, Tenant, WorkerOptions,
    cluster::{MODEL, Process},
    corpus, eventually,
    form::{FORM_TYPE, form},
    history,
    results::{check_completed, count_tokens, in_mid_job},
};

use crate::stock_clients::{PYTHON, installed, steps};

const LIMIT: Duration = Duration::from_secs(60);

/// One caller of a gateway.
pub(crate) struct Caller<'a> {
    gateway: &'a Process,
    client: reqwest::Client,
    key: String,
}

impl<'a> Caller<'a> {
    pub(crate) fn new(gateway: &'a Process, tenant: &Tenant) -> Self {
        let client = reqwest::Client::builder().no_proxy().timeout(LIMIT).build().unwrap();
        Self { gateway, client, key: tenant.api_key.clone() }
    }

    pub(crate) async fn ask(&self, method: reqwest::Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let request = self.client.request(method, format!("{}{path}", self.gateway.url)).bearer_auth(&self.key);
        let request = match body {
            Some(body) => request.json(&body),
            None => request,
        };
        let asked = Instant::now();
        let answer = request.send().await.unwrap();
        assert!(answer.headers().contains_key("x-request-id"), "{path}");
        let (status, body) = (answer.status().as_u16(), answer.json().await.unwrap_or_default());
        history::saw(asked, &body);
        (status, body)
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let (status, body) = self.ask(reqwest::Method::GET, path, None).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Value {
        let (status, body) = self.ask(reqwest::Method::POST, path, Some(body)).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    pub(crate) async fn bytes(&self, path: &str) -> Vec<u8> {
        let answer =
            self.client.get(format!("{}{path}", self.gateway.url)).bearer_auth(&self.key).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        answer.bytes().await.unwrap().to_vec()
    }

    /// Uploads a corpus; gives the file's id.
    pub(crate) async fn upload(&self, name: &str, bytes: Vec<u8>) -> String {
        let (_, file) = self.try_upload(name, &bytes).await;
        file["id"].as_str().unwrap_or_else(|| panic!("no file: {file}")).to_owned()
    }

    /// An upload that may be refused.
    pub(crate) async fn try_upload(&self, name: &str, bytes: &[u8]) -> (u16, Value) {
        let request = self.client.post(format!("{}/v1/files", self.gateway.url)).bearer_auth(&self.key);
        let answer = request.header("content-type", FORM_TYPE).body(form(name, bytes)).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    /// A connection with the head of an upload of so many bytes and the beginning of its form sent; its parts begin with `--b`.
    pub(crate) async fn begin_upload(&self, length: usize, form: &str) -> TcpStream {
        let address = self.gateway.url.strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "POST /v1/files HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {}\r\nContent-Length: {length}\r\n\
             Content-Type: multipart/form-data; boundary=b\r\n\r\n{form}",
            self.key
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    }

    pub(crate) async fn batch(&self, file: &str, more: Value) -> String {
        self.post("/v1/batches", batch_of(file, more)).await["id"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn reaches(&self, batch: &str, status: &str) -> Value {
        eventually(&format!("batch {batch} is {status}"), LIMIT, || async {
            let found = self.get(&format!("/v1/batches/{batch}")).await;
            (found["status"] == status).then_some(found)
        })
        .await
    }
}

/// An order of a batch.
pub(crate) fn batch_of(file: &str, more: Value) -> Value {
    let mut body = json!({"input_file_id": file, "endpoint": "/v1/embeddings", "completion_window": "24h"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// A corpus of `vecmill submit`'s, as bytes.
pub(crate) fn jsonl(texts: &[(String, String)]) -> Vec<u8> {
    texts.iter().flat_map(|(id, text)| format!("{}\n", json!({"id": id, "text": text})).into_bytes()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stock_sdk_goes_from_upload_to_content() {
    let cluster = Cluster::shared().await;
    let (store, tenant) = (cluster.store().await, cluster.admin("a", &[]));
    let _worker = cluster.worker(WorkerOptions::default()).await;
    let gateway = cluster.gateway(&[]).await;
    let key = cluster.dir.path().join("key");
    std::fs::write(&key, &tenant.api_key).unwrap();
    let url = format!("{}/v1", gateway.url);
    let arguments = [url.as_ref(), key.as_os_str(), MODEL.as_ref(), cluster.dir.path().as_os_str()];
    let steps = steps(installed(PYTHON), "batches/stock_client.py", &arguments);
    let step =
        |name: &str| steps.iter().find(|step| step["step"] == name).unwrap_or_else(|| panic!("no {name}: {steps:?}"));

    let file = step("file");
    assert_eq!((&file["same"], &file["object"]), (&json!(true), &json!(["file", "batch", "processed", "good.jsonl"])));
    assert_eq!((&file["bytes"][0], &file["bytes"][1]), (&file["bytes"][2], &file["bytes"][2]));

    let batch = step("batch");
    assert_eq!((&batch["same"], &batch["same_id"]), (&json!(true), &json!(true)), "{batch}");
    assert_eq!(batch["seen"][0], "validating");
    assert_eq!(batch["seen"].as_array().unwrap().last().unwrap(), "completed");
    assert_eq!(batch["counts"], json!({"total": 30, "completed": 30, "failed": 0}));
    assert_eq!(batch["tokens"][0], batch["tokens"][1]);
    assert_eq!(batch["tokens"][0], batch["tokens"][2]);
    assert_eq!((&batch["status_codes"], &batch["times"]), (&json!([200]), &json!([true])));
    assert_eq!((&batch["errors"], &batch["purpose"]), (&json!([null, null]), &json!("batch_output")));
    assert_eq!(batch["metadata"], json!({"for": "a test"}));

    let parquet = step("parquet");
    assert_eq!(parquet["columns"], json!(["id", "embedding", "tokens", "truncated"]));
    assert_eq!(parquet["ids"], true);
    assert!(parquet["type"].as_str().unwrap().contains("halffloat"), "{parquet}");
    assert_eq!(parquet["duckdb"], json!([30, 30, parquet["tokens"], 32]));

    let asked = step("asked");
    assert_eq!(asked["kinds"], json!(["str", "str", "str"]));
    assert!(asked["tokens"].as_u64().unwrap() > 3 * 20, "the instruction costs tokens: {asked}");

    let bad = [(2, "bad_json"), (3, "wrong_url"), (4, "wrong_model"), (5, "empty_text"), (6, "wrong_dimensions")];
    let bad: Vec<Value> = bad.iter().map(|(line, code)| json!([line, code])).collect();
    let lenient = step("bad lines");
    assert_eq!((&lenient["status"], &lenient["errors"]), (&json!("completed"), &json!(bad)));
    assert_eq!(lenient["error_file"], json!(bad));
    assert_eq!(lenient["counts"], json!({"total": 7, "completed": 2, "failed": 5}));
    assert_eq!(lenient["done"], json!(["c-0", "c-6"]));
    let strict = step("strict");
    assert_eq!((&strict["status"], &strict["job"]), (&json!("failed"), &json!(null)));
    assert_eq!(strict["errors"].as_array().unwrap()[1..], bad);

    let lists = step("lists");
    assert_eq!((&lists["batches"], &lists["files"]), (&json!([5, 5, true]), &json!(3)));
    assert_eq!((&lists["outputs"], &lists["oldest"]), (&json!(5), &json!(true)));
    assert_eq!(*step("idempotency"), json!({"step": "idempotency", "same": true, "other": "idempotency_key_reused"}));

    let cancel = step("cancel");
    assert_eq!((&cancel["was"], &cancel["at_once"]), (&json!("in_progress"), &json!("cancelling")), "{cancel}");
    assert_eq!((&cancel["status"], &cancel["disjoint"]), (&json!("cancelled"), &json!(true)));
    assert_eq!(cancel["codes"], json!(["batch_cancelled"]));
    let counts = &cancel["counts"];
    assert_eq!(cancel["lines"], json!([counts["completed"], counts["failed"]]));
    assert_eq!(counts["completed"].as_u64().unwrap() + counts["failed"].as_u64().unwrap(), 3000);

    for error in steps.iter().filter(|step| step["step"] == "error") {
        assert_eq!(error["right"], true, "{error}");
    }
    let delete = step("delete");
    assert_eq!((&delete["deleted"], &delete["missing"]), (&json!(true), &json!("file_not_found")));
    assert_eq!((&delete["still"], &delete["shared"]), (&json!("completed"), &json!(30)), "what a batch came to stays");
    let job: JobId = delete["job"].as_str().unwrap().parse().unwrap();
    assert_eq!(store.list(cluster.keys(&tenant, &job).prefix(), None).await.unwrap().len(), 0, "its vectors are gone");
}

#[tokio::test]
async fn a_batch_and_a_submission_are_one_job() {
    let cluster = Cluster::shared().await;
    let (store, tenant, texts) = (cluster.store().await, cluster.admin("a", &[]), corpus::texts(71, 400));
    let gateway = cluster.gateway(&[]).await;
    let caller = Caller::new(&gateway, &tenant);
    let bytes = jsonl(&texts);
    let file = caller.upload("corpus.jsonl", bytes.clone()).await;
    // Many chunks, so that its middle is seen.
    let more = json!({"output": {"dimensions": 32}, "chunk_rows": 4});
    let batch = caller.batch(&file, more).await;
    let queued = caller.reaches(&batch, "in_progress").await;
    let job: JobId = queued["job"].as_str().unwrap().parse().unwrap();

    let path = cluster.dir.path().join("corpus.jsonl");
    std::fs::write(&path, &bytes).unwrap();
    let submitted = cluster.submit(&tenant, &path, &["--dimensions", "32", "--chunk-rows", "4"]);
    assert_eq!(submitted, job, "one path, two doors");

    // No worker yet: that is said, in words.
    let status = caller.get(&format!("/v1/jobs/{job}")).await;
    assert_eq!((&status["state"], &status["waiting"]["reason"]), (&json!("queued"), &json!("no_worker")), "{status}");
    assert!(status["note"].as_str().unwrap().contains("no worker"), "{status}");
    assert_eq!(status["rows_waiting"], 400);

    // Held up, nothing of it is computed.
    caller.post(&format!("/v1/jobs/{job}/pause"), json!({})).await;
    let worker = cluster.worker(WorkerOptions::default()).await;
    eventually("the worker sends chunks to wait", LIMIT, || async {
        (worker.settled("Later").await > 3).then_some(())
    })
    .await;
    let status = caller.get(&format!("/v1/jobs/{job}")).await;
    assert_eq!((&status["rows_done"], &status["waiting"]["reason"]), (&json!(0), &json!("paused")), "{status}");
    caller.post(&format!("/v1/jobs/{job}/resume"), json!({})).await;

    // Parts are there while it runs.
    let keys = cluster.keys(&tenant, &job);
    in_mid_job(&store, &keys).await;
    let parts = caller.get(&format!("/v1/jobs/{job}/parts")).await;
    let first = &parts["data"][0];
    let rows = part::decode(caller.bytes(&format!("/v1/jobs/{job}/parts/{}", first["part"])).await.into()).unwrap();
    assert_eq!(json!(rows.len()), first["rows"]);

    // Events until the end.
    let events = caller.bytes(&format!("/v1/jobs/{job}/events")).await;
    let events = String::from_utf8(events).unwrap();
    let events: Vec<Value> = events
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| serde_json::from_str(data).unwrap())
        .collect();
    history::in_order(&events);
    let states: Vec<&Value> = events.iter().map(|status| &status["state"]).collect();
    assert_eq!(**states.last().unwrap(), "completed", "{states:?}");
    let rows = check_completed(&store, &keys, &tenant, &cluster.model_dir(), &texts).await;

    // What it cost, and for whom.
    let tokens: u64 = rows.iter().map(|row| u64::from(row.tokens)).sum();
    let usage = caller.get("/v1/usage").await;
    let spent: u64 = usage["data"].as_array().unwrap().iter().map(|day| day["tokens"].as_u64().unwrap()).sum();
    assert_eq!(spent, tokens);
    let by = &usage["data"][0]["by"][0];
    assert_eq!((by["job"].as_str(), by["key_id"].as_str()), (Some(job.as_str()), Some(tenant.key_id())));
    let limits = caller.get("/v1/limits").await;
    let limit = |name: &str| limits["data"].as_array().unwrap().iter().find(|limit| limit["limit"] == name).unwrap();
    assert_eq!(
        limit("tokens_per_day")["most"].as_u64().unwrap() - limit("tokens_per_day")["remaining"].as_u64().unwrap(),
        tokens
    );

    // Another tenant sees none of it.
    let stranger = cluster.admin("stranger", &[]);
    let other = Caller::new(&gateway, &stranger);
    for path in [
        format!("/v1/files/{file}"),
        format!("/v1/files/{file}/content"),
        format!("/v1/batches/{batch}"),
        format!("/v1/jobs/{job}"),
        format!("/v1/jobs/{job}/events"),
        format!("/v1/jobs/{job}/parts/0"),
        format!("/v1/jobs/{job}/errors"),
    ] {
        let (status, body) = other.ask(reqwest::Method::GET, &path, None).await;
        assert_eq!(status, 404, "{path}: {body}");
    }
    for list in ["/v1/files", "/v1/batches", "/v1/jobs", "/v1/usage"] {
        assert_eq!(other.get(list).await["data"], json!([]), "{list}");
    }
}

#[tokio::test]
async fn a_batch_outlives_the_gateway_that_took_it() {
    let cluster = Cluster::shared().await;
    let (store, tenant, texts) = (cluster.store().await, cluster.admin("a", &[]), corpus::texts(72, 60));
    // It can't queue anything.
    let nowhere = ("VECMILL_AMQP_URL", "amqp://127.0.0.1:9".to_owned());
    let mut mortal = cluster.gateway_that_answers("/healthz", &[nowhere]).await;
    // An access token: nobody but this client has what could get another one.
    let signer = SignerClient::new(&cluster.env["VECMILL_SIGNER_URL"], tenant.api_key.parse().unwrap()).unwrap();
    let mut caller = Caller::new(&mortal, &tenant);
    caller.key = signer.access_token(&[]).await.unwrap().token.to_string();
    let file = caller.upload("corpus.jsonl", jsonl(&texts)).await;
    let batch = caller.batch(&file, json!({"chunk_rows": 10, "output": {"dimensions": 32}})).await;
    eventually("it is at work", LIMIT, || async { mortal.logged().contains("can't be prepared yet").then_some(()) })
        .await;
    let left = store.list("_preparing/", None).await.unwrap();
    assert!(left.iter().any(|object| object.key.contains(&batch)), "{left:?}");
    mortal.kill();

    // The next one goes on with it, and nobody asks for it.
    let heir = cluster.gateway(&[]).await;
    let _worker = cluster.worker(WorkerOptions::default()).await;
    let summary = eventually("the job is done", LIMIT, || async {
        let done = store.list(&format!("{}/jobs/", tenant.id), None).await.unwrap();
        done.into_iter().find(|object| object.key.ends_with("/_SUCCESS"))
    })
    .await;
    let done = Caller::new(&heir, &tenant).reaches(&batch, "completed").await;
    let job: JobId = done["job"].as_str().unwrap().parse().unwrap();
    assert!(summary.key.contains(job.as_str()), "{}", summary.key);
    check_completed(&store, &cluster.keys(&tenant, &job), &tenant, &cluster.model_dir(), &texts).await;
    let left = store.list("_preparing/", None).await.unwrap();
    assert!(!left.iter().any(|object| object.key.contains(&batch)), "its credential is gone: {left:?}");
    for process in [&mortal, &heir] {
        assert!(!process.logged().contains("eyJ"), "a token in a log");
    }
}

#[tokio::test]
async fn a_batch_whose_key_is_revoked_before_it_is_a_job_never_becomes_one() {
    let cluster = Cluster::shared().await;
    let (tenant, texts) = (cluster.admin("a", &[]), corpus::texts(73, 10));
    let other = cluster.api_key(&tenant.id, "admin");
    let nowhere = ("VECMILL_AMQP_URL", "amqp://127.0.0.1:9".to_owned());
    let gateway = cluster.gateway_that_answers("/healthz", &[nowhere]).await;
    let mut caller = Caller::new(&gateway, &tenant);
    let file = caller.upload("corpus.jsonl", jsonl(&texts)).await;
    let batch = caller.batch(&file, json!({})).await;
    eventually("it is at work", LIMIT, || async { gateway.logged().contains("can't be prepared yet").then_some(()) })
        .await;
    cluster.signer(&["key", "revoke", tenant.key_id()]);
    caller.key = other;
    let failed = caller.reaches(&batch, "failed").await;
    assert_eq!(failed["errors"]["data"][0]["code"], "access_denied", "{failed}");
    assert!(failed["errors"]["data"][0]["message"].as_str().unwrap().contains("revoked"), "{failed}");
}

#[tokio::test]
async fn a_batch_of_a_tenant_with_addresses_of_its_own_is_signed_through_the_gateway() {
    let mut cluster = Cluster::without_signer(vecmill_tests::Servers::shared());
    // The gateway is at 127.0.0.1, the tenant at 127.0.0.2.
    cluster.env.insert("VECMILL_SIGNER_GATEWAYS".to_owned(), "127.0.0.1".to_owned());
    cluster.start_signer().await;
    let tenant = cluster.admin("elsewhere", &["--sources", "127.0.0.2"]);
    let gateway = cluster.gateway(&[]).await;
    let _worker = cluster.worker(WorkerOptions::default()).await;
    let address: std::net::IpAddr = "127.0.0.2".parse().unwrap();
    let client = reqwest::Client::builder().no_proxy().timeout(LIMIT).local_address(address).build().unwrap();
    let caller = Caller { client, ..Caller::new(&gateway, &tenant) };
    let file = caller.upload("corpus.jsonl", jsonl(&corpus::texts(74, 10))).await;
    let batch = caller.batch(&file, json!({})).await;
    caller.reaches(&batch, "completed").await;
    assert_eq!(Caller::new(&gateway, &tenant).ask(reqwest::Method::GET, "/v1/batches", None).await.0, 403, "from here");
}

#[tokio::test]
async fn what_is_queued_has_limits_and_comes_back() {
    let cluster = Cluster::shared().await;
    let few = cluster.admin("few", &["--concurrent-jobs", "1"]);
    let small = cluster.admin("small", &["--queued-tokens", "100"]);
    let gateways = [cluster.gateway(&[]).await, cluster.gateway(&[]).await];
    let callers = [Caller::new(&gateways[0], &few), Caller::new(&gateways[1], &few)];
    let mut files = Vec::new();
    for seed in 0..6 {
        files.push(callers[0].upload("corpus.jsonl", jsonl(&corpus::texts(80 + seed, 10))).await);
    }
    // Several at once at two gateways: one goes through.
    let making = (0..6).map(|number| callers[number % 2].batch(&files[number], json!({})));
    let batches = futures_util::future::join_all(making).await;
    let settled = async |batch: &String| {
        eventually("it is queued or refused", LIMIT, || async {
            let found = callers[0].get(&format!("/v1/batches/{batch}")).await;
            (found["status"] != "validating").then_some(found)
        })
        .await
    };
    let mut through = Vec::new();
    for batch in &batches {
        let found = settled(batch).await;
        if found["status"] == "failed" {
            assert_eq!(found["errors"]["data"][0]["code"], "token_limit_exceeded", "{found}");
        } else {
            through.push(batch.clone());
        }
    }
    assert_eq!(through.len(), 1, "{through:?}");
    // All are jobs that could go on; in pages they are the same as at once.
    let ids = |list: &Value| -> Vec<Value> {
        list["data"].as_array().unwrap().iter().map(|job| job["job"].clone()).collect()
    };
    let all = ids(&callers[0].get("/v1/jobs").await);
    let (mut paged, mut page) = (Vec::new(), callers[0].get("/v1/jobs?limit=4").await);
    while page["has_more"] == true {
        paged.extend(ids(&page));
        page = callers[0].get(&format!("/v1/jobs?limit=4&after={}", page["last_id"].as_str().unwrap())).await;
    }
    paged.extend(ids(&page));
    assert_eq!((all.len(), &paged), (6, &all));

    let caller = Caller::new(&gateways[0], &small);
    let file = caller.upload("corpus.jsonl", jsonl(&corpus::texts(90, 100))).await;
    let refused = caller.batch(&file, json!({})).await;
    let refused = caller.reaches(&refused, "failed").await;
    assert!(refused["errors"]["data"][0]["message"].as_str().unwrap().contains("queued_tokens"), "{refused}");

    // The end of the one gives its place to the next.
    let _worker = cluster.worker(WorkerOptions::default()).await;
    callers[0].reaches(&through[0], "completed").await;
    let next = callers[1].batch(&files[5], json!({"metadata": {"again": "yes"}})).await;
    callers[0].reaches(&next, "completed").await;
}

#[tokio::test]
async fn a_job_that_waits_says_for_what() {
    let cluster = Cluster::shared().await;
    let texts = corpus::texts(76, 40);
    // Two chunks' worth at once, and then one in a minute or so.
    let tokens: u32 = count_tokens(&cluster.model_dir(), &texts).iter().sum();
    let (rate, burst) = ((tokens / 8).to_string(), (tokens / 4).to_string());
    let limited = cluster.admin("limited", &["--tokens-per-minute", &rate, "--tokens-burst", &burst]);
    let spent = cluster.admin("spent", &["--tokens-per-day", &(tokens / 4).to_string()]);
    let worker = cluster.worker(WorkerOptions::default()).await;
    let gateway = cluster.gateway(&[]).await;
    for (tenant, reason, within_s) in [(&limited, "tokens_per_minute", 120), (&spent, "tokens_per_day", 24 * 3600)] {
        let caller = Caller::new(&gateway, tenant);
        let file = caller.upload("corpus.jsonl", jsonl(&texts)).await;
        let batch = caller.batch(&file, json!({"chunk_rows": 5})).await;
        let job = caller.reaches(&batch, "in_progress").await["job"].as_str().unwrap().to_owned();
        let status = eventually("it is over its quota", LIMIT, || async {
            let status = caller.get(&format!("/v1/jobs/{job}")).await;
            (status["waiting"]["reason"] == reason).then_some(status)
        })
        .await;
        let until: jiff::Timestamp = status["waiting"]["until"].as_str().unwrap().parse().unwrap();
        let wait_s = (until.as_second() - jiff::Timestamp::now().as_second()).max(0);
        assert!(wait_s <= within_s, "{status}");
        assert!(status["note"].as_str().unwrap().contains(reason), "{status}");
        assert!(status["rows_done"].as_u64().unwrap() < 40, "{status}");
    }

    // A worker that is there and takes nothing: what it has not taken waits behind what it has.
    assert!(std::process::Command::new("kill").args(["-STOP", &worker.id().to_string()]).status().unwrap().success());
    let queued = cluster.admin("queued", &[]);
    let caller = Caller::new(&gateway, &queued);
    let file = caller.upload("corpus.jsonl", jsonl(&texts)).await;
    let batch = caller.batch(&file, json!({"chunk_rows": 2})).await;
    let job = caller.reaches(&batch, "in_progress").await["job"].as_str().unwrap().to_owned();
    let status = eventually("it waits behind a backlog", LIMIT, || async {
        let status = caller.get(&format!("/v1/jobs/{job}")).await;
        (status["waiting"]["reason"] == "backlog").then_some(status)
    })
    .await;
    assert!(status["note"].as_str().unwrap().contains("workers that take them in turn: 1"), "{status}");
}
