//! Signing with a key from a mounted file, as a secret store or Kubernetes hands it over.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use vecmill_signer::client::{ApiKey, SignerClient};
use vecmill_signer::verify::{Keys, RemoteKeys, Verifier};

use crate::support::{Home, Program};

/// What the README says to run.
fn make_key(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    let mut make = Command::new("openssl");
    make.args(["genpkey", "-algorithm", "ed25519", "-out"]).arg(&path).stderr(Stdio::null());
    assert!(make.status().expect("openssl runs").success());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o440)).expect("own file");
    path
}

#[tokio::test]
async fn a_mounted_key_signs_and_never_enters_the_database() {
    for home in Home::of_each_kind().await {
        let key: ApiKey = home.json(&["bootstrap"])["writer_key"].as_str().expect("a key").parse().expect("an API key");
        let sealed = home.json(&["signing-key", "list"])[0]["kid"].as_str().expect("a kid").to_owned();
        let mounted = make_key(home.folder.path(), "signing-key.pem");
        let env = [("VECMILL_SIGNER_SIGNING_KEY_FILE", mounted.to_str().expect("UTF-8"))];
        let server = Program::serve(&home, &env);
        let client = SignerClient::new(&server.url, key.clone()).expect("a client");
        let token = client.access_token(&[]).await.expect("a token").token;
        let verifier = || {
            let keys = Keys::Remote(RemoteKeys::new(&server.url).expect("an address"));
            Verifier::new("vecmill-signer".to_owned(), keys)
        };
        verifier().access(&token).await.expect("good");

        // Known, and waiting for its turn like every new key; where the old one is withdrawn it takes over.
        let listed = home.json(&["signing-key", "list"]);
        let listed = listed.as_array().expect("keys");
        let ours = listed.iter().find(|key| key["held"] == "file").expect("the mounted key");
        assert_eq!((listed.len(), &ours["state"]), (2, &serde_json::json!("published")));
        drop(server);
        let again = Program::serve(&home, &env);
        assert_eq!(home.json(&["signing-key", "list"]).as_array().expect("keys").len(), 2, "known already");
        drop(again);
        home.json(&["signing-key", "withdraw", &sealed]);
        if let Some(database) = home.policy().file() {
            let pem = std::fs::read_to_string(&mounted).expect("readable");
            let body: String = pem.lines().filter(|line| !line.starts_with("---")).collect();
            use base64::Engine as _;
            let der = base64::engine::general_purpose::STANDARD.decode(body).expect("base64");
            let seed = &der[der.len() - 32..];
            let stored = std::fs::read(database).expect("readable");
            assert!(!stored.windows(32).any(|window| window == seed), "the private half stays in its file");
        }
    }
}

#[test]
fn what_is_no_key_or_not_only_ours_is_refused_by_name() {
    let home = Home::new();
    home.json(&["bootstrap"]);
    let folder = home.folder.path();
    let refused = |path: &Path| {
        let mut command = home.program(&["serve", "--listen", "127.0.0.1:0"]);
        let output = command.env("VECMILL_SIGNER_SIGNING_KEY_FILE", path).output().expect("it runs");
        assert!(!output.status.success());
        String::from_utf8(output.stderr).expect("UTF-8")
    };
    let open = make_key(folder, "open.pem");
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o444)).expect("own file");
    assert!(refused(&open).contains("chmod 600"));
    let rsa = folder.join("ec.pem");
    let made = Command::new("openssl")
        .args(["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out"])
        .arg(&rsa)
        .stderr(Stdio::null())
        .status();
    assert!(made.expect("openssl runs").success());
    let told = refused(&rsa);
    assert!(told.contains("openssl genpkey -algorithm ed25519") && !told.contains("BEGIN"), "{told}");
    let text = folder.join("text.pem");
    std::fs::write(&text, "not a key").expect("written");
    std::fs::set_permissions(&text, std::fs::Permissions::from_mode(0o600)).expect("own file");
    assert!(refused(&text).contains("text.pem"));
    assert!(refused(&folder.join("absent.pem")).contains("absent.pem"));
}
