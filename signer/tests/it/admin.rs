//! Administration over HTTP: what the commands do, from afar.

use serde_json::json;
use vecmill_signer::client::ApiKey;
use vecmill_signer::store::TenantSettings;

use crate::revocation::SECONDS;
use crate::support::{Signer, eventually};

#[tokio::test]
async fn an_operator_runs_tenants_from_creation_to_suspension() {
    let signer = Signer::start(TenantSettings::default()).await;
    let admin = signer.token(&signer.keys.admin).await;
    let ask = async |method: &str, path: &str, body| {
        signer.ask(Some(&admin), method, &format!("/v1/admin{path}"), body).await
    };

    let made = ask("POST", "/tenants", Some(json!({"name": "globex", "settings": {"tokens_per_day": 5000}}))).await;
    assert_eq!((made.status, &made.body["limits"]["tokens_per_day"]), (201, &json!(5000)), "{}", made.body);
    assert_eq!(made.headers["cache-control"], "no-store");
    let again = ask("POST", "/tenants", Some(json!({"name": "globex"}))).await;
    assert_eq!((again.status, &again.body["error"]), (409, &json!("invalid_request")));
    for wrong in [json!({"name": "Not A Name"}), json!({}), json!({"name": "x", "settings": {"free": 1}}), json!([])] {
        assert_eq!(ask("POST", "/tenants", Some(wrong.clone())).await.status, 400, "{wrong}");
    }

    let made = ask("POST", "/tenants/globex/keys", Some(json!({"role": "admin"}))).await;
    assert_eq!(made.status, 201);
    let theirs: ApiKey = made.body["key"].as_str().expect("a key").parse().expect("an API key");
    let their_admin = signer.token(&theirs).await;
    let made =
        signer.ask(Some(&their_admin), "POST", "/v1/admin/tenants/globex/keys", Some(json!({"role": "reader"}))).await;
    assert_eq!(made.status, 201, "its own admin makes keys too");
    let reader: ApiKey = made.body["key"].as_str().expect("a key").parse().expect("an API key");
    let past = ask("POST", "/tenants/globex/keys", Some(json!({"role": "reader", "expires_s": 1}))).await;
    assert_eq!(past.status, 400);
    assert_eq!(ask("POST", "/tenants/nobody/keys", Some(json!({"role": "reader"}))).await.status, 404);

    let changed = ask("PATCH", "/tenants/globex/limits", Some(json!({"concurrent_jobs": 3}))).await;
    assert_eq!((changed.status, &changed.body["limits"]["concurrent_jobs"]), (200, &json!(3)));
    assert_eq!(changed.body["limits"]["tokens_per_day"], 5000);
    let wrong = ask("PATCH", "/tenants/globex/limits", Some(json!({"concurrent_jobs": 0}))).await;
    assert!(
        wrong.body["error_description"].as_str().expect("a sentence").contains("concurrent-jobs"),
        "{}",
        wrong.body
    );

    let path = format!("/tenants/globex/keys/{}", reader.id());
    let rotated = ask("POST", &format!("{path}/rotate"), Some(json!({"overlap_s": 0}))).await;
    assert_eq!((rotated.status, &rotated.body["old_id"]), (201, &json!(reader.id())));
    assert!(signer.client(&reader).access_token(&[]).await.is_err(), "without overlap the old one is over");
    let successor: ApiKey = rotated.body["key"].as_str().expect("a key").parse().expect("an API key");
    signer.token(&successor).await;
    let revoked = ask("POST", &format!("/tenants/globex/keys/{}/revoke", successor.id()), None).await;
    assert!(revoked.status == 200 && revoked.body["revoked_s"].is_u64());
    assert!(signer.client(&successor).access_token(&[]).await.is_err());
    let elsewhere = ask("POST", &format!("/tenants/globex/keys/{}/revoke", signer.keys.writer.id()), None).await;
    assert_eq!(elsewhere.status, 404, "a key is found under its own tenant only");

    let made = ask("POST", "/roles", Some(json!({"name": "embedder", "scopes": ["embed"]}))).await;
    assert_eq!(made.status, 201);
    assert_eq!(ask("PATCH", "/roles/embedder", Some(json!({"scopes": ["embed", "jobs:read"]}))).await.status, 200);
    assert_eq!(ask("PATCH", "/roles/embedder", Some(json!({"scopes": ["fly"]}))).await.status, 400);
    assert_eq!(ask("PATCH", "/roles/writer", Some(json!({"scopes": []}))).await.status, 409);
    assert_eq!(ask("DELETE", "/roles/embedder", None).await.status, 204);

    assert_eq!(ask("POST", "/tenants/acme/suspend", None).await.status, 403, "not the branch it sits on");
    let suspended = ask("POST", "/tenants/globex/suspend", None).await;
    assert_eq!((suspended.status, &suspended.body["active"]), (200, &json!(false)));
    assert!(signer.client(&theirs).access_token(&[]).await.is_err());
    let cut_off = signer.ask(Some(&their_admin), "GET", "/v1/admin/tenants/globex", None).await;
    assert_eq!(cut_off.status, 401, "a token from before is void at once");
    assert_eq!(ask("POST", "/tenants/globex/resume", None).await.status, 200);
    let fresh = signer.token(&theirs).await;
    assert_eq!(signer.ask(Some(&fresh), "GET", "/v1/admin/tenants/globex", None).await.status, 200);

    // Who, what, before, after; and a tenant's admin sees its own part of it.
    let audit = ask("GET", "/audit?limit=1000", None).await;
    let events = audit.body["events"].as_array().expect("events");
    let set = events.iter().find(|event| event["action"] == "limit.set").expect("recorded");
    assert_eq!(set["actor"], signer.keys.admin.id());
    assert_eq!(set["tenant"], "globex");
    assert_ne!(set["before"]["limits"]["concurrent_jobs"], 3);
    assert_eq!(set["after"]["limits"]["concurrent_jobs"], 3);
    let theirs_only = signer.ask(Some(&fresh), "GET", "/v1/admin/tenants/globex/audit?limit=1000", None).await;
    let theirs_only = theirs_only.body["events"].as_array().expect("events");
    assert!(!theirs_only.is_empty() && theirs_only.iter().all(|event| event["tenant"] == "globex"));
    assert_eq!(ask("GET", "/audit?limit=x", None).await.status, 400);
    let page = ask("GET", "/audit?limit=2", None).await.body["events"].clone();
    let before = page[1]["seq"].as_u64().expect("a number");
    let next = ask("GET", &format!("/audit?limit=1&before={before}"), None).await.body["events"].clone();
    assert_eq!(next[0]["seq"], before - 1);
}

