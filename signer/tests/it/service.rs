//! The HTTP service, through its client where that can say it and by hand where it can't.

use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use vecmill_signer::claims::{Digest, JobId, Scope};
use vecmill_signer::client::{ApiKey, ClientError, GrantRequest, SignerClient};
use vecmill_signer::store::{NewKey, TenantSettings};
use vecmill_signer::verify::{Keys, RemoteKeys, Verifier};

use crate::support::{ISSUER, Signer, http};

fn settings() -> TenantSettings {
    TenantSettings { rows_per_job: 1000, ..TenantSettings::default() }
}

fn request() -> GrantRequest {
    GrantRequest {
        job: JobId::from_digest(&[1; 32]),
        manifest_sha256: Digest::of(b"manifest"),
        model: "vecmill/mini".to_owned(),
        dimensions: 64,
        rows: 1000,
        window_s: 3600,
        life: None,
        run: None,
    }
}

fn refused(error: ClientError) -> (u16, String) {
    match error {
        ClientError::Refused { status, error, .. } => (status, error),
        other => panic!("not a refusal: {other}"),
    }
}

/// Posts a form to the token endpoint by hand.
async fn post_form(signer: &Signer, form: &[(&str, &str)]) -> Response {
    let request = http().post(format!("{}/oauth/token", signer.url())).form(form);
    request.send().await.expect("an answer")
}

async fn new_key(signer: &Signer, role: &str, expires_s: Option<u64>) -> ApiKey {
    let new = NewKey { tenant: "acme".parse().expect("a name"), role: role.to_owned(), expires_s };
    signer.store.create_key(&signer.vault, &new, "test").await.expect("a key")
}

#[tokio::test]
async fn a_key_becomes_a_token_becomes_a_grant() {
    let signer = Signer::start(settings()).await;
    let client = signer.client(&signer.keys.writer);
    let access = client.access_token(&[Scope::JobsSubmit]).await.expect("a token");
    assert_eq!(access.tenant.as_str(), "acme");
    assert_eq!(access.scopes, [Scope::JobsSubmit]);
    assert!(!format!("{access:?} {client:?}").contains(access.token.as_str()));

    let grant = client.job_grant(&access, &request()).await.expect("a grant");
    assert_eq!((grant.tenant.as_str(), grant.lane), ("acme", 0));
    assert!(!format!("{grant:?}").contains(&grant.grant));

    let keys = Keys::Remote(RemoteKeys::new(&signer.url()).expect("an address"));
    let verified = Verifier::new(ISSUER.to_owned(), keys).grant(&grant.grant).await.expect("good");
    assert_eq!(verified.job(), &request().job);
    assert_eq!(verified.manifest_sha256(), request().manifest_sha256);
    assert_eq!(verified.limits(), settings().limits);
    assert_eq!(verified.expires_at(), grant.expires_at);
    assert_eq!(verified.expires_at() - verified.issued_at(), 3600);
    assert_eq!(verified.key_id(), signer.keys.writer.id());
    assert_eq!(verified.client_addr(), Some("127.0.0.1"));
}

