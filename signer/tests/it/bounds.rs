//! Bounds on what a tenant can make the signer keep and say, and on what anybody can read out of it.

use axum::http::StatusCode;
use serde_json::json;
use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use vecmill_signer::claims::{RevokedName, TenantId};
use vecmill_signer::store::{AuditFilter, NewKey, StoreError, TenantSettings};
use vecmill_signer::verify::Refusal;

use crate::program::told;
use crate::revocation::SECONDS;
use crate::support::{Home, Program, Signer, claims_of, eventually, grant_request, http, job};

/// Entries that the statement has of one tenant.
const ENTRIES: usize = 32;
const TENANTS: usize = 4096;

async fn statement(signer: &Signer) -> String {
    let answer = http().get(format!("{}/v1/revocations/2", signer.url())).send().await.expect("an answer");
    answer.text().await.expect("a JWT")
}

async fn entries(signer: &Signer) -> usize {
    let claims = claims_of(&statement(signer).await);
    claims["names"].as_array().expect("names").len() + claims["jobs"].as_array().expect("jobs").len()
}

async fn actions(signer: &Signer, tenant: &TenantId) -> Vec<String> {
    let filter = AuditFilter { tenant: Some(tenant.clone()), limit: 1000, ..AuditFilter::default() };
    signer.store.audit(&filter).await.expect("a database").into_iter().map(|event| event.action).collect()
}

#[tokio::test]
async fn many_revoked_tokens_become_one_entry_and_cost_no_job() {
    let signer = Signer::start(TenantSettings::default()).await;
    let verifier = signer.verifier();
    let (key, sibling) = (signer.key("globex", "writer").await, signer.key("globex", "writer").await);
    let globex: TenantId = "globex".parse().expect("a name");
    let grant = signer.grant(&sibling, 1).await;
    let client = signer.client(&sibling);
    let submission = client.submission(&client.access_token(&[]).await.expect("a token")).await.expect("a token");
    let (bystander, of_bystander) = (signer.key("initech", "writer").await, "good");
    let theirs = signer.token(&bystander).await;
    let mut tokens = Vec::new();
    for _ in 0..ENTRIES + 8 {
        tokens.push(signer.token(&key).await);
    }
    for token in &tokens {
        signer.revoke(&key, token).await;
        assert!(entries(&signer).await <= ENTRIES);
    }
    assert!(actions(&signer, &globex).await.contains(&"tenant.void-access-tokens".to_owned()));
    eventually("every token that was revoked is void", SECONDS, || async {
        for token in &tokens {
            if verifier.access(token).await.is_ok() {
                return false;
            }
        }
        true
    })
    .await;
    for token in &tokens {
        assert_eq!(verifier.access(token).await.expect_err("revoked"), Refusal::TokenRevoked);
        assert_eq!(signer.ask(Some(token), "POST", "/v1/submissions", None).await.status, 401);
    }
    verifier.grant(&grant).await.expect("the tenant's jobs go on");
    client.job_grant(&submission, &grant_request(2)).await.expect("and so do its batches");
    verifier.access(&theirs).await.expect(of_bystander);
    // Not in the second of it.
    eventually("whoever has a key logs in again", SECONDS, || async { client.access_token(&[]).await.is_ok() }).await;
    verifier.access(&signer.token(&key).await).await.expect("and that token is good");
}

