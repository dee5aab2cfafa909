//! Killed at any moment, the signer and its commands leave a whole database: what was answered is there, and each change has
//! its event.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vecmill_signer::client::{ApiKey, SignerClient};
use vecmill_signer::store::{AuditFilter, Store, TenantSettings};

use crate::program::told;
use crate::support::{Home, Program, eventually, http};

/// Lives of a server, and of a burst of commands.
const ROUNDS: u64 = 8;
/// What a server has made when it is killed, at least, however slow the disk is.
const KEYS_OF_A_LIFE: u32 = 3;
const SIGKILL: i32 = 9;

/// Every key has the event of its making and the other way round; of a database file every page is sound.
async fn assert_whole(home: &Home, acknowledged: &BTreeSet<String>) {
    let store = Store::open(home.policy()).await.expect("the database opens");
    if home.policy().file().is_some() {
        use sqlx::Connection as _;
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(home.database());
        let mut connection = sqlx::sqlite::SqliteConnection::connect_with(&options).await.expect("it opens");
        let whole: String =
            sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&mut connection).await.expect("checked");
        assert_eq!(whole, "ok");
        connection.close().await.expect("closed");
    }
    let keys: BTreeSet<String> = store.keys().await.expect("keys").into_iter().map(|key| key.id).collect();
    let mut recorded = BTreeMap::<String, u32>::new();
    let mut before_seq = None;
    loop {
        let page = store.audit(&AuditFilter { tenant: None, before_seq, limit: 1000 }).await.expect("the audit");
        let Some(last) = page.last() else { break };
        before_seq = Some(last.seq);
        for event in page.iter().filter(|event| event.action == "key.create") {
            *recorded.entry(event.subject.clone()).or_default() += 1;
        }
    }
    assert!(recorded.values().all(|times| *times == 1), "{recorded:?}");
    assert_eq!(keys, recorded.into_keys().collect(), "a key without its event, or an event without its key");
    let lost: Vec<_> = acknowledged.difference(&keys).collect();
    assert!(lost.is_empty(), "answered and lost: {lost:?}");
    store.close().await;
}

/// Makes keys over HTTP until the server is gone, and counts them; those whose making was answered.
async fn make_keys(url: String, token: String, count: Arc<AtomicU32>) -> BTreeSet<String> {
    let mut made = BTreeSet::new();
    let http = http();
    loop {
        let request = http.post(format!("{url}/v1/admin/tenants/default/keys")).bearer_auth(&token);
        let Ok(answer) = request.json(&json!({"role": "reader"})).send().await else { return made };
        // A fast machine makes all that a tenant may make in an hour before the server is killed.
        if answer.status() == 429 {
            count.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        assert_eq!(answer.status().as_u16(), 201);
        let Ok(body) = answer.json::<Value>().await else { return made };
        made.insert(body["id"].as_str().expect("an id").to_owned());
        count.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_under_load() {
    for home in Home::of_each_kind().await {
        let admin: ApiKey =
            home.json(&["bootstrap"])["admin_key"].as_str().expect("a key").parse().expect("an API key");
        let mut acknowledged = BTreeSet::new();
        for round in 0..ROUNDS {
            let mut server = Program::serve(&home, &[]);
            let client = SignerClient::new(&server.url, admin.clone()).expect("a client");
            let token = client.access_token(&[]).await.expect("a token").token.to_string();
            let made = Arc::new(AtomicU32::new(0));
            let make = |_| tokio::spawn(make_keys(server.url.clone(), token.clone(), made.clone()));
            let tasks: Vec<_> = (0..3).map(make).collect();
            eventually("keys are made", Duration::from_secs(60), || async {
                made.load(Ordering::Relaxed) >= KEYS_OF_A_LIFE
            })
            .await;
            // Each life ends at another point of what it does.
            tokio::time::sleep(Duration::from_millis(23 * round)).await;
            server.kill();
            for task in tasks {
                acknowledged.extend(task.await.expect("no panic"));
            }
            assert_whole(&home, &acknowledged).await;
        }
    }
}

#[tokio::test]
async fn commands_killed_at_any_moment() {
    for home in Home::of_each_kind().await {
        home.json(&["bootstrap"]);
        // How long one takes undisturbed, so that the kills fall all over it.
        let begun = Instant::now();
        home.json(&["key", "create", "--tenant", "default", "--role", "reader"]);
        let whole = begun.elapsed();
        let mut acknowledged = BTreeSet::new();
        let mut cut_short = 0;
        for round in 0..4 * ROUNDS {
            let mut command = home.program(&["key", "create", "--tenant", "default", "--role", "reader", "--json"]);
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program runs");
            std::thread::sleep(whole.mul_f64(1.2 * round as f64 / (4 * ROUNDS) as f64));
            // Gone already is as good.
            let _ = child.kill();
            let output = child.wait_with_output().expect("it ends");
            match serde_json::from_slice::<Value>(&output.stdout) {
                Ok(made) => acknowledged.extend([made["id"].as_str().expect("an id").to_owned()]),
                Err(_) => {
                    assert_eq!(output.status.signal(), Some(SIGKILL), "it {}", told(&output));
                    cut_short += 1;
                }
            }
        }
        assert!(cut_short > 0, "no command was killed in time");
        assert_whole(&home, &acknowledged).await;
    }
}

#[tokio::test]
async fn a_bootstrap_killed_at_any_moment_can_be_done_again() {
    let begun = Instant::now();
    Home::new().json(&["bootstrap"]);
    let whole = begun.elapsed();
    for round in 0..2 * ROUNDS {
        let home = Home::new();
        let mut command = home.program(&["bootstrap", "--json"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the program runs");
        std::thread::sleep(whole.mul_f64(round as f64 / (2 * ROUNDS) as f64));
        let _ = child.kill();
        let first = child.wait_with_output().expect("it ends");
        let second = home.run(&["bootstrap", "--json"]);
        let store = Store::open(home.policy()).await.expect("the database opens");
        let tenants = store.tenants().await.expect("tenants");
        assert_eq!((tenants.len(), tenants[0].settings.limits), (1, TenantSettings::default().limits));
        // All of it or nothing: the second did it, or found it done.
        match second.status.code() {
            Some(0) => assert!(serde_json::from_slice::<Value>(&first.stdout).is_err(), "both say they did it"),
            code => assert_eq!(code, Some(3), "it {}", told(&second)),
        }
        assert_eq!(store.keys().await.expect("keys").len(), 2);
        assert_whole(&home, &BTreeSet::new()).await;
    }
}
