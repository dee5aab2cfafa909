//! The endpoints of OAuth's family, to the letter of their RFCs.

use reqwest::StatusCode;
use serde_json::{Value, json};
use vecmill_signer::client::ApiKey;
use vecmill_signer::store::TenantSettings;

use crate::support::{ISSUER, Signer, http};

async fn form(signer: &Signer, path: &str, key: &ApiKey, form: &[(&str, &str)]) -> (StatusCode, Value) {
    let request = http().post(format!("{}{path}", signer.url())).basic_auth(key.id(), Some(key.expose())).form(form);
    let answer = request.send().await.expect("an answer");
    assert_eq!(answer.headers()["cache-control"], "no-store");
    let status = answer.status();
    (status, answer.json().await.unwrap_or(Value::Null))
}

async fn introspect(signer: &Signer, key: &ApiKey, token: &str) -> Value {
    let (status, body) = form(signer, "/oauth/introspect", key, &[("token", token)]).await;
    assert_eq!(status, StatusCode::OK);
    body
}

#[tokio::test]
async fn metadata_leads_to_every_endpoint() {
    let signer = Signer::start(TenantSettings::default()).await;
    let answer = signer.ask(None, "GET", "/.well-known/oauth-authorization-server", None).await;
    assert_eq!(answer.status, 200);
    assert!(answer.headers["content-type"].to_str().expect("ASCII").starts_with("application/json"));
    let metadata = answer.body;
    assert_eq!(metadata["issuer"], ISSUER);
    assert_eq!(metadata["grant_types_supported"], json!(["client_credentials"]));
    assert!(metadata["scopes_supported"].as_array().expect("scopes").contains(&json!("jobs:submit")));
    // Where nothing else is set, it is reached where it listens.
    for (name, path) in [
        ("token_endpoint", "/oauth/token"),
        ("introspection_endpoint", "/oauth/introspect"),
        ("revocation_endpoint", "/oauth/revoke"),
        ("jwks_uri", "/.well-known/jwks.json"),
    ] {
        let url = metadata[name].as_str().expect("an address");
        assert!(url.starts_with("http://127.0.0.1") && url.ends_with(path), "{url}");
        let found = signer.ask(None, "POST", path, None).await.status;
        assert!(found != 404, "{name}");
    }
}

#[tokio::test]
async fn documents_are_cached_and_asked_for_by_their_tags() {
    let signer = Signer::start(TenantSettings::default()).await;
    for (path, caching) in [("/.well-known/jwks.json", "public, max-age=300"), ("/v1/revocations/2", "no-cache")] {
        let url = format!("{}{path}", signer.url());
        let first = http().get(&url).send().await.expect("an answer");
        assert_eq!(
            (first.status(), &first.headers()["cache-control"]),
            (StatusCode::OK, &caching.parse().expect("ASCII"))
        );
        let tag = first.headers()["etag"].clone();
        assert!(!first.bytes().await.expect("a body").is_empty());
        let again = http().get(&url).header("if-none-match", &tag).send().await.expect("an answer");
        assert_eq!((again.status(), &again.headers()["etag"]), (StatusCode::NOT_MODIFIED, &tag));
        assert!(again.bytes().await.expect("a body").is_empty());
        let other = http().get(&url).header("if-none-match", "\"other\"").send().await.expect("an answer");
        assert_eq!(other.status(), StatusCode::OK);
    }
    let jwks = signer.ask(None, "GET", "/.well-known/jwks.json", None).await;
    assert_eq!(jwks.headers["content-type"], "application/jwk-set+json");
}