#[tokio::test]
async fn many_revoked_keys_become_one_entry_and_cost_jobs_only_where_their_own_can_not_be_told() {
    for (with_grants, action) in [(false, "tenant.void-access-tokens"), (true, "tenant.void-tokens")] {
        let signer = Signer::start(TenantSettings::default()).await;
        let (verifier, globex) = (signer.verifier(), "globex".parse::<TenantId>().expect("a name"));
        let spared = signer.key("globex", "writer").await;
        let grant = signer.grant(&spared, 250).await;
        let mut of_revoked = Vec::new();
        for number in 0..ENTRIES as u8 + 4 {
            let key = signer.key("globex", "writer").await;
            // In the second in which tokens become void together none is given.
            let client = signer.client(&key);
            eventually("a login", SECONDS, || async { client.access_token(&[]).await.is_ok() }).await;
            of_revoked.push((signer.token(&key).await, None));
            if with_grants {
                of_revoked.last_mut().expect("one").1 = Some(signer.grant(&key, number).await);
            }
            signer.store.revoke_key(None, key.id(), "test").await.expect("revoked");
        }
        eventually("the signer has taken it up", SECONDS, || async { entries(&signer).await <= ENTRIES }).await;
        assert!(actions(&signer, &globex).await.iter().any(|done| done == action));
        eventually("the verifier has heard all of it", SECONDS, || async {
            for (token, grant) in &of_revoked {
                if verifier.access(token).await.is_ok() {
                    return false;
                }
                if let Some(grant) = grant
                    && verifier.grant(grant).await.is_ok()
                {
                    return false;
                }
            }
            true
        })
        .await;
        for (token, grant) in &of_revoked {
            assert!(verifier.access(token).await.is_err(), "{action}");
            if let Some(grant) = grant {
                assert!(verifier.grant(grant).await.is_err(), "{action}");
            }
        }
        assert_eq!(verifier.grant(&grant).await.is_ok(), !with_grants, "another key's job");
        verifier.access(&signer.token(&spared).await).await.expect("it logs in again");
    }
}

#[tokio::test]
async fn keys_are_made_at_a_rate_and_count_while_what_they_were_given_lives() {
    for home in Home::of_each_kind().await {
        let (store, vault, keys) = home.bootstrap(TenantSettings::default()).await;
        let acme: TenantId = "acme".parse().expect("a name");
        let new = NewKey { tenant: acme.clone(), role: "reader".to_owned(), expires_s: None };
        let mut made = 2;
        let refused = loop {
            match store.create_key(&vault, &new, "test").await {
                Ok(key) if made % 2 == 0 => drop(store.revoke_key(None, key.id(), "test").await.expect("revoked")),
                Ok(_) => {}
                Err(refused) => break refused,
            }
            made += 1;
        };
        assert!(
            matches!(refused, StoreError::TooFast { max: 200, wait_s, .. } if (1..=3600).contains(&wait_s)),
            "{refused}"
        );
        assert_eq!(made, 200, "those that were revoked count");
        let rotated = store.rotate_key(&vault, None, keys.writer.id(), 0, "test").await.expect_err("as for creating");
        assert!(matches!(rotated, StoreError::TooFast { .. }), "{rotated}");
        let other = NewKey { tenant: "globex".parse().expect("a name"), ..new };
        store.create_tenant(&other.tenant, &TenantSettings::default(), "test").await.expect("a tenant");
        store.create_key(&vault, &other, "test").await.expect("another tenant's");
    }
}

/// Fills the database up to the design's limits.
async fn fill(database: std::path::PathBuf) {
    let options = SqliteConnectOptions::new().filename(database);
    let mut connection = SqliteConnection::connect_with(&options).await.expect("a database");
    let now = jiff::Timestamp::now().as_second();
    sqlx::query(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
         INSERT INTO tenants (id, ordinal, epoch, epoch_matters_until_s, tokens_void_until_s, tokens_per_minute, tokens_burst,
          tokens_per_day, rows_per_job, window_s_max, created_s)
         SELECT 'tenant-' || i, i, 9223372036854775807, ?2 + 100000, ?2, 1, 1, 1, 1, 60, ?2 FROM n",
    )
    .bind(TENANTS as i64 - 1)
    .bind(now)
    .execute(&mut connection)
    .await
    .expect("tenants");
    sqlx::query(
        "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
         INSERT INTO revocations (kind, tenant, id, revoked_s, until_s)
         SELECT 'job', t.id, printf('%032x', n.i), ?2, ?2 + 100000 FROM tenants t, n WHERE t.id <> 'acme'",
    )
    .bind(ENTRIES as i64 - 1)
    .bind(now)
    .execute(&mut connection)
    .await
    .expect("revocations");
    connection.close().await.expect("closed");
}

