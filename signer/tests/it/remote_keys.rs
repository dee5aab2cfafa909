//! Verifying with keys fetched over HTTP. The cache's clock rules are tested beside its code; here it meets a real server.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::routing::get;
use serde_json::json;
use tokio::net::TcpListener;
use vecmill_signer::store::TenantSettings;
use vecmill_signer::verify::{Keys, Refusal, RemoteKeys, Verifier};

use crate::support::{Forger, ISSUER, NOW, Signer, access_claims};

/// A server of one key set, and of a statement by `forger` that nothing is revoked, that counts how often it is asked for
/// keys.
async fn key_server(forger: &Forger, document: String) -> (String, Arc<AtomicUsize>, tokio::task::JoinHandle<()>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let answer = move || {
        count.fetch_add(1, Ordering::SeqCst);
        let document = document.clone();
        async move { document }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let statement = forger.statement();
    let routes = Router::new()
        .route("/.well-known/jwks.json", get(answer))
        .route("/v1/revocations/2", get(async move || statement));
    let server = tokio::spawn(async move { axum::serve(listener, routes).await.expect("served") });
    (url, asked, server)
}

fn verifier(url: &str) -> Verifier {
    Verifier::new(ISSUER.to_owned(), Keys::Remote(RemoteKeys::new(url).expect("an address")))
}

#[tokio::test]
async fn one_fetch_serves_many_and_outlives_the_server() {
    let forger = Forger::new();
    let (url, asked, server) = key_server(&forger, forger.jwks()).await;
    let verifier = verifier(&url);
    let token = forger.access(&access_claims());

    let callers: Vec<_> = (0..32)
        .map(|_| {
            let (verifier, token) = (verifier.clone(), token.clone());
            tokio::spawn(async move { verifier.access_at(&token, NOW).await.is_ok() })
        })
        .collect();
    for caller in callers {
        assert!(caller.await.expect("no panic"));
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1, "32 callers at once share one fetch");

    server.abort();
    assert!(server.await.expect_err("aborted").is_cancelled());
    assert!(verifier.access_at(&token, NOW).await.is_ok(), "served while the signer is down");
    assert!(verifier.ready().await.is_ok());
}

#[tokio::test]
async fn invented_kids_do_not_reach_the_signer() {
    let forger = Forger::new();
    let (url, asked, _server) = key_server(&forger, forger.jwks()).await;
    let verifier = verifier(&url);
    for n in 0..20 {
        let header = json!({"alg": "EdDSA", "typ": "at+jwt", "kid": format!("invented-{n}")}).to_string();
        let token = forger.sign(&header, &access_claims().to_string());
        assert_eq!(verifier.access_at(&token, NOW).await.expect_err("refused"), Refusal::UnknownKey);
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_signer_that_can_not_be_asked_is_no_verdict() {
    let forger = Forger::new();
    let token = forger.access(&access_claims());
    // A port that was just free: nobody listens.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    drop(listener);
    let down = verifier(&url);
    assert!(down.access_at(&token, NOW).await.expect_err("refused").is_transient());
    assert!(down.ready().await.expect_err("not ready").is_transient());

    for document in ["", "[]", r#"{"keys":[]}"#, &format!("{{\"keys\":[],\"pad\":\"{}\"}}", "x".repeat(70_000))] {
        let (url, _, _server) = key_server(&forger, document.to_owned()).await;
        let refusal = verifier(&url).access_at(&token, NOW).await.expect_err("refused");
        assert!(refusal.is_transient(), "{refusal}");
    }
}

#[tokio::test]
async fn the_signer_publishes_what_its_tokens_need() {
    let signer = Signer::start(TenantSettings::default()).await;
    let verifier = verifier(&signer.url());
    let access = signer.client(&signer.keys.writer).access_token(&[]).await.expect("a token");
    let verified = verifier.access(&access.token).await.expect("good");
    assert_eq!(verified.tenant().as_str(), "acme");
    assert_eq!(verified.client_addr(), Some("127.0.0.1"));

    signer.stop().await;
    assert!(verifier.access(&access.token).await.is_ok(), "the signer may rest");
}
