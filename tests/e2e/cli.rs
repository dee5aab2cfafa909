//! `vecmill` as people and pipelines use it: exit codes, JSON, the same job for the same corpus, and no secret anywhere.

use std::{
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};

use serde_json::{Value, json};
use vecmill_producer::contract::RunId;
use vecmill_signer::claims::JobId;
use vecmill_tests::{
    Cluster, Servers, Tenant, WorkerOptions,
    cluster::bare,
    corpus::{texts, write_jsonl},
    eventually,
    program::json_of,
    results::result,
};

const LIMIT: Duration = Duration::from_secs(60);

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Fails with this exit code and a sentence on standard error, and with nothing on standard output.
#[track_caller]
fn fails(output: &Output, code: i32, sentence: &str) {
    assert_eq!(output.status.code(), Some(code), "{}", stderr(output));
    assert!(stderr(output).contains(sentence), "{sentence:?} is not in: {}", stderr(output));
    assert!(output.stdout.is_empty(), "{}", stdout(output));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_corpus_is_the_same_job_from_submission_to_vectors() {
    let cluster = Cluster::shared().await;
    let (tenant, other) = (cluster.tenant("cli", &[]), cluster.tenant("cli-other", &[]));
    let corpus = write_jsonl(cluster.dir.path(), "corpus.jsonl", &texts(31, 100));
    let corpus = corpus.to_str().unwrap();
    let submit = |more: &[&str]| cluster.vecmill(&tenant, &[&["submit", corpus, "--chunk-rows", "20"], more].concat());

    let first = json_of(&submit(&["--json"]));
    assert_eq!((&first["chunks"], &first["published"], &first["was"]), (&json!(5), &json!(5), &json!("validating")));
    let second = json_of(&submit(&["--json"]));
    assert_eq!((&second["job"], &second["published"], &second["was"]), (&first["job"], &json!(0), &json!("queued")));
    assert!(stdout(&submit(&[])).contains("is queued already: 100 texts in 5 chunks"));
    let job: JobId = first["job"].as_str().unwrap().parse().unwrap();
    let status = cluster.status(&tenant, &job);
    assert_eq!((&status["state"], &status["rows"], &status["rows_done"]), (&json!("queued"), &json!(100), &json!(0)));

    let watching = cluster.vecmill_in_background(&tenant, &["status", job.as_str(), "--watch"]);
    let _worker = cluster.worker(WorkerOptions::default()).await;
    let watched = watching.wait_with_output().unwrap();
    assert!(watched.status.success(), "{}", stderr(&watched));
    assert!(stdout(&watched).contains("completed") && stdout(&watched).contains("100 of 100"), "{}", stdout(&watched));
    assert!(stdout(&submit(&[])).contains("is complete already: 100 texts"));
    let third = json_of(&submit(&["--json"]));
    assert_eq!((&third["job"], &third["published"], &third["was"]), (&first["job"], &json!(0), &json!("completed")));

    let wide = submit(&["--dimensions", "64", "--wait", "--json"]);
    let wide = json_of(&wide);
    assert_eq!((&wide["state"], &wide["dimensions"]), (&json!("completed"), &json!(64)));
    assert_ne!(wide["job"], first["job"]);
    let listed = cluster.vecmill(&tenant, &["list", "--json"]);
    let listed: Vec<Value> = stdout(&listed).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(listed.iter().map(|job| &job["job"]).collect::<Vec<_>>(), [&first["job"], &wide["job"]]);
    let listed = stdout(&cluster.vecmill(&tenant, &["list"]));
    assert!(listed.contains(job.as_str()) && listed.contains("100 %"), "{listed}");
    assert!(stdout(&cluster.vecmill(&other, &["list"])).contains("has no jobs"));

    fetch_again_and_again(&cluster, &tenant, &job).await;

    // A job that is not there, and another tenant's: the same words.
    let absent = "0123456789abcdef0123456789abcdef";
    let out = cluster.dir.path().join("nothing");
    for (tenant, job) in [(&tenant, absent), (&other, job.as_str())] {
        let sentence = format!("there is no job {job} for this API key's tenant");
        fails(&cluster.vecmill(tenant, &["status", job]), 4, &sentence);
        fails(&cluster.vecmill(tenant, &["status", job, "--watch"]), 4, &sentence);
        fails(&cluster.vecmill(tenant, &["cancel", job]), 4, &sentence);
        fails(&cluster.vecmill(tenant, &["get", job, "--out", out.to_str().unwrap()]), 4, &sentence);
    }
    assert!(!out.exists());
    fails(&cluster.vecmill(&tenant, &["status", "not-a-job"]), 2, "not-a-job");

    // Too late to cancel: nothing changes.
    let cancelled = cluster.vecmill(&tenant, &["cancel", job.as_str()]);
    assert!(stdout(&cancelled).contains("had ended before: completed"), "{}", stdout(&cancelled));
    assert_eq!(cluster.status(&tenant, &job)["state"], "completed");
}

/// Parts that are there and right are kept, others fetched; a part that is not what the summary says is refused.
async fn fetch_again_and_again(cluster: &Cluster, tenant: &Tenant, job: &JobId) {
    let get = |dir: &Path| cluster.vecmill(tenant, &["get", job.as_str(), "--out", dir.to_str().unwrap(), "--json"]);
    let dir = cluster.dir.path().join("fetched");
    let counts = |fetched: Value| {
        assert_eq!((&fetched["complete"], &fetched["errors"]), (&json!(true), &json!(0)));
        (fetched["parts"].as_u64().unwrap(), fetched["kept"].as_u64().unwrap())
    };
    assert_eq!(counts(json_of(&get(&dir))), (5, 0));
    assert_eq!(counts(json_of(&get(&dir))), (5, 5));
    let part = dir.join("part-000002.parquet");
    let right = std::fs::read(&part).unwrap();
    std::fs::write(&part, &right[..right.len() - 1]).unwrap();
    assert_eq!(counts(json_of(&get(&dir))), (5, 4));
    assert_eq!(std::fs::read(&part).unwrap(), right);

    let (store, keys) = (cluster.store().await, cluster.keys(tenant, job));
    let key = keys.object(&result(&store, &keys, 2).await.part_path());
    let mut wrong = right.clone();
    wrong[100] ^= 1;
    store.put(&key, wrong, "application/vnd.apache.parquet").await.unwrap();
    let fresh = cluster.dir.path().join("fresh");
    fails(&get(&fresh), 1, &format!("{key} hashes to "));
    assert!(!fresh.join("part-000002.parquet").exists(), "a wrong part is never under a part's name");
    store.put(&key, right, "application/vnd.apache.parquet").await.unwrap();
    json_of(&get(&fresh));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_job_stops_and_goes_on_when_it_is_submitted_again() {
    let cluster = Cluster::shared().await;
    // About a third of the tokens at once, and the rest at 300 a second: the job can't end before it is cancelled.
    let limits = ["--tokens-burst", "2000", "--tokens-per-minute", "18000"];
    let tenant = cluster.tenant("cancel", &limits);
    let worker = cluster.worker(WorkerOptions::default()).await;
    let corpus: Vec<_> =
        (0..100).map(|index| (format!("{index}"), format!("text {index:03} {}", "x".repeat(50)))).collect();
    let corpus = write_jsonl(cluster.dir.path(), "corpus.jsonl", &corpus);
    let submit = ["submit", corpus.to_str().unwrap(), "--chunk-rows", "5", "--json"];
    let waiting = cluster.vecmill_in_background(&tenant, &[&submit[..], &["--wait"]].concat());
    let job: JobId = eventually("the job is known", LIMIT, || async {
        let listed = cluster.vecmill(&tenant, &["list", "--json"]);
        let job: Value = serde_json::from_str(stdout(&listed).lines().next()?).ok()?;
        job["job"].as_str()?.parse().ok()
    })
    .await;
    cluster.reaches(&tenant, &job, "running", LIMIT).await;

    let cancelled = json_of(&cluster.vecmill(&tenant, &["cancel", job.as_str(), "--json"]));
    assert_eq!(cancelled["state"], "cancelling");
    let waited = waiting.wait_with_output().unwrap();
    assert_eq!(waited.status.code(), Some(5), "{}", stderr(&waited));
    assert!(stderr(&waited).contains(&format!("job {job} ended cancelled")), "{}", stderr(&waited));
    assert_eq!(serde_json::from_str::<Value>(&stdout(&waited)).unwrap()["state"], "cancelled");
    let watched = cluster.vecmill(&tenant, &["status", job.as_str(), "--watch"]);
    assert_eq!(watched.status.code(), Some(5), "{}", stderr(&watched));

    // The ladder's longest rung is 3 s: within seconds every chunk has come by and been dropped.
    let settled = eventually("every other chunk is dropped", LIMIT, || async {
        let (done, dropped) = (worker.settled("Embedded").await, worker.settled("Cancelled").await);
        (done + dropped == 20).then_some((done, dropped))
    })
    .await;
    let (done, dropped) = settled;
    assert!(done > 0 && dropped > 0, "{settled:?}");
    let status = cluster.status(&tenant, &job);
    assert_eq!((&status["state"], &status["chunks_done"]), (&json!("cancelled"), &json!(done)));

    // At once, while the worker still remembers the cancellation.
    let again = json_of(&cluster.vecmill(&tenant, &submit));
    assert_eq!((&again["job"], &again["published"]), (&json!(job), &json!(dropped)));
    assert_eq!(again["was"], "cancelled");
    let status = cluster.reaches(&tenant, &job, "completed", LIMIT).await;
    assert_eq!((&status["rows_done"], &status["chunks_done"]), (&json!(100), &json!(20)));
    eventually("the last chunk is settled", LIMIT, || async { (worker.settled("Embedded").await >= 20).then_some(()) })
        .await;
    assert_eq!(worker.settled("Embedded").await, 20, "no chunk was computed twice");
    let (store, first) = (cluster.store().await, cluster.keys(&tenant, &job));
    let second = first.of_run(RunId { life: 1, run: 2 });
    for (keys, records) in [(first, 20), (second, dropped)] {
        assert_eq!(store.list(keys.audit_prefix(), None).await.unwrap().len() as u64, records, "{keys:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_no_worker_can_compute_fails_and_says_why() {
    let cluster = Cluster::shared().await;
    let tenant = cluster.tenant("hopeless", &["--models", "vecmill/mini,another/model"]);
    let worker = cluster.worker(WorkerOptions::default()).await;
    let corpus = write_jsonl(cluster.dir.path(), "corpus.jsonl", &texts(33, 10));
    let submit = ["submit", corpus.to_str().unwrap(), "--chunk-rows", "5", "--json"];
    for (flags, code) in
        [(["--dimensions", "128"], "too_many_dimensions"), (["--model", "another/model"], "wrong_model")]
    {
        let waited = cluster.vecmill(&tenant, &[&submit[..], &flags, &["--wait"]].concat());
        assert_eq!(waited.status.code(), Some(5), "{}", stderr(&waited));
        assert!(stderr(&waited).contains("ended failed"), "{}", stderr(&waited));
        let status: Value = serde_json::from_slice(&waited.stdout).unwrap();
        assert_eq!((&status["state"], &status["chunks_dead"]), (&json!("failed"), &json!(2)));
        let job = status["job"].as_str().unwrap();
        let said = stdout(&cluster.vecmill(&tenant, &["status", job]));
        assert!(said.contains("given up   chunk 1: ") && said.contains(&format!("[{code}]")), "{said}");
        // Its workers may be others by now: submitted again, it is tried again.
        let again = json_of(&cluster.vecmill(&tenant, &[&submit[..], &flags].concat()));
        assert_eq!((&again["was"], &again["published"]), (&json!("failed"), &json!(2)));
        cluster.reaches(&tenant, &job.parse().unwrap(), "failed", LIMIT).await;
    }
    assert_eq!(worker.counter("vecmill_worker_tokens_total").await, 0);
}

/// A program with these settings and no others.
fn run(program: &str, arguments: &[&str], env: &[(&str, &str)]) -> Output {
    bare(program).args(arguments).envs(env.iter().copied()).output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_in_settings_are_reported_together_and_refusals_with_a_sentence() {
    let cluster = Cluster::shared().await;
    let corpus = write_jsonl(cluster.dir.path(), "corpus.jsonl", &texts(32, 3));
    let corpus = corpus.to_str().unwrap();

    let env = [("VECMILL_S3_ENDPOINT", "ftp://127.0.0.1"), ("VECMILL_LANES", "0"), ("VECMILL_WAIT_LADDER", "5,1")];
    let output = run("vecmill", &["submit", corpus], &env);
    for setting in
        ["VECMILL_S3_ENDPOINT", "VECMILL_LANES", "VECMILL_WAIT_LADDER", "VECMILL_AMQP_URL", "VECMILL_API_KEY"]
    {
        fails(&output, 2, setting);
    }
    let env = [
        ("VECMILL_MODEL", "nobody"),
        ("VECMILL_LANES", "0"),
        ("VECMILL_WORKER_LISTEN", "here"),
        ("VECMILL_SIGNER_URL", "signer"),
    ];
    let output = run("vecmill-worker", &["run"], &env);
    for setting in [
        "VECMILL_MODEL",
        "VECMILL_LANES",
        "VECMILL_WORKER_LISTEN",
        "VECMILL_SIGNER_URL",
        "VECMILL_REDIS_URL",
        "VECMILL_AMQP_URL",
    ] {
        fails(&output, 2, setting);
    }
    for command in [&["list"][..], &["status", "0123456789abcdef0123456789abcdef"], &["cancel", "x"], &["submit"]] {
        let output = run("vecmill", command, &[("VECMILL_API_KEY", "vm_nonsense")]);
        assert_eq!(output.status.code(), Some(2), "{command:?}: {}", stderr(&output));
        assert!(!stderr(&output).contains("nonsense"), "{}", stderr(&output));
    }

    // A key of another signer is well-formed and unknown here.
    let elsewhere = Cluster::without_signer(Servers::shared());
    let keys = json_of(&elsewhere.run("vecmill-signer", &["bootstrap", "--tenant", "elsewhere", "--json"]));
    let stranger = cluster.tenant("stranger", &[]);
    let stranger = Tenant { api_key: api_key(&keys), ..stranger };
    for command in [&["list"][..], &["submit", corpus], &["status", "0123456789abcdef0123456789abcdef"]] {
        fails(&cluster.vecmill(&stranger, command), 3, "API key");
    }
    // A model that the tenant may not use, and more rows than it may submit.
    let modest = cluster.tenant("modest", &["--models", "vecmill/mini", "--rows-per-job", "2"]);
    fails(&cluster.vecmill(&modest, &["submit", corpus, "--model", "another/model"]), 3, "vecmill/mini");
    fails(&cluster.vecmill(&modest, &["submit", corpus]), 3, "2");

    // Nobody there: try again later.
    let mut away = Cluster::without_signer(Servers::shared());
    away.env.insert("VECMILL_SIGNER_URL".to_owned(), "http://127.0.0.1:9".to_owned());
    fails(&away.vecmill(&modest, &["list"]), 1, "127.0.0.1:9");
}

/// The first API key in what `vecmill-signer` printed.
fn api_key(printed: &Value) -> String {
    let text = printed.to_string();
    let begin = text.find("vm_").expect("an API key");
    text[begin..].split('"').next().unwrap().to_owned()
}

#[test]
fn every_program_has_completions_help_and_a_version() {
    for program in ["vecmill", "vecmill-worker", "vecmill-signer"] {
        for shell in ["bash", "zsh", "fish"] {
            let printed = stdout(&run(program, &["completions", shell], &[]));
            assert!(printed.lines().count() > 10 && printed.contains(program), "{program} {shell}: {printed}");
        }
    }
    for program in ["vecmill", "vecmill-worker", "vecmill-signer", "vecmill-local"] {
        let help = stdout(&run(program, &["--help"], &[]));
        assert!(help.contains("Examples:"), "{program}: {help}");
        assert!(stdout(&run(program, &["--version"], &[])).starts_with(&format!("{program} ")));
        assert_eq!(run(program, &["--no-such-flag"], &[]).status.code(), Some(2), "{program}");
    }
}

/// Everything that the programs say, with a name for each piece.
#[derive(Default)]
struct Said(Vec<(String, String)>);

impl Said {
    fn add(&mut self, name: &str, bytes: &[u8]) {
        self.0.push((name.to_owned(), String::from_utf8_lossy(bytes).into_owned()));
    }

    fn output(&mut self, name: &str, output: &Output) {
        self.add(&format!("{name}'s standard output"), &output.stdout);
        self.add(&format!("{name}'s standard error"), &output.stderr);
    }

    fn holds(&self, secret: &str) -> Vec<&str> {
        assert!(secret.len() >= 8, "a secret so short could be anywhere");
        self.0.iter().filter(|(_, text)| text.contains(secret)).map(|(name, _)| name.as_str()).collect()
    }
}

/// A word of the texts. It stands where a program may be tempted to show it: in bad rows, in what is too long.
const CANARY: &str = "canary-in-the-mill";
const CANARY_CORPUS: &[u8] = b"{\"id\":\"1\",\"text\":\"a good text with canary-in-the-mill in it\"}
{\"id\":\"2\",\"text\":\"canary-in-the-mill, no end
{\"id\":\"3\",\"text\":[\"canary-in-the-mill\"]}
{\"id\":\"4\",\"text\":{\"canary-in-the-mill\":1}}
{\"id\":{\"canary-in-the-mill\":1},\"text\":\"x\"}
{\"id\":\"6\",\"text\":\"canary-in-the-mill \xff\"}
canary-in-the-mill
[\"canary-in-the-mill\"]
{\"custom_id\":\"9\",\"method\":\"canary-in-the-mill\",\"url\":\"/v1/embeddings\",\"body\":{\"input\":\"x\"}}
{\"custom_id\":\"10\",\"method\":\"POST\",\"url\":\"/canary-in-the-mill\",\"body\":{\"input\":\"x\"}}
{\"custom_id\":\"11\",\"method\":\"POST\",\"url\":\"/v1/embeddings\",\"body\":{\"input\":\"x\",\"model\":\"canary-in-the-mill\"}}
{\"custom_id\":\"12\",\"body\":{\"input\":\"x\",\"dimensions\":\"canary-in-the-mill\"}}
{\"id\":\"13\",\"text\":\"<|im_start|> canary-in-the-mill\"}
";

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_and_no_text_is_in_anything_that_is_said() {
    let mut cluster = Cluster::without_signer(Servers::shared());
    let everything =
        "debug,vecmill_signer=trace,vecmill_producer=trace,vecmill_worker=trace,vecmill=trace,hyper=info,h2=info";
    for name in ["VECMILL_LOG", "VECMILL_SIGNER_LOG"] {
        cluster.env.insert(name.to_owned(), everything.to_owned());
    }
    cluster.start_signer().await;
    let tenant = cluster.tenant("canary", &[]);
    let worker = cluster.worker(WorkerOptions::default()).await;
    let mut corpus = CANARY_CORPUS.to_vec();
    corpus.extend(format!("{{\"id\":\"14\",\"text\":\"{}\"}}\n", CANARY.repeat(300)).into_bytes());
    let path = cluster.dir.path().join("corpus.jsonl");
    std::fs::write(&path, &corpus).unwrap();
    let path = path.to_str().unwrap();

    let mut said = Said::default();
    let submitted = cluster.vecmill(&tenant, &["submit", path, "--wait", "--json"]);
    let status = json_of(&submitted);
    assert_eq!((&status["rows"], &status["rejected"], &status["rows_failed"]), (&json!(3), &json!(11), &json!(1)));
    said.output("submit", &submitted);
    let job = status["job"].as_str().unwrap();
    let out = cluster.dir.path().join("out");
    for arguments in [
        &["submit", path, "--strict"][..],
        &["submit", path, "--strict", "--chunk-rows", "7"],
        &["status", job],
        &["list"],
        &["cancel", job],
        &["get", job, "--out", out.to_str().unwrap()],
    ] {
        said.output(arguments[0], &cluster.vecmill(&tenant, arguments));
    }
    said.add("errors.jsonl", &std::fs::read(out.join("errors.jsonl")).unwrap());

    // Wrong secrets, and URLs that can't be read: the likeliest moment for one to be shown.
    let wrong = misconfigured(&cluster, &tenant, path, &mut said);

    let store = cluster.store().await;
    let keys = cluster.keys(&tenant, &job.parse().unwrap());
    let mut objects = store.list(keys.prefix(), None).await.unwrap();
    objects.extend(store.list(keys.audit_prefix(), None).await.unwrap());
    let input = format!("{}chunk-", keys.input_prefix());
    for object in objects.iter().filter(|object| !object.key.starts_with(&input)) {
        said.add(&object.key, &store.get(&object.key, 1 << 20).await.unwrap().unwrap());
    }
    let audit = said.0.iter().filter(|(name, _)| name.starts_with("audit/")).count();
    assert_eq!(audit, 1, "the audit record is among what is scanned");
    said.add("the worker's metrics", worker.get("/metrics").await.unwrap().1.as_bytes());
    for path in logs(&cluster) {
        let log = std::fs::read(&path).unwrap();
        assert!(!log.is_empty(), "{} has nothing to scan", path.display());
        said.add(&path.display().to_string(), &log);
    }
    assert!(said.0.iter().any(|(_, text)| text.contains("TRACE") || text.contains("DEBUG")), "the logs are talkative");

    let password = |name: &str| {
        let url = &cluster.env[name];
        let (user, _) = url.rsplit_once('@').expect("a URL with a password");
        user.rsplit_once(':').expect("a password").1.to_owned()
    };
    let secrets = [
        // After the prefix and the id; the secret itself may have underscores.
        ("the API key", tenant.api_key.splitn(3, '_').nth(2).unwrap().to_owned()),
        ("the broker's password", password("VECMILL_AMQP_URL")),
        ("Redis' password", password("VECMILL_REDIS_URL")),
        ("the S3 secret", cluster.env["AWS_SECRET_ACCESS_KEY"].clone()),
        ("a text", CANARY.to_owned()),
        // How the header of each token begins: {"typ": or {"alg":
        ("a token", "eyJ0eXAiOi".to_owned()),
        ("a token", "eyJhbGciOi".to_owned()),
        ("a wrong secret", wrong.to_owned()),
    ];
    for (name, secret) in secrets {
        let places = said.holds(&secret);
        assert!(places.is_empty(), "{name} is in {places:?}");
    }
}

/// Runs programs with wrong secrets; gives the word that all of these hold.
fn misconfigured(cluster: &Cluster, tenant: &Tenant, corpus: &str, said: &mut Said) -> &'static str {
    const WRONG: &str = "wrong-but-secret";
    let submit = ["submit", corpus, "--dimensions", "64"];
    let amqp = &cluster.env["VECMILL_AMQP_URL"];
    let amqp_host = amqp.rsplit_once('@').unwrap().1;
    let settings = [
        ("VECMILL_AMQP_URL", format!("amqp://vecmill:{WRONG}@{amqp_host}")),
        ("VECMILL_AMQP_URL", format!("amqp://vecmill:{WRONG}@127.0.0.1:9/%2f")),
        ("VECMILL_AMQP_URL", format!("amqp://vecmill:{WRONG}@not a host/%2f")),
        ("VECMILL_AMQP_URL", format!("http://vecmill:{WRONG}@127.0.0.1")),
        ("VECMILL_API_KEY", format!("vm_{WRONG}")),
        ("AWS_SECRET_ACCESS_KEY", WRONG.to_owned()),
        ("VECMILL_SIGNER_URL", format!("http://user:{WRONG}@127.0.0.1:9")),
        ("VECMILL_S3_ENDPOINT", format!("http://user:{WRONG}@127.0.0.1:9")),
        ("VECMILL_S3_ENDPOINT", format!("s3://user:{WRONG}@127.0.0.1:9")),
    ];
    for (name, value) in settings {
        let output = cluster.vecmill_with_env(tenant, &submit, &[(name, &value)]);
        assert!(!output.status.success(), "{name} is wrong");
        assert!(stderr(&output).contains("vecmill: "), "{name} is wrong, and that is said: {}", stderr(&output));
        said.output(&format!("submit with a wrong {name}"), &output);
    }
    for url in [format!("redis://:{WRONG}@not a host"), format!("{WRONG}://127.0.0.1")] {
        let env: Vec<(&str, &str)> = cluster.env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let output = run("vecmill-worker", &["run"], &[&env[..], &[("VECMILL_REDIS_URL", &url)]].concat());
        fails(&output, 2, "VECMILL_REDIS_URL");
        said.output("a worker with a wrong Redis URL", &output);
    }
    WRONG
}

fn logs(cluster: &Cluster) -> Vec<PathBuf> {
    let files = std::fs::read_dir(cluster.dir.path()).unwrap().map(|entry| entry.unwrap().path());
    let logs: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|extension| extension == "log")).collect();
    assert!(logs.len() >= 2, "the signer's and the worker's: {logs:?}");
    logs
}