#[tokio::test]
async fn introspection_tells_a_token_to_its_own_tenant() {
    let signer = Signer::start(TenantSettings::default()).await;
    let (key, sibling, stranger) = (
        signer.key("globex", "writer").await,
        signer.key("globex", "reader").await,
        signer.key("initech", "admin").await,
    );
    let token = signer.token(&key).await;
    let told = introspect(&signer, &sibling, &token).await;
    assert_eq!(
        (&told["active"], &told["sub"], &told["client_id"], &told["iss"], &told["aud"], &told["token_type"]),
        (&json!(true), &json!("globex"), &json!(key.id()), &json!(ISSUER), &json!("vecmill-api"), &json!("Bearer"))
    );
    assert_eq!(told["scope"], "jobs:submit jobs:read vectors:read jobs:cancel embed");
    assert_eq!(told["exp"].as_u64().expect("a time") - told["iat"].as_u64().expect("a time"), 300);
    let grant = signer.grant(&key, 1).await;
    let told = introspect(&signer, &key, &grant).await;
    assert_eq!((&told["active"], &told["typ"], &told["rows"]), (&json!(true), &json!("job-grant+jwt"), &json!(10)));

    // To another tenant it is as inactive as one that never was, and nothing more is said.
    let inactive = json!({"active": false});
    for (key, token) in
        [(&stranger, token.as_str()), (&stranger, &grant), (&key, "x.y.z"), (&key, "x"), (&key, key.expose())]
    {
        assert_eq!(introspect(&signer, key, token).await, inactive);
    }
    assert_eq!(introspect(&signer, &signer.keys.admin, &token).await["active"], true, "the operator's admin sees any");
    assert_eq!(introspect(&signer, &signer.keys.writer, &token).await, inactive, "its writer does not");

    for (fields, status) in [(vec![], 400), (vec![("token", "")], 400), (vec![("token", "a"), ("token", "b")], 400)] {
        let (told, body) = form(&signer, "/oauth/introspect", &key, &fields).await;
        assert_eq!((told.as_u16(), &body["error"]), (status, &json!("invalid_request")));
    }
    let nobody = http().post(format!("{}/oauth/introspect", signer.url())).form(&[("token", &token)]).send().await;
    assert_eq!(nobody.expect("an answer").status(), StatusCode::UNAUTHORIZED);

    // A key's end ends its tokens' activity at once.
    signer.store.revoke_key(None, key.id(), "test").await.expect("revoked");
    assert_eq!(introspect(&signer, &sibling, &token).await, inactive);
    assert_eq!(introspect(&signer, &sibling, &grant).await, inactive);
}

#[tokio::test]
async fn revocation_is_for_whom_a_token_was_issued_to_and_admins() {
    let signer = Signer::start(TenantSettings::default()).await;
    let (key, sibling, admin, stranger) = (
        signer.key("globex", "writer").await,
        signer.key("globex", "writer").await,
        signer.key("globex", "admin").await,
        signer.key("initech", "admin").await,
    );
    let active = async |token: &str| introspect(&signer, &admin, token).await["active"] == true;
    let revoke = async |key: &ApiKey, token: &str| {
        form(&signer, "/oauth/revoke", key, &[("token", token), ("token_type_hint", "access_token")]).await.0.as_u16()
    };

    let (first, second, job) = (signer.token(&key).await, signer.token(&key).await, signer.grant(&key, 1).await);
    // RFC 7009, 2.2: a token that means nothing is answered like one that was revoked.
    assert_eq!(revoke(&key, "x.y.z").await, 200);
    assert_eq!(revoke(&stranger, &first).await, 200);
    assert!(active(&first).await, "another tenant's word changes nothing");
    assert_eq!(revoke(&sibling, &first).await, 403);
    assert!(active(&first).await);
    assert_eq!(revoke(&key, &first).await, 200);
    assert!(!active(&first).await && active(&second).await);
    assert_eq!(revoke(&key, &first).await, 200, "twice is harmless");
    let used = signer.ask(Some(&first), "POST", "/v1/grants", Some(json!({}))).await;
    assert_eq!((used.status, &used.body["error"]), (401, &json!("invalid_token")));
    assert_eq!(revoke(&admin, &second).await, 200, "the tenant's admin may");
    assert!(!active(&second).await);
    assert_eq!(revoke(&key, &job).await, 200, "grants too");
    assert!(!active(&job).await);
    assert_eq!(form(&signer, "/oauth/revoke", &key, &[]).await.0.as_u16(), 400);
}
