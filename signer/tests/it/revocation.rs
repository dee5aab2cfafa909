//! What is revoked stops being believed within seconds by verifiers that keep keys and statements of their own, with the
//! signer up, and is not believed for longer than the bound with the signer down.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use vecmill_signer::claims::RevokedName;
use vecmill_signer::store::TenantSettings;
use vecmill_signer::verify::{Keys, Refusal, RemoteKeys, Verifier};

use crate::support::{Forger, ISSUER, NOW, Signer, access_claims, eventually, header, http, job, with};

/// Verifiers ask every 2 s, and a signer looks at its database twice a second. The rest is room for a busy machine.
pub(crate) const SECONDS: Duration = Duration::from_secs(8);

fn verifier(url: &str) -> Verifier {
    Verifier::new(ISSUER.to_owned(), Keys::Remote(RemoteKeys::new(url).expect("an address")))
}

/// Waits until the verifier refuses the token, and gives the reason.
async fn refused(verifier: &Verifier, token: &str, what: &str) -> Refusal {
    let took = eventually(what, SECONDS, || async { verifier.access(token).await.is_err() }).await;
    println!("{what}: refused after {took:?}");
    verifier.access(token).await.expect_err("refused")
}

async fn refused_grant(verifier: &Verifier, token: &str, what: &str) -> Refusal {
    let took = eventually(what, SECONDS, || async { verifier.grant(token).await.is_err() }).await;
    println!("{what}: refused after {took:?}");
    verifier.grant(token).await.expect_err("refused")
}

#[tokio::test]
async fn keys_tokens_jobs_and_tenants() {
    let signer = Signer::start(TenantSettings::default()).await;
    let verifier = verifier(&signer.url());
    let (key, other) = (signer.key("globex", "writer").await, signer.key("initech", "writer").await);
    let control = (signer.token(&other).await, signer.grant(&other, 1).await);
    let admin = signer.token(&signer.keys.admin).await;
    let post = async |path: &str| {
        let answer = signer.ask(Some(&admin), "POST", &format!("/v1/admin/tenants/globex{path}"), None).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
    };
    let good = async || {
        verifier.access(&control.0).await.expect("another tenant's token is as good as ever");
        verifier.grant(&control.1).await.expect("and so is its grant, of a job with the same name");
    };

    // One token, by whom it was issued to (RFC 7009).
    let (token, second) = (signer.token(&key).await, signer.token(&key).await);
    verifier.access(&token).await.expect("good");
    let form = [("token", token.as_str())];
    let revoke =
        http().post(format!("{}/oauth/revoke", signer.url())).basic_auth(key.id(), Some(key.expose())).form(&form);
    assert_eq!(revoke.send().await.expect("an answer").status(), StatusCode::OK);
    assert_eq!(refused(&verifier, &token, "one token").await, Refusal::TokenRevoked);
    verifier.access(&second).await.expect("the key's other token is good");
    good().await;

    // One job.
    let (first, neighbour) = (signer.grant(&key, 1).await, signer.grant(&key, 2).await);
    verifier.grant(&first).await.expect("good");
    post(&format!("/jobs/{}/revoke", job(1))).await;
    assert_eq!(refused_grant(&verifier, &first, "one job").await, Refusal::JobRevoked);
    verifier.grant(&neighbour).await.expect("another job of it is good");
    good().await;
    // Submitted again it is granted again: but not within the second of its revocation, which is told to be temporary.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    verifier.grant(&signer.grant(&key, 1).await).await.expect("a later grant is good");

    // The tenant's tokens, all of them; then new ones are good.
    post("/void-tokens").await;
    assert_eq!(refused(&verifier, &second, "a tenant's tokens").await, Refusal::TenantCutOff);
    assert_eq!(verifier.grant(&neighbour).await.expect_err("its grants too"), Refusal::TenantCutOff);
    let (token, late) = (signer.token(&key).await, signer.grant(&key, 3).await);
    verifier.access(&token).await.expect("good");
    verifier.grant(&late).await.expect("good");
    good().await;

    // The key.
    let sibling = signer.key("globex", "writer").await;
    let spared = signer.token(&sibling).await;
    post(&format!("/keys/{}/revoke", key.id())).await;
    assert_eq!(refused(&verifier, &token, "a key").await, Refusal::KeyRevoked);
    assert_eq!(verifier.grant(&late).await.expect_err("its grants too"), Refusal::KeyRevoked);
    verifier.access(&spared).await.expect("the tenant's other key is good");

    // The tenant itself.
    post("/suspend").await;
    assert_eq!(refused(&verifier, &spared, "a tenant").await, Refusal::TenantCutOff);
    good().await;

    // A verifier that starts now knows all of it before it says yes to anything.
    let late_comer = self::verifier(&signer.url());
    assert_eq!(late_comer.access(&spared).await.expect_err("refused"), Refusal::TenantCutOff);
    assert_eq!(late_comer.grant(&first).await.expect_err("refused"), Refusal::TenantCutOff);
    late_comer.access(&control.0).await.expect("good");
}

