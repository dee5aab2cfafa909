//! Everything over TLS: a job from the command line to Parquet, and what is said where nobody is trusted.

use std::{path::Path, process::Command, time::Duration};

use vecmill_tests::{
    Cluster, Servers, WorkerOptions,
    corpus::{texts, write_jsonl},
    eventually,
    program::json_of,
};

const LIMIT: Duration = Duration::from_secs(60);

/// `curl` over TLS, trusting one authority: status and body, or what it complains of.
fn curl(url: &str, ca: &Path) -> Result<String, String> {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "10", "--cacert"]).arg(ca);
    let output = command.args(["--include", url]).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_through_over_tls_alone() {
    let mut cluster = Cluster::without_signer(Servers::shared());
    cluster.start_signer_with_tls().await;
    let tenant = cluster.tenant("tls", &[]);
    let tls_dir = std::path::PathBuf::from(&cluster.env["VECMILL_TEST_TLS_DIR"]);
    let file = |name: &str| tls_dir.join(name).display().to_string();
    let worker = cluster.worker_unready(WorkerOptions {
        env: vec![
            ("VECMILL_WORKER_TLS_CERT_FILE", file("server.pem")),
            ("VECMILL_WORKER_TLS_KEY_FILE", file("server.key")),
        ],
    });
    let ready = worker.url.replace("http://", "https://") + "/readyz";
    let ca = tls_dir.join("ca.pem");
    let answer = eventually("the worker is ready over TLS", LIMIT, || async {
        curl(&ready, &ca).ok().filter(|answer| answer.contains("200 OK"))
    })
    .await;
    assert!(answer.to_lowercase().contains("strict-transport-security"), "{answer}");

    let corpus = write_jsonl(cluster.dir.path(), "corpus.jsonl", &texts(31, 40));
    let job = cluster.submit(&tenant, &corpus, &["--chunk-rows", "10"]);
    let status = cluster.reaches(&tenant, &job, "completed", LIMIT).await;
    assert_eq!(status["state"], "completed");
    let out = cluster.dir.path().join("vectors").display().to_string();
    let got = json_of(&cluster.vecmill(&tenant, &["get", job.as_str(), "--out", &out, "--json"]));
    assert_eq!(got["complete"], true, "{got}");

    // The same with the system's authorities, which know none of these servers.
    let system = [("VECMILL_CA_FILE", ""), ("VECMILL_S3_CA_FILE", "")];
    let refused = without(&cluster, &tenant.api_key, &["list"], &system);
    assert_eq!(refused.0, Some(1), "{}", refused.1);
    assert!(refused.1.contains("signed by an authority that is not trusted here"), "{}", refused.1);

    let mut distrusting = Cluster::without_signer(Servers::shared());
    distrusting.env.extend(cluster.env.iter().map(|(name, value)| (name.clone(), value.clone())));
    distrusting.env.remove("VECMILL_CA_FILE");
    distrusting.env.remove("VECMILL_S3_CA_FILE");
    let worker = distrusting.worker_unready(WorkerOptions::default());
    eventually("the worker says whom it does not trust", LIMIT, || async {
        let (status, told) = worker.get("/readyz").await?;
        let all = ["Broker: ", "Quota: ", "Store: "]
            .iter()
            .all(|need| told.lines().any(|line| line.starts_with(need) && line.contains("not trusted here")));
        (status == 503 && all).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_shown_where_they_are_asked_for() {
    let mut cluster = Cluster::without_signer(Servers::private_for_certificates());
    let tls_dir = std::path::PathBuf::from(&cluster.env["VECMILL_TEST_TLS_DIR"]);
    let file = |name: &str| tls_dir.join(name).display().to_string();
    let ours = [
        ("VECMILL_CLIENT_CERT_FILE", file("server.pem")),
        ("VECMILL_CLIENT_KEY_FILE", file("server.key")),
        ("VECMILL_SIGNER_TLS_CLIENT_CA_FILE", file("ca.pem")),
    ];
    cluster.env.extend(ours.map(|(name, value)| (name.to_owned(), value)));
    cluster.start_signer_with_tls().await;
    let tenant = cluster.tenant("cert", &[]);
    let corpus = write_jsonl(cluster.dir.path(), "corpus.jsonl", &texts(32, 20));
    let job = cluster.submit(&tenant, &corpus, &["--chunk-rows", "10"]);
    let worker = cluster.worker(WorkerOptions::default()).await;
    cluster.reaches(&tenant, &job, "completed", LIMIT).await;
    drop(worker);

    // Who shows none is let in nowhere.
    for name in ["VECMILL_CLIENT_CERT_FILE", "VECMILL_CLIENT_KEY_FILE"] {
        cluster.env.remove(name);
    }
    let (code, told) = without(&cluster, &tenant.api_key, &["list"], &[]);
    assert_eq!(code, Some(1), "{told}");
    let worker = cluster.worker_unready(WorkerOptions::default());
    eventually("the worker says who refuses it", LIMIT, || async {
        let (status, told) = worker.get("/readyz").await?;
        let refused = ["Broker: ", "Keys: ", "Quota: "].iter().all(|need| told.contains(need));
        (status == 503 && refused && !told.contains("not asked yet")).then_some(())
    })
    .await;
}

/// `vecmill` with some of the cluster's variables unset.
fn without(cluster: &Cluster, api_key: &str, arguments: &[&str], unset: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(vecmill_tests::cluster::release_dir().join("vecmill"));
    command.args(arguments).envs(&cluster.env).env("VECMILL_API_KEY", api_key);
    unset.iter().for_each(|(name, _)| {
        command.env_remove(name);
    });
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_go_in_the_clear_is_refused_before_it_goes() {
    let cluster = Cluster::shared().await;
    let tenant = cluster.tenant("clear", &[]);
    for url in ["http://192.0.2.1:8700", "http://signer.example"] {
        let refused = cluster.vecmill_with_env(&tenant, &["list"], &[("VECMILL_SIGNER_URL", url)]);
        let told = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{told}");
        assert!(told.contains("VECMILL_INSECURE_SIGNER"), "{told}");
        assert!(!told.contains(&tenant.api_key));
    }
    let mut worker =
        cluster.worker_unready(WorkerOptions { env: vec![("VECMILL_SIGNER_URL", "http://192.0.2.1:8700".to_owned())] });
    eventually("the worker refuses its settings", LIMIT, || {
        std::future::ready(worker.end().filter(|end| end.code() == Some(2)))
    })
    .await;
    assert!(worker.logged().contains("VECMILL_INSECURE_SIGNER"), "{}", worker.logged());
    for (program, flag) in [("vecmill-worker", "run"), ("vecmill-signer", "serve")] {
        let refused = cluster.run(program, &[flag, "--listen", "0.0.0.0:0"]);
        let told = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{told}");
        assert!(told.contains("--insecure-listen") && told.contains("--tls-cert-file"), "{told}");
    }
}
