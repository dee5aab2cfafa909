//! Setting up a signer: once, whoever is first, and readable by its owner only.

use std::os::unix::fs::MetadataExt as _;

use vecmill_signer::client::ApiKey;
use vecmill_signer::store::{Store, StoreError};
use vecmill_signer::vault::{Vault, VaultError};

use crate::program::{json_of, printed, told};
use crate::support::{Home, Program};

#[test]
fn of_many_at_once_exactly_one_wins() {
    use std::process::Stdio;
    let home = Home::new();
    let racers: Vec<_> = (0..4)
        .map(|_| {
            let mut racer = home.program(&["bootstrap", "--tenant", "acme", "--json"]);
            racer.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program runs")
        })
        .collect();
    let (won, lost): (Vec<_>, Vec<_>) = racers
        .into_iter()
        .map(|racer| racer.wait_with_output().expect("the program ends"))
        .partition(|output| output.status.success());
    assert_eq!(won.len(), 1, "{}", lost.iter().map(told).collect::<String>());
    for output in lost {
        assert_eq!(output.status.code(), Some(3), "{}", told(&output));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("bootstrapped already") && output.stdout.is_empty(), "{}", told(&output));
    }
    let keys = home.json(&["key", "list"]);
    assert_eq!(keys.as_array().expect("a list").len(), 2);

    let won = json_of(&won[0]);
    for (name, role) in [("admin_key", "admin"), ("writer_key", "writer")] {
        let key: ApiKey = won[name].as_str().expect("a key").parse().expect("well-formed");
        let listed = keys.as_array().expect("a list").iter().find(|listed| listed["id"] == key.id()).expect("listed");
        assert_eq!(listed["role"], role);
    }
}

#[tokio::test]
async fn secrets_are_for_their_owner_and_not_in_the_database() {
    let home = Home::new();
    let made = home.json(&["bootstrap"]);
    for path in [home.database(), home.master_key_file()] {
        let mode = std::fs::metadata(&path).expect("made").mode();
        assert_eq!(mode & 0o077, 0, "{}", path.display());
    }
    let database = std::fs::read(home.database()).expect("readable");
    let secret = &made["admin_key"].as_str().expect("a key")[20..];
    assert!(!database.windows(secret.len()).any(|window| window == secret.as_bytes()));

    // Another master key opens nothing.
    let other = home.folder.path().join("other.key");
    let vault = Vault::open_or_create(&other).expect("made");
    let store = Store::open(&home.database()).await.expect("a database");
    let refused = store.signing_keys(&vault).await.expect_err("refused");
    assert!(matches!(refused, StoreError::Vault(VaultError::WrongKey)), "{refused}");
}

#[test]
fn a_late_bootstrap_leaves_no_stray_master_key() {
    let home = Home::new();
    home.json(&["bootstrap"]);
    std::fs::remove_file(home.master_key_file()).expect("there");
    assert_eq!(home.run(&["bootstrap"]).status.code(), Some(3));
    assert!(!home.master_key_file().exists());
}

#[test]
fn settings_are_checked_before_anything_opens() {
    let home = Home::new();
    let output = home.run(&["serve", "--listen", "0.0.0.0:0", "--lanes", "none"]);
    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8_lossy(&output.stderr);
    for flag in ["--listen", "--lanes", "--database", "--master-key-file"] {
        assert!(told.contains(flag), "{told}");
    }
    assert!(!home.database().exists());
}

#[test]
fn serve_stops_at_sigterm() {
    let home = Home::new();
    home.json(&["bootstrap"]);
    assert!(Program::serve(&home, &[]).terminate().success());
}

#[test]
fn what_a_failed_program_said_is_told_without_secrets() {
    let mut program = std::process::Command::new("sh");
    program.args([
        "-c",
        "echo '{\"key\": \"vm_id_secret\"}'; echo at postgres://me:secret@host/db, eyJsecret! >&2; exit 7",
    ]);
    let told = told(&program.output().expect("it runs"));
    for part in ["exit status: 7", "{\"key\": \"vm_..\"}", "at postgres://..@host/db, eyJ.."] {
        assert!(told.contains(part), "{told}");
    }
    assert!(!told.contains("secret"), "{told}");
}

#[test]
fn completions_are_printed() {
    assert!(printed(&Home::new().run(&["completions", "bash"])).contains("vecmill-signer"));
}
