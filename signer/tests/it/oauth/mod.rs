//! A stock OAuth client gets what ours gets, and no more once its key is revoked.

mod endpoints;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use vecmill_signer::claims::{Digest, JobId};
use vecmill_signer::store::TenantSettings;

use crate::support::Signer;

/// A Python that has Authlib and requests; `infra/test` installs one and says where.
const PYTHON: &str = "VECMILL_OAUTH_PYTHON";

#[tokio::test(flavor = "multi_thread")]
async fn a_stock_client_works_until_its_key_is_revoked() {
    let python = std::env::var_os(PYTHON).expect("VECMILL_OAUTH_PYTHON names no Python with Authlib: run ./infra/test");
    let signer = Signer::start(TenantSettings::default()).await;
    let key = &signer.keys.writer;
    let file = |name: &str, text: &str| {
        let path = signer.home.folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    };
    let request = json!({
        "job": JobId::from_digest(&[1; 32]), "manifest_sha256": Digest::of(b"manifest"), "model": "vecmill/mini",
        "dimensions": 64, "rows": 10, "window_s": 3600,
    });
    let mut client = Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/oauth/stock_client.py"))
        .arg(signer.url())
        .args([file("key", key.expose()), file("request", &request.to_string())])
        // Authlib asks for it before it talks plain HTTP, even to this machine.
        .env("AUTHLIB_INSECURE_TRANSPORT", "1")
        .env("NO_PROXY", "127.0.0.1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("Python runs");
    let mut go_on = client.stdin.take().expect("piped");
    let mut steps = BufReader::new(client.stdout.take().expect("piped")).lines();
    let mut next = || -> Value {
        // What it complains of is beside this test's own words.
        let Some(line) = steps.next() else { panic!("the client ended too early: {:?}", client.wait()) };
        serde_json::from_str(&line.expect("UTF-8")).expect("JSON")
    };
    for method in ["client_secret_basic", "client_secret_post"] {
        let step = next();
        assert_eq!(step["step"], method);
        assert_eq!((&step["scope"], &step["token_type"]), (&json!("jobs:submit"), &json!("Bearer")));
        assert_eq!((&step["status"], &step["tenant"]), (&json!(200), &json!("acme")));
    }
    signer.home.json(&["key", "revoke", key.id()]);
    go_on.write_all(b"revoked\n").expect("it listens");
    drop(go_on);
    let step = next();
    assert_eq!((&step["status"], &step["error"]), (&json!(401), &json!("invalid_token")), "{step}");
    for _ in 0..2 {
        let step = next();
        assert_eq!(step["error"], "invalid_client", "{step}");
        assert!(!step.to_string().contains(key.expose()), "{step}");
    }
    assert!(client.wait().expect("it ends").success());
}