#[tokio::test]
async fn signing_keys_are_rotated_and_withdrawn_from_afar() {
    let signer = Signer::start(TenantSettings::default()).await;
    let admin = signer.token(&signer.keys.admin).await;
    let keys =
        async || signer.ask(Some(&admin), "GET", "/v1/admin/signing-keys", None).await.body["signing_keys"].clone();
    let first = keys().await[0]["kid"].as_str().expect("a kid").to_owned();
    let made = signer.ask(Some(&admin), "POST", "/v1/admin/signing-keys/rotate", None).await;
    assert_eq!((made.status, &made.body["state"]), (201, &json!("published")));
    let published = signer.ask(None, "GET", "/.well-known/jwks.json", None).await;
    assert_eq!(published.body["keys"].as_array().expect("keys").len(), 2, "at once");
    let kid = made.body["kid"].as_str().expect("a kid");
    assert_eq!(
        signer.ask(Some(&admin), "POST", &format!("/v1/admin/signing-keys/{kid}/retire"), None).await.status,
        200
    );
    assert_eq!(
        signer.ask(Some(&admin), "POST", &format!("/v1/admin/signing-keys/{first}/retire"), None).await.status,
        409
    );
    let withdrawn = signer.ask(Some(&admin), "POST", &format!("/v1/admin/signing-keys/{first}/withdraw"), None).await;
    assert_eq!((withdrawn.status, &withdrawn.body["state"]), (200, &json!("withdrawn")));
    let after = signer.ask(Some(&admin), "GET", "/v1/admin/signing-keys", None).await;
    assert_eq!(after.status, 401, "the token that did it was signed with that key");
    // For five seconds nothing may sign; the answer says that it passes.
    let client = signer.client(&signer.keys.admin);
    eventually("the next key signs", SECONDS, || async { client.access_token(&[]).await.is_ok() }).await;
    let admin = signer.token(&signer.keys.admin).await;
    assert_eq!(signer.ask(Some(&admin), "GET", "/v1/admin/signing-keys", None).await.status, 200);
}

#[tokio::test]
async fn when_a_key_was_last_used_is_noted() {
    let signer = Signer::start(TenantSettings::default()).await;
    let (key, store) = (signer.keys.writer.clone(), signer.store.clone());
    let used = async || store.find_key(key.id()).await.expect("a database").expect("there").info.last_used_s;
    assert_eq!(used().await, None);
    signer.token(&key).await;
    signer.stop().await;
    let now = jiff::Timestamp::now().as_second() as u64;
    assert!(used().await.is_some_and(|at| at <= now && at + 60 > now), "written at the latest when the server stops");
}

#[tokio::test]
async fn a_tenant_bound_to_addresses_is_served_from_nowhere_else() {
    let signer = Signer::start(TenantSettings::default()).await;
    let key = signer.key("globex", "writer").await;
    let admin = signer.token(&signer.keys.admin).await;
    let before = signer.token(&key).await;
    let bind = async |sources: &[&str]| {
        let sources = json!({"sources": sources});
        let set = signer.ask(Some(&admin), "PATCH", "/v1/admin/tenants/globex/limits", Some(sources)).await;
        assert_eq!(set.status, 200, "{}", set.body);
    };
    bind(&["192.0.2.0/24", "2001:db8::/32"]).await;
    let refused = signer.client(&key).access_token(&[]).await.expect_err("from here it may not");
    assert!(refused.to_string().contains("address"), "{refused}");
    assert_eq!(signer.ask(Some(&before), "POST", "/v1/grants", Some(json!({}))).await.status, 403, "nor with a token");
    bind(&["192.0.2.0/24", "127.0.0.0/8"]).await;
    signer.token(&key).await;
    bind(&[]).await;
    signer.token(&key).await;
    let wrong = json!({"sources": ["127.0.0.1/8"]});
    assert_eq!(signer.ask(Some(&admin), "PATCH", "/v1/admin/tenants/globex/limits", Some(wrong)).await.status, 400);
}