#[tokio::test]
async fn at_the_limit_of_tenants_and_entries_verifiers_go_on() {
    let signer = Signer::start_after(TenantSettings::default(), fill).await;
    let said = statement(&signer).await;
    let counted = claims_of(&said);
    assert_eq!(counted["jobs"].as_array().expect("jobs").len(), (TENANTS - 1) * ENTRIES);
    assert_eq!(counted["tenants"].as_object().expect("tenants").len(), TENANTS - 1);
    println!("the statement has {} bytes", said.len());
    assert!(said.len() > 5 << 20, "{}", said.len());
    drop(counted);

    let verifier = signer.verifier();
    let (key, control) = (signer.keys.writer.clone(), signer.keys.admin.clone());
    let (token, grant, good) = (signer.token(&key).await, signer.grant(&key, 1).await, signer.token(&control).await);
    verifier.access(&token).await.expect("good");
    verifier.grant(&grant).await.expect("good");
    signer.store.revoke_key(None, key.id(), "test").await.expect("revoked");
    // As many seconds more as reading all of it may take on a busy machine.
    eventually("a revocation is heard of", SECONDS * 3, || async { verifier.grant(&grant).await.is_err() }).await;
    assert_eq!(verifier.access(&token).await.expect_err("its key"), Refusal::KeyRevoked);
    verifier.access(&good).await.expect("another's is good");
    let one_more =
        signer.store.create_tenant(&"one-more".parse().expect("a name"), &TenantSettings::default(), "test").await;
    assert!(matches!(one_more, Err(StoreError::TooMany { max: 4096, .. })), "{one_more:?}");
}

#[tokio::test]
async fn who_reads_the_statement_learns_no_name() {
    let signer = Signer::start(TenantSettings::default()).await;
    let key = signer.key("globex", "writer").await;
    let token = signer.token(&key).await;
    signer.revoke(&key, &token).await;
    let lost = signer.key("globex", "writer").await;
    let globex: TenantId = "globex".parse().expect("a name");
    signer.grant(&lost, 7).await;
    signer.store.revoke_key(None, lost.id(), "test").await.expect("revoked");
    signer.store.revoke_job(&globex, &job(7), "test").await.expect("revoked");
    signer.store.void_tokens(&"acme".parse().expect("a name"), "test").await.expect("voided");
    eventually("it says all of it", SECONDS, || async { entries(&signer).await == 3 }).await;
    let said = statement(&signer).await;
    let text = claims_of(&said).to_string();
    let token_id = claims_of(&token)["jti"].as_str().expect("an id").to_owned();
    for name in ["globex", "acme", lost.id(), job(7).as_str(), &token_id] {
        assert!(!text.contains(name), "{name} in {text}");
    }
    for name in [
        RevokedName::of_key(lost.id()),
        RevokedName::of_token(&token_id),
        RevokedName::of_job(&globex, &job(7)),
        RevokedName::of_tenant(&"acme".parse().expect("a name")),
    ] {
        assert!(text.contains(&String::from(name)));
    }
    let old = async |url: &str| {
        let answer = http().get(format!("{url}/v1/revocations")).send().await.expect("an answer");
        (answer.status().as_u16(), answer.text().await.expect("a body"))
    };
    assert_eq!(old(&signer.url()).await.0, 404, "nor as it was told before");

    // While programs of before are upgraded, for whom it is what it was.
    let asked_for = Program::serve(&signer.home, &[("VECMILL_SIGNER_OLD_REVOCATIONS", "true")]);
    let (status, said) = old(&asked_for.url).await;
    assert_eq!(status, 200);
    let said = claims_of(&said);
    assert_eq!(said["keys"], json!([lost.id()]));
    assert_eq!(said["tokens"], json!([token_id]));
    assert_eq!((&said["jobs"][0]["tenant"], &said["jobs"][0]["job"]), (&json!("globex"), &json!(job(7))));
    assert_eq!(said["tenants"], json!({"acme": 1}));
}