#[tokio::test]
async fn a_withdrawn_signing_key_is_believed_nowhere_and_its_successor_everywhere() {
    let signer = Signer::start(TenantSettings::default()).await;
    let verifier = verifier(&signer.url());
    let key = signer.keys.writer.clone();
    let (token, job) = (signer.token(&key).await, signer.grant(&key, 1).await);
    verifier.access(&token).await.expect("good");
    let kid = signer.store.list_signing_keys().await.expect("a database")[0].kid.clone();
    signer.home.json(&["signing-key", "withdraw", &kid]);
    assert_eq!(refused(&verifier, &token, "a signing key").await, Refusal::SigningKeyWithdrawn);
    assert_eq!(verifier.grant(&job).await.expect_err("refused"), Refusal::SigningKeyWithdrawn);
    let client = signer.client(&key);
    let took =
        eventually("tokens are minted again", SECONDS * 2, || async { client.access_token(&[]).await.is_ok() }).await;
    println!("tokens are minted again after {took:?}");
    verifier.access(&signer.token(&key).await).await.expect("the successor was known before its first token came");
}

#[tokio::test]
async fn a_rotation_breaks_nothing_that_was_signed_before() {
    let signer = Signer::start(TenantSettings::default()).await;
    let verifier = verifier(&signer.url());
    let key = signer.keys.writer.clone();
    let (token, job) = (signer.token(&key).await, signer.grant(&key, 1).await);
    verifier.access(&token).await.expect("good");
    let made = signer.home.json(&["signing-key", "rotate"]);
    // Five and a half minutes are not waited for here: the new key's beginning is moved to now, for the signer to take up.
    signer
        .execute(
            "UPDATE signing_keys SET signs_from_s = 1 + created_s WHERE kid = ?",
            made["kid"].as_str().expect("a kid"),
        )
        .await;
    signer.execute("UPDATE state SET seq = seq + 1 WHERE id = ?", "1").await;
    let kid_of = |token: &str| -> String {
        let header = token.split('.').next().expect("a header");
        let header = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, header).expect("base64");
        let header: Value = serde_json::from_slice(&header).expect("JSON");
        header["kid"].as_str().expect("a kid").to_owned()
    };
    eventually("the new key signs", SECONDS, || async {
        Some(kid_of(&signer.token(&key).await).as_str()) == made["kid"].as_str()
    })
    .await;
    let fresh = signer.token(&key).await;
    eventually("what it signs is good", SECONDS, || async { verifier.access(&fresh).await.is_ok() }).await;
    verifier.access(&token).await.expect("and so is what the old one signed");
    verifier.grant(&job).await.expect("jobs under way go on");
}

#[tokio::test]
async fn with_the_signer_away_nothing_is_believed_beyond_the_bound() {
    let mut signer = Signer::start(TenantSettings::default()).await;
    let bound = Duration::from_secs(9);
    let verifier = verifier(&signer.url()).with_staleness_max(bound);
    let token = signer.token(&signer.keys.writer).await;
    verifier.access(&token).await.expect("good");
    signer
        .away(async || {
            verifier.access(&token).await.expect("an outage of seconds stops nobody");
            let took = eventually("it pauses", bound * 2, || async { verifier.access(&token).await.is_err() }).await;
            let refusal = verifier.access(&token).await.expect_err("refused");
            assert!(matches!(refusal, Refusal::RevocationsStale(_)) && refusal.is_transient(), "{refusal}");
            assert!(took < bound + Duration::from_secs(2), "{took:?}");
            assert!(verifier.ready().await.is_err());
        })
        .await;
    eventually("it goes on by itself", SECONDS, || async { verifier.access(&token).await.is_ok() }).await;
    verifier.ready().await.expect("ready");
}