#[tokio::test]
async fn the_form_works_as_rfc_6749_says() {
    let signer = Signer::start(settings()).await;
    let key = &signer.keys.writer;
    let grant_type = ("grant_type", "client_credentials");
    let id = ("client_id", key.id());

    let answer =
        post_form(&signer, &[grant_type, id, ("client_secret", key.expose()), ("scope", ""), ("other", "x")]).await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["cache-control"], "no-store");
    let body: Value = answer.json().await.expect("JSON");
    assert_eq!(
        (&body["token_type"], &body["expires_in"], &body["tenant"]),
        (&json!("Bearer"), &json!(300), &json!("acme"))
    );
    assert_eq!(body["scope"], "jobs:submit jobs:read vectors:read jobs:cancel embed");

    // `vm_`, the id's 16 characters, `_`: what follows is enough, for the id is in the form already.
    let answer = post_form(&signer, &[grant_type, id, ("client_secret", &key.expose()[20..])]).await;
    assert_eq!(answer.status(), StatusCode::OK);

    let with_secret = ("client_secret", key.expose());
    for (form, status, code) in [
        (vec![id, with_secret], 400, "invalid_request"),
        (vec![("grant_type", "password"), id, with_secret], 400, "unsupported_grant_type"),
        (vec![grant_type, grant_type, id, with_secret], 400, "invalid_request"),
        (vec![grant_type, id, with_secret, ("scope", "admin")], 400, "invalid_scope"),
        (vec![grant_type, id, with_secret, ("scope", "made:up")], 400, "invalid_scope"),
        (vec![grant_type], 401, "invalid_client"),
        (vec![grant_type, id], 401, "invalid_client"),
        (vec![grant_type, ("client_id", "other"), with_secret], 401, "invalid_client"),
        (vec![grant_type, id, ("client_secret", "wrong")], 401, "invalid_client"),
    ] {
        let answer = post_form(&signer, &form).await;
        assert_eq!(answer.status().as_u16(), status, "{code}");
        assert_eq!(answer.headers().contains_key("www-authenticate"), status == 401);
        assert_eq!(answer.headers()["cache-control"], "no-store");
        let body: Value = answer.json().await.expect("JSON");
        assert_eq!(body["error"], code);
        assert!(body["error_description"].is_string());
    }

    let both = http()
        .post(format!("{}/oauth/token", signer.url()))
        .basic_auth(key.id(), Some(key.expose()))
        .form(&[grant_type, with_secret]);
    assert_eq!(both.send().await.expect("an answer").status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn scopes_are_narrowed_never_widened() {
    let signer = Signer::start(settings()).await;
    let reader = new_key(&signer, "reader", None).await;
    let client = signer.client(&reader);
    let all = client.access_token(&[]).await.expect("a token");
    assert_eq!(all.scopes, [Scope::JobsRead, Scope::VectorsRead]);
    let one = client.access_token(&[Scope::JobsRead]).await.expect("a token");
    assert_eq!(one.scopes, [Scope::JobsRead]);
    let more = client.access_token(&[Scope::JobsRead, Scope::JobsSubmit]).await.expect_err("refused");
    assert_eq!(refused(more), (400, "invalid_scope".to_owned()));
    assert_eq!(
        refused(client.job_grant(&all, &request()).await.expect_err("refused")),
        (403, "insufficient_scope".to_owned())
    );

    let admin = signer.client(&signer.keys.admin).access_token(&[]).await.expect("a token");
    assert_eq!(admin.scopes, Scope::ALL);
}

#[tokio::test]
async fn keys_that_are_wrong_or_over_get_one_answer() {
    let signer = Signer::start(settings()).await;
    // A genuine key of another signer is unknown here. A wrong secret can't be typed, for the checksum would catch it; so
    // the digest that it is compared with is changed.
    let elsewhere = Signer::start(settings()).await;
    let unknown = elsewhere.keys.writer.clone();
    let wrong = new_key(&signer, "writer", None).await;
    signer.execute("UPDATE api_keys SET digest = zeroblob(32) WHERE id = ?", wrong.id()).await;
    let expired = new_key(&signer, "writer", Some(1)).await;
    let revoked = new_key(&signer, "writer", None).await;
    signer.store.revoke_key(None, revoked.id(), "test").await.expect("revoked");

    for (key, what) in [(unknown, "unknown"), (wrong, "wrong"), (expired, "expired"), (revoked, "revoked")] {
        let error = signer.client(&key).access_token(&[]).await.expect_err("refused");
        let told = error.to_string();
        assert!(told.contains("unknown, wrong, expired or revoked"), "{what}: {told}");
        assert_eq!(refused(error), (401, "invalid_client".to_owned()), "{what}");
    }
    let lasting = new_key(&signer, "writer", Some(u64::from(u32::MAX))).await;
    assert!(signer.client(&lasting).access_token(&[]).await.is_ok());
}

#[tokio::test]
async fn a_key_cut_off_after_its_token_gets_no_grant() {
    let signer = Signer::start(settings()).await;
    let key = new_key(&signer, "writer", None).await;
    let client = signer.client(&key);
    let access = client.access_token(&[]).await.expect("a token");
    client.job_grant(&access, &request()).await.expect("a grant");
    signer.store.revoke_key(None, key.id(), "test").await.expect("revoked");
    let error = client.job_grant(&access, &request()).await.expect_err("refused");
    assert_eq!(refused(error), (401, "invalid_token".to_owned()));

    let writer = signer.client(&signer.keys.writer);
    let access = writer.access_token(&[]).await.expect("a token");
    signer.store.set_active(&"acme".parse().expect("a name"), false, "test").await.expect("suspended");
    let error = writer.job_grant(&access, &request()).await.expect_err("refused");
    assert_eq!(refused(error), (401, "invalid_token".to_owned()));
    assert_eq!(refused(writer.access_token(&[]).await.expect_err("refused")).0, 401);
}

#[tokio::test]
async fn grants_are_refused_with_a_reason() {
    let signer = Signer::start(settings()).await;
    let client = signer.client(&signer.keys.writer);
    let access = client.access_token(&[]).await.expect("a token");
    for (request, status, code, says) in [
        (GrantRequest { model: "other/model".to_owned(), ..request() }, 403, "access_denied", "vecmill/mini"),
        (GrantRequest { rows: 1001, ..request() }, 403, "access_denied", "1000"),
        (GrantRequest { rows: 0, ..request() }, 400, "invalid_request", "one row"),
        (GrantRequest { dimensions: 8, ..request() }, 400, "invalid_request", "32 to 4096"),
        (GrantRequest { window_s: 86_401, ..request() }, 400, "invalid_request", "86400"),
    ] {
        let error = client.job_grant(&access, &request).await.expect_err("refused");
        assert!(error.to_string().contains(says), "{error}");
        assert!(!error.is_transient());
        assert_eq!(refused(error), (status, code.to_owned()));
    }
}

#[tokio::test]
async fn the_grant_endpoint_reads_strictly() {
    let signer = Signer::start(settings()).await;
    let access = signer.client(&signer.keys.writer).access_token(&[]).await.expect("a token");
    let http = http();
    let url = format!("{}/v1/grants", signer.url());
    let mut named = serde_json::to_value(request()).expect("JSON");
    named["tenant"] = json!("globex");
    for body in [named, json!({}), json!("x")] {
        let answer = http.post(&url).bearer_auth(access.token.as_str()).json(&body).send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    }
    for token in [None, Some("Bearer x.y.z"), Some("Bearer"), Some("Basic eDp5")] {
        let mut asked = http.post(&url).json(&request());
        if let Some(token) = token {
            asked = asked.header("authorization", token);
        }
        let answer = asked.send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{token:?}");
        assert!(answer.headers()["www-authenticate"].to_str().expect("ASCII").starts_with("Bearer"));
    }
    let huge = http.post(&url).bearer_auth(access.token.as_str()).json(&"x".repeat(20_000)).send().await;
    assert_eq!(huge.expect("an answer").status(), StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn forwarded_addresses_are_not_believed() {
    let signer = Signer::start(settings()).await;
    let key = &signer.keys.writer;
    let answer = http()
        .post(format!("{}/oauth/token", signer.url()))
        .header("x-forwarded-for", "203.0.113.9")
        .header("forwarded", "for=203.0.113.9")
        .basic_auth(key.id(), Some(key.expose()))
        .form(&[("grant_type", "client_credentials")])
        .send()
        .await
        .expect("an answer");
    let body: Value = answer.json().await.expect("JSON");
    let keys = Keys::Remote(RemoteKeys::new(&signer.url()).expect("an address"));
    let verifier = Verifier::new(ISSUER.to_owned(), keys);
    let verified = verifier.access(body["access_token"].as_str().expect("a token")).await.expect("good");
    assert_eq!(verified.client_addr(), Some("127.0.0.1"));
}

#[tokio::test]
async fn open_endpoints_answer() {
    let signer = Signer::start(settings()).await;
    for (path, status) in [("healthz", 200), ("readyz", 200), (".well-known/jwks.json", 200), ("nothing", 404)] {
        let answer = http().get(format!("{}/{path}", signer.url())).send().await.expect("an answer");
        assert_eq!(answer.status().as_u16(), status, "{path}");
    }
    let jwks = http().get(format!("{}/.well-known/jwks.json", signer.url())).send().await.expect("an answer");
    assert_eq!(jwks.headers()["cache-control"], "public, max-age=300");
    let jwks: Value = jwks.json().await.expect("JSON");
    assert_eq!(jwks["keys"][0]["crv"], "Ed25519");
    assert!(jwks["keys"][0].get("d").is_none(), "no private part");
}

#[tokio::test]
async fn a_signer_that_is_down_is_said_to_be_so() {
    let signer = Signer::start(settings()).await;
    let (url, key) = (signer.url(), signer.keys.writer.clone());
    signer.stop().await;
    let error = SignerClient::new(&url, key.clone()).expect("a client").access_token(&[]).await.expect_err("down");
    assert!(matches!(error, ClientError::Unreachable { .. }) && error.is_transient());
    assert!(!format!("{error:?}").contains(key.expose()));
}