#[tokio::test]
async fn names_that_keys_on_s3_and_in_redis_begin_with_are_no_tenants() {
    let signer = Signer::start(TenantSettings::default()).await;
    let admin = signer.token(&signer.keys.admin).await;
    for name in TenantId::RESERVED {
        let asked = signer.ask(Some(&admin), "POST", "/v1/admin/tenants", Some(json!({"name": name}))).await;
        assert_eq!(asked.status, 409, "{name}: {}", asked.body);
        assert!(asked.body["error_description"].as_str().expect("a sentence").contains(name), "{}", asked.body);
    }
    let by_command = signer.home.run(&["tenant", "create", "audit"]);
    assert_eq!(by_command.status.code(), Some(1));
    let first = Home::new().run(&["bootstrap", "--tenant", "audit"]);
    assert_eq!(first.status.code(), Some(1));
    // One of before.
    signer
        .execute(
            "INSERT INTO tenants (id, ordinal, tokens_per_minute, tokens_burst, tokens_per_day, rows_per_job, window_s_max, created_s)
             VALUES (?, 7, 1, 1, 1, 1, 60, 1)",
            "audit",
        )
        .await;
    let home = signer.stop().await;
    let output = home.run(&["serve", "--listen", "127.0.0.1:0"]);
    assert_eq!(output.status.code(), Some(1));
    let said = told(&output);
    assert!(said.contains("called audit") && said.contains("Create a tenant of another name"), "{said}");
}

#[tokio::test]
async fn every_field_of_every_body_has_a_bound() {
    let signer = Signer::start(TenantSettings::default()).await;
    let admin = signer.token(&signer.keys.admin).await;
    let long = "a".repeat(10_000);
    let keys = "/v1/admin/tenants/acme/keys";
    for (method, path, body, status) in [
        ("POST", "/v1/admin/tenants", json!({"name": "a".repeat(64)}), 400),
        ("POST", "/v1/admin/tenants", json!({"name": "x", "settings": {"models": ["a".repeat(201)]}}), 409),
        ("POST", "/v1/admin/tenants", json!({"name": "x", "settings": {"models": vec!["a"; 65]}}), 409),
        ("POST", "/v1/admin/tenants", json!({"name": "x", "settings": {"sources": vec!["::1"; 65]}}), 409),
        ("POST", "/v1/admin/tenants", json!({"name": "x", "settings": {"sources": [long]}}), 400),
        ("POST", keys, json!({"role": long}), 404),
        ("POST", keys, json!({"role": "reader", "expires_s": u64::MAX}), 409),
        ("POST", "/v1/admin/roles", json!({"name": long, "scopes": []}), 409),
        ("POST", "/v1/admin/roles", json!({"name": "x", "scopes": vec!["embed"; 8]}), 400),
        ("PATCH", "/v1/admin/roles/x", json!({"scopes": vec!["embed"; 8]}), 400),
        ("POST", "/v1/embed-tokens", json!({"model": long}), 403),
        ("POST", "/v1/grants", json!({"job": long}), 400),
        ("POST", keys, json!({"role": "a".repeat(17_000)}), 413),
    ] {
        let answer = signer.ask(Some(&admin), method, path, Some(body)).await;
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.body);
        assert!(answer.body.to_string().len() < 1000, "nothing long is repeated: {}", answer.body);
    }
    for path in [format!("{keys}/{long}/revoke"), format!("/v1/admin/roles/{long}")] {
        let method = if path.ends_with("revoke") { "POST" } else { "DELETE" };
        let answer = signer.ask(Some(&admin), method, &path, None).await;
        assert_eq!(answer.status, 404);
        assert!(answer.body.to_string().len() < 1000, "{}", answer.body);
    }
    let scope = ("scope", "embed ".repeat(2000));
    let form = [("grant_type", "client_credentials".to_owned()), scope];
    let key = &signer.keys.writer;
    let asked =
        http().post(format!("{}/oauth/token", signer.url())).basic_auth(key.id(), Some(key.expose())).form(&form);
    assert_eq!(asked.send().await.expect("an answer").status(), StatusCode::BAD_REQUEST);
}
