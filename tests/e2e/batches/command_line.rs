//! `vecmill --gateway`: the same commands from outside the cluster, with an API key and nothing else.

use std::{collections::BTreeMap, path::Path, process::Output};

use serde_json::json;
use vecmill_signer::claims::JobId;
use vecmill_tests::{
    Cluster, Tenant, WorkerOptions,
    cluster::{MODEL, Process, bare},
    corpus,
    program::{json_of, printed},
};

/// Runs `vecmill` with nothing of the cluster's settings.
fn outside(cluster: &Cluster, gateway: &Process, tenant: &Tenant, arguments: &[&str]) -> Output {
    let mut command = bare("vecmill");
    command.args(arguments).current_dir(cluster.dir.path());
    command.env("VECMILL_API_KEY", &tenant.api_key).env("VECMILL_GATEWAY_URL", &gateway.url);
    command.env("VECMILL_MODEL", MODEL).env("VECMILL_DIMENSIONS", "32").output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Every file of a folder.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(path).unwrap()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_commands_give_the_same() {
    let cluster = Cluster::shared().await;
    let tenant = cluster.tenant("a", &[]);
    let gateway = cluster.gateway(&[]).await;
    let run = |arguments: &[&str]| outside(&cluster, &gateway, &tenant, arguments);
    let path = cluster.dir.path().join("corpus.jsonl");
    let mut lines =
        std::fs::read(corpus::write_jsonl(cluster.dir.path(), "good.jsonl", &corpus::texts(73, 90))).unwrap();
    lines.extend(b"{not json\n");
    std::fs::write(&path, &lines).unwrap();
    let file = path.to_str().unwrap();

    let output = run(&["submit", file, "--chunk-rows", "20", "--json"]);
    let submitted = json_of(&output);
    assert!(stderr(&output).contains("corpus.jsonl:91: "), "the bad line is named: {}", stderr(&output));
    assert_eq!((&submitted["rows"], &submitted["rejected"], &submitted["chunks"]), (&json!(90), &json!(1), &json!(5)));
    assert_eq!((&submitted["was"], &submitted["published"]), (&json!("validating"), &json!(5)));
    let inside = json_of(&cluster.vecmill(&tenant, &["submit", file, "--chunk-rows", "20", "--json"]));
    assert_eq!((&inside["job"], &inside["was"]), (&submitted["job"], &json!("queued")), "one path, two doors");
    let job: JobId = submitted["job"].as_str().unwrap().parse().unwrap();
    let job = job.as_str();

    let shown = printed(&run(&["status", job]));
    assert!(shown.contains("no worker takes chunks"), "{shown}");
    assert_eq!(json_of(&run(&["pause", job, "--json"]))["waiting"]["reason"], "paused");
    let shown = printed(&run(&["status", job]));
    assert!(shown.contains("held it up"), "{shown}");
    assert_eq!(json_of(&run(&["resume", job, "--json"]))["state"], "queued");

    let _worker = cluster.worker(WorkerOptions::default()).await;
    let ended = json_of(&run(&["status", job, "--watch", "--json"]));
    assert_eq!((&ended["state"], &ended["rows_done"]), (&json!("completed"), &json!(90)));
    assert_eq!(ended, json_of(&cluster.vecmill(&tenant, &["status", job, "--json"])));
    let (listed, inside) = (run(&["list", "--json"]), cluster.vecmill(&tenant, &["list", "--json"]));
    assert_eq!(json_of(&listed), json_of(&inside));

    let fetched = json_of(&run(&["get", job, "--out", "outside", "--json"]));
    assert_eq!((&fetched["parts"], &fetched["kept"], &fetched["errors"]), (&json!(5), &json!(0), &json!(1)));
    json_of(&cluster.vecmill(&tenant, &["get", job, "--out", "inside", "--json"]));
    let (outside_files, inside_files) =
        (files(&cluster.dir.path().join("outside")), files(&cluster.dir.path().join("inside")));
    assert_eq!(outside_files.keys().collect::<Vec<_>>(), inside_files.keys().collect::<Vec<_>>());
    assert!(outside_files.keys().any(|name| name == "errors.jsonl"));
    assert!(outside_files == inside_files, "the same bytes through both doors");
    assert_eq!(json_of(&run(&["get", job, "--out", "outside", "--json"]))["kept"], 5);
    assert_eq!(json_of(&run(&["repair", job, "--json"]))["published"], 0);

    // The corpus that went up is not kept twice.
    let store = cluster.store().await;
    let left = store.list(&format!("{}/file-content/", tenant.id), None).await.unwrap();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_have_the_same_exit_codes() {
    let cluster = Cluster::shared().await;
    let tenant = cluster.tenant("a", &["--rows-per-job", "5"]);
    let stranger = Cluster::shared().await.tenant("b", &[]);
    let gateway = cluster.gateway(&[]).await;
    let texts = corpus::write_jsonl(cluster.dir.path(), "many.jsonl", &corpus::texts(74, 9));
    let texts = texts.to_str().unwrap();
    std::fs::write(cluster.dir.path().join("bad.jsonl"), "{not json\n\"good\"\n").unwrap();
    let unknown = "0".repeat(32);
    for (tenant, arguments, code, sentence) in [
        (&tenant, vec!["submit", texts], 3, "rows"),
        (&stranger, vec!["submit", texts], 3, "401 invalid_api_key"),
        (&tenant, vec!["submit", "bad.jsonl", "--strict"], 4, "bad.jsonl:1: "),
        (&tenant, vec!["submit", "none.jsonl"], 4, "none.jsonl can't be read"),
        (&tenant, vec!["submit", "bad.jsonl", "--model", "other"], 4, "model_not_found"),
        (&tenant, vec!["status", &unknown], 4, "there is no job"),
        (&tenant, vec!["get", &unknown, "--out", "none"], 4, "there is no job"),
        (&tenant, vec!["cancel", &unknown], 4, "there is no job"),
        (&tenant, vec!["status", &unknown, "--gateway", "http://127.0.0.1:1"], 1, "can't be reached"),
        (&tenant, vec!["status", &unknown, "--gateway", "http://192.0.2.1"], 2, "plain http to another machine"),
        (&tenant, vec!["status", &unknown, "--gateway", "nonsense"], 2, "--gateway (VECMILL_GATEWAY_URL)"),
    ] {
        let output = outside(&cluster, &gateway, tenant, &arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(sentence), "{arguments:?}: {}", stderr(&output));
        assert!(!stderr(&output).contains(&tenant.api_key), "the key is nobody's to read");
    }
}
