//! Administration by command: every command as an operator types it, on both databases.

use serde_json::json;
use vecmill_signer::client::ApiKey;

use crate::program::{json_of, printed};
use crate::support::Home;

/// Standard error of a command that must fail with `code`.
fn refused(home: &Home, arguments: &[&str], code: i32) -> String {
    let output = home.run(arguments);
    let told = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {told}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    told
}

/// What a command prints for people.
fn table(home: &Home, arguments: &[&str]) -> String {
    printed(&home.run(arguments))
}

#[test]
fn before_the_bootstrap_there_is_nothing() {
    let told = refused(&Home::new(), &["tenant", "list"], 1);
    assert!(told.contains("bootstrap"), "{told}");
}

#[tokio::test]
async fn tenants_limits_keys_and_roles() {
    for home in Home::of_each_kind().await {
        home.json(&["bootstrap", "--tenant", "acme"]);
        let made = home.json(&["tenant", "create", "globex", "--tokens-per-minute", "1000", "--models", "a,b"]);
        assert_eq!(
            (&made["ordinal"], &made["limits"]["tokens_burst"], &made["models"]),
            (&json!(1), &json!(1000), &json!(["a", "b"]))
        );
        refused(&home, &["tenant", "create", "globex"], 1);
        refused(&home, &["tenant", "create", "Not_A_Name"], 2);
        let told = refused(&home, &["tenant", "create", "initech", "--rows-per-job", "0"], 2);
        assert!(told.contains("rows-per-job"), "{told}");

        let set = home.json(&["limit", "set", "globex", "--concurrent-jobs", "7", "--sources", "192.0.2.0/24,::1"]);
        assert_eq!(
            (&set["limits"]["concurrent_jobs"], &set["sources"]),
            (&json!(7), &json!(["192.0.2.0/24", "::1/128"]))
        );
        assert_eq!(set["limits"]["tokens_per_minute"], 1000, "what is not named stays");
        let told = refused(&home, &["limit", "set", "globex"], 2);
        assert!(told.contains("at least one"), "{told}");
        refused(&home, &["limit", "set", "globex", "--sources", "192.0.2.1/24"], 2);
        assert!(refused(&home, &["limit", "show", "nobody"], 1).contains("no tenant nobody"));
        assert_eq!(set["limits"]["stored_bytes"], 1_u64 << 40);
        let set = home.json(&["limit", "set", "globex", "--stored-bytes", "none"]);
        assert!(set["limits"].get("stored_bytes").is_none(), "{set}");
        refused(&home, &["limit", "set", "globex", "--stored-bytes", "many"], 2);
        let shown = table(&home, &["limit", "show", "globex"]);
        assert!(shown.contains("stored-bytes         none\n"), "{shown}");
        assert!(shown.contains("concurrent-jobs      7\n") && shown.contains("192.0.2.0/24, ::1/128"), "{shown}");

        home.json(&["role", "create", "embedder", "--scopes", "embed,jobs:read"]);
        assert!(table(&home, &["role", "list"]).contains("embedder  your own  jobs:read embed"));
        refused(&home, &["role", "create", "pilot", "--scopes", "fly"], 2);
        refused(&home, &["role", "set", "admin", "--scopes", "embed"], 1);

        let made = home.json(&["key", "create", "--tenant", "globex", "--role", "embedder", "--expires-days", "1"]);
        let key: ApiKey = made["key"].as_str().expect("a key").parse().expect("well-formed");
        for (tenant, role) in [("nobody", "reader"), ("globex", "king")] {
            refused(&home, &["key", "create", "--tenant", tenant, "--role", role], 1);
        }
        let rotated = home.json(&["key", "rotate", key.id(), "--overlap-hours", "1"]);
        assert_eq!((&rotated["old_id"], &rotated["role"]), (&json!(key.id()), &json!("embedder")));
        let successor: ApiKey = rotated["key"].as_str().expect("a key").parse().expect("well-formed");
        assert!(home.json(&["key", "revoke", key.id()])["revoked_s"].is_u64());
        assert!(refused(&home, &["key", "revoke", "nothing"], 1).contains("key list"));
        let listed = table(&home, &["key", "list", "--tenant", "globex"]);
        assert!(listed.contains("revoked 2") && listed.contains("expires 2") && !listed.contains("acme"), "{listed}");
        for secret in [&key, &successor] {
            assert!(!listed.contains(&secret.expose()[20..]));
        }
        home.json(&["job", "revoke", &"ab".repeat(16), "--tenant", "globex"]);
        refused(&home, &["job", "revoke", "x", "--tenant", "globex"], 2);

        assert_eq!(home.json(&["tenant", "suspend", "globex"])["active"], false);
        assert!(table(&home, &["tenant", "list"]).contains("suspended"));
        assert_eq!(home.json(&["tenant", "resume", "globex"])["epoch"], 1);
        assert_eq!(home.json(&["tenant", "void-tokens", "globex"])["epoch"], 2);
        assert_eq!(home.json(&["tenant", "show", "globex"])["epoch"], 2);

        let audit = home.json(&["audit", "--tenant", "globex", "--limit", "1000"]);
        let actions: Vec<_> = audit
            .as_array()
            .expect("events")
            .iter()
            .rev()
            .map(|event| event["action"].as_str().expect("an action"))
            .collect();
        assert_eq!(
            actions,
            [
                "tenant.create",
                "limit.set",
                "limit.set",
                "key.create",
                "key.create",
                "key.rotate",
                "key.revoke",
                "job.revoke",
                "tenant.suspend",
                "tenant.resume",
                "tenant.void-tokens"
            ]
        );
        assert!(
            audit
                .as_array()
                .expect("events")
                .iter()
                .all(|event| event["actor"].as_str().expect("who").starts_with("cli:"))
        );
        let shown = table(&home, &["audit", "--tenant", "globex"]);
        assert!(shown.contains("limits.concurrent_jobs: 100 -> 7"), "only what changed: {shown}");
        assert_eq!(table(&home, &["audit", "--limit", "2"]).lines().count(), 3);
    }
}

