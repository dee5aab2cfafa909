//! Copies of the policy database, and putting one back.

use vecmill_signer::store::TenantSettings;

use crate::support::{Home, Signer};

#[tokio::test]
async fn a_copy_made_while_serving_is_whole_and_can_be_put_back() {
    let signer = Signer::start(TenantSettings::default()).await;
    let kept = signer.key("globex", "writer").await;
    let copy = signer.home.folder.path().join("copy.db");
    let copy_name = copy.to_str().expect("UTF-8").to_owned();
    signer.home.json(&["backup", &copy_name]);
    let again = signer.home.run(&["backup", &copy_name]);
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stderr).contains("there already"));
    let later = signer.key("initech", "writer").await;
    let seq = signer.store.seq().await.expect("a database");
    let over = signer.home.run(&["restore", &copy_name]);
    let told = String::from_utf8_lossy(&over.stderr).into_owned();
    assert!(!over.status.success() && told.contains("there already"), "never over a database: {told}");

    signer.store.close().await;
    let home = signer.stop().await;
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", home.database().display()));
    }
    home.json(&["restore", &copy_name]);
    let keys = home.json(&["key", "list"]);
    let ids: Vec<_> = keys.as_array().expect("keys").iter().map(|key| key["id"].as_str().expect("an id")).collect();
    assert!(ids.contains(&kept.id()) && !ids.contains(&later.id()));
    let audit = home.json(&["audit", "--limit", "1"]);
    assert_eq!(audit[0]["action"], "database.restore");
    assert!(audit[0]["actor"].as_str().expect("an actor").starts_with("cli:"));
    let store = vecmill_signer::store::Store::open(home.policy()).await.expect("a database");
    assert!(store.seq().await.expect("a number") >= seq, "verifiers take its statements for newer");
}

#[tokio::test]
async fn what_is_no_whole_copy_of_ours_is_not_put_back() {
    let home = Home::new();
    let (store, _, _) = home.bootstrap(TenantSettings::default()).await;
    let file = |name: &str| home.folder.path().join(name);
    store.backup(&file("good.db")).await.expect("a copy");
    store.close().await;
    let good = std::fs::read(file("good.db")).expect("readable");
    std::fs::write(file("empty.db"), "").expect("written");
    std::fs::write(file("text.db"), "not a database, just text").expect("written");
    std::fs::write(file("short.db"), &good[..good.len() / 2]).expect("written");
    let mut torn = good.clone();
    let middle = torn.len() / 2;
    torn[middle..middle + 4096].fill(0xa5);
    std::fs::write(file("torn.db"), torn).expect("written");
    vecmill_signer::store::Store::open_or_create(&file("new.db")).await.expect("a database").close().await;

    let elsewhere = file("elsewhere.db");
    let restore = |copy: &str, master_key: &std::path::Path| {
        let mut command = home.program(&["restore", file(copy).to_str().expect("UTF-8")]);
        command.env("VECMILL_SIGNER_DATABASE", &elsewhere).env("VECMILL_SIGNER_MASTER_KEY_FILE", master_key);
        command.output().expect("the program runs")
    };
    for copy in ["empty.db", "text.db", "short.db", "torn.db", "new.db", "absent.db"] {
        let output = restore(copy, &home.master_key_file());
        assert_eq!(output.status.code(), Some(1), "{copy}");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(told.contains(copy), "{copy}: {told}");
        assert!(!elsewhere.exists(), "{copy}");
    }
    let other = Home::new();
    other.json(&["bootstrap"]);
    let output = restore("good.db", &other.master_key_file());
    assert!(String::from_utf8_lossy(&output.stderr).contains("another master key"));
    assert!(!elsewhere.exists());
    assert!(restore("good.db", &home.master_key_file()).status.success());
    let left: Vec<_> = std::fs::read_dir(home.folder.path())
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
        .filter(|name| name.contains("draft"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn postgres_has_tools_of_its_own() {
    let home = Home::on_postgres().await;
    home.json(&["bootstrap"]);
    for command in ["backup", "restore"] {
        let output = home.run(&[command, "file"]);
        assert!(!output.status.success());
        assert!(String::from_utf8_lossy(&output.stderr).contains("pg_dump"));
    }
}