/// A server in the signer's place whose statement can be replaced.
async fn impostor(forger: &Forger, statement: String) -> (String, Arc<Mutex<String>>) {
    let (jwks, statement) = (forger.jwks(), Arc::new(Mutex::new(statement)));
    let said = Arc::clone(&statement);
    let say = move || {
        let said = said.lock().expect("not poisoned").clone();
        std::future::ready(said)
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let keys = get(move || std::future::ready(jwks.clone()));
    let routes = Router::new().route("/.well-known/jwks.json", keys).route("/v1/revocations/2", get(say));
    tokio::spawn(async move { axum::serve(listener, routes).await.expect("served") });
    (url, statement)
}

fn statement_claims() -> Value {
    let now = jiff::Timestamp::now().as_second();
    json!({
        "iss": ISSUER, "aud": "vecmill-verifiers", "iat": now, "seq": 10, "kids": ["k1"], "withdrawn_kids": [],
        "names": [], "jobs": [], "tenants": {},
    })
}

#[tokio::test]
async fn only_the_signers_own_newest_word_counts() {
    let (forger, stranger) = (Forger::new(), Forger::new());
    let honest = header("revocations-2+jwt");
    let sign = |claims: &Value| forger.sign(&honest, &claims.to_string());
    let claims = statement_claims();
    let future = json!(claims["iat"].as_i64().expect("a number") + 3600);
    let mut repeated = claims.to_string();
    repeated.insert_str(1, r#""seq":99,"#);
    // Each of these instead of a first statement: nothing is believed.
    for (what, statement) in [
        ("nothing", String::new()),
        ("no JWT", "{}".to_owned()),
        ("another's signature", stranger.sign(&honest, &claims.to_string())),
        ("no signature", sign(&claims).rsplit_once('.').map(|(signed, _)| format!("{signed}.")).expect("signed")),
        ("an access token", forger.access(&access_claims())),
        ("the type of a grant", forger.sign(&header("job-grant+jwt"), &claims.to_string())),
        ("algorithm none", forger.sign(&honest.replace("EdDSA", "none"), &claims.to_string())),
        ("an unknown kid", forger.sign(&honest.replace("k1", "k2"), &claims.to_string())),
        ("another issuer", sign(&with(claims.clone(), "iss", json!("evil")))),
        ("another audience", sign(&with(claims.clone(), "aud", json!("vecmill-api")))),
        ("a statement as it was before", {
            let old = json!({"keys": [], "tokens": [], "jobs": [], "tenants": {}});
            let mut said = claims.clone();
            said.as_object_mut().expect("an object").remove("names");
            said.as_object_mut().expect("an object").extend(old.as_object().expect("an object").clone());
            forger.sign(&header("revocations+jwt"), &said.to_string())
        }),
        ("a name that is none", sign(&with(claims.clone(), "names", json!(["key1"])))),
        ("the future", sign(&with(claims.clone(), "iat", future))),
        ("an unknown claim", sign(&with(claims.clone(), "more", json!(1)))),
        ("a claim twice", forger.sign(&honest, &repeated)),
        ("a list for an object", sign(&with(claims.clone(), "tenants", json!([])))),
        ("an hour ago", sign(&with(claims.clone(), "iat", json!(claims["iat"].as_i64().expect("a number") - 3600)))),
        ("too much", sign(&with(claims.clone(), "names", json!(vec!["A".repeat(22); 220_000])))),
    ] {
        let (url, _) = impostor(&forger, statement).await;
        let refusal = verifier(&url).access_at(&forger.access(&access_claims()), NOW).await.expect_err(what);
        assert!(matches!(refusal, Refusal::RevocationsStale(_)), "{what}: {refusal}");
    }

    // A good one; then an older one played back changes nothing.
    let revoking = with(with(claims.clone(), "names", json!([RevokedName::of_key("key1")])), "seq", json!(11));
    let (url, statement) = impostor(&forger, sign(&claims)).await;
    let verifier = verifier(&url);
    let token = forger.access(&access_claims());
    verifier.access_at(&token, NOW).await.expect("good");
    *statement.lock().expect("not poisoned") = sign(&revoking);
    eventually("the revocation is heard of", SECONDS, || async { verifier.access_at(&token, NOW).await.is_err() })
        .await;
    *statement.lock().expect("not poisoned") =
        sign(&with(claims.clone(), "iat", json!(claims["iat"].as_i64().expect("a number") + 20)));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(verifier.access_at(&token, NOW).await.expect_err("still"), Refusal::KeyRevoked);
    // Back to what is: the key may be let in again by a later statement only.
    *statement.lock().expect("not poisoned") = sign(&with(statement_claims(), "seq", json!(12)));
    eventually("a later statement counts", SECONDS, || async { verifier.access_at(&token, NOW).await.is_ok() }).await;
}