#[tokio::test]
async fn signing_keys() {
    for home in Home::of_each_kind().await {
        home.json(&["bootstrap"]);
        let first = home.json(&["signing-key", "list"])[0]["kid"].as_str().expect("a kid").to_owned();
        let next = home.json(&["signing-key", "rotate"])["kid"].as_str().expect("a kid").to_owned();
        let listed = table(&home, &["signing-key", "list"]);
        assert!(listed.contains("published") && listed.contains("signing"), "{listed}");
        refused(&home, &["signing-key", "retire", &first], 1);
        assert_eq!(home.json(&["signing-key", "retire", &next])["state"], "retired");
        assert_eq!(home.json(&["signing-key", "withdraw", &first])["state"], "withdrawn");
        refused(&home, &["signing-key", "withdraw", "nothing"], 1);
        // Keys can be made while no key signs.
        home.json(&["key", "create", "--tenant", "default", "--role", "reader"]);
    }
}

#[tokio::test]
async fn the_database_is_named_once_and_its_password_nowhere() {
    let home = Home::on_postgres().await;
    home.json(&["bootstrap"]);
    let url = match home.policy() {
        vecmill_signer::store::Database::Postgres(url) => url,
        vecmill_signer::store::Database::File(_) => unreachable!("it is on Postgres"),
    };
    let both = home.program(&["tenant", "list"]).env("VECMILL_SIGNER_DATABASE", "x.db").output().expect("it runs");
    assert_eq!(both.status.code(), Some(2));
    let flag = Home::new();
    let told = refused(&flag, &["tenant", "list", "--database", &url], 2);
    assert!(told.contains("VECMILL_SIGNER_DATABASE_URL"), "{told}");

    // From a file, as secrets are mounted.
    let file = home.folder.path().join("url");
    std::fs::write(&file, &url).expect("written");
    let mut command = home.program(&["tenant", "list", "--json"]);
    command.env_remove("VECMILL_SIGNER_DATABASE_URL").env("VECMILL_SIGNER_DATABASE_URL_FILE", &file);
    assert_eq!(json_of(&command.output().expect("it runs"))[0]["id"], "default");
    let mut command = home.program(&["tenant", "list"]);
    command.env_remove("VECMILL_SIGNER_DATABASE_URL").env("VECMILL_SIGNER_DATABASE_URL_FILE", "/nonexistent");
    assert_eq!(command.output().expect("it runs").status.code(), Some(2), "no falling back to a file");

    let password = url.split(':').nth(2).expect("a password").split('@').next().expect("a password").to_owned();
    let wrong = url.replace(&password, "wrong-secret");
    let mut command = home.program(&["tenant", "list"]);
    let output = command.env("VECMILL_SIGNER_DATABASE_URL", wrong).output().expect("it runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && !told.contains("wrong-secret") && !told.contains(&password), "{told}");
}

#[test]
fn a_file_that_is_no_database_is_told_as_that() {
    let home = Home::new();
    std::fs::write(home.database(), [7; 8192]).expect("written");
    let told = refused(&home, &["tenant", "list"], 1);
    assert!(told.contains("file is not a database"), "{told}");
}
