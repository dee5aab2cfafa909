//! Whose credentials open the synchronous door, and for how long.

use std::time::{Duration, Instant};

use vecmill_tests::{Cluster, Servers, WorkerOptions, eventually};

use super::{ask, body};

/// How soon a revocation must be heard of: verifiers ask every 2 s, a signer looks at its database twice a second.
const SECONDS: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_gateway_that_the_signer_knows_holds_tenants_to_their_addresses_itself() {
    let mut cluster = Cluster::without_signer(Servers::shared());
    cluster.env.insert("VECMILL_SIGNER_GATEWAYS".to_owned(), "127.0.0.1".to_owned());
    cluster.start_signer().await;
    let here = cluster.tenant("here", &["--sources", "127.0.0.0/8"]);
    let elsewhere = cluster.tenant("elsewhere", &["--sources", "192.0.2.0/24"]);
    let _worker = cluster.worker(WorkerOptions::default()).await;
    let gateway = cluster.gateway(&[("VECMILL_GATEWAY_FAILED_LOGINS_PER_MINUTE", "5".to_owned())]).await;
    assert_eq!(ask(&gateway, &here.api_key, &body("a text")).await.status, 200);
    let refused = ask(&gateway, &elsewhere.api_key, &body("a text")).await;
    assert_eq!((refused.status, refused.code()), (403, "address_denied"));

    // Failed logins are the gateway's to count, by its callers' addresses; who is in already goes on.
    let stranger = Cluster::shared().await.tenant("b", &[]);
    let mut answers = Vec::new();
    for _ in 0..7 {
        answers.push(ask(&gateway, &stranger.api_key, &body("a text")).await.status);
    }
    assert_eq!(answers, [401, 401, 401, 401, 401, 429, 429]);
    assert_eq!(ask(&gateway, &here.api_key, &body("a text")).await.status, 200);
}

#[tokio::test]
async fn what_is_revoked_is_served_no_longer() {
    let cluster = Cluster::shared().await;
    let [by_key, by_tenant, control] = ["by-key", "by-tenant", "control"].map(|name| cluster.tenant(name, &[]));
    let _worker = cluster.worker(WorkerOptions::default()).await;
    let gateway = cluster.gateway(&[]).await;
    for tenant in [&by_key, &by_tenant, &control] {
        assert_eq!(ask(&gateway, &tenant.api_key, &body("a text")).await.status, 200);
    }
    cluster.signer(&["key", "revoke", by_key.key_id()]);
    cluster.signer(&["tenant", "suspend", by_tenant.id.as_str()]);
    for tenant in [&by_key, &by_tenant] {
        let begun = Instant::now();
        eventually("it is refused", SECONDS, || async {
            let answer = ask(&gateway, &tenant.api_key, &body("a text")).await;
            (answer.status == 401 && answer.code() == "invalid_api_key").then_some(())
        })
        .await;
        println!("refused after {:?}", begun.elapsed());
    }
    assert_eq!(ask(&gateway, &control.api_key, &body("a text")).await.status, 200);
    cluster.signer(&["tenant", "resume", by_tenant.id.as_str()]);
    eventually("it is served again", SECONDS, || async {
        (ask(&gateway, &by_tenant.api_key, &body("a text")).await.status == 200).then_some(())
    })
    .await;
}

/// Many revocations of a tenant are told as one, which voids the tokens of keys that are good: their users notice nothing but a
/// request to be asked again.
#[tokio::test]
async fn who_withdraws_many_keys_is_still_served_by_the_others() {
    let cluster = Cluster::shared().await;
    let tenant = cluster.tenant("a", &[]);
    let _worker = cluster.worker(WorkerOptions::default()).await;
    let gateway = cluster.gateway(&[]).await;
    let served = async || {
        let answer = ask(&gateway, &tenant.api_key, &body("a text")).await;
        let renewed = answer.status == 503 && answer.code() == "token_renewed";
        assert!(answer.status == 200 || renewed, "{} {}", answer.status, answer.body);
        !renewed
    };
    assert!(served().await);
    for _ in 0..40 {
        let key = cluster.signer(&["key", "create", "--tenant", tenant.id.as_str(), "--role", "writer"]);
        cluster.signer(&["key", "revoke", key["id"].as_str().unwrap()]);
        served().await;
    }
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(5) {
        served().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(served().await);
    let events = cluster.signer(&["audit", "--tenant", tenant.id.as_str()]).to_string();
    assert!(events.contains("tenant.void-access-tokens"), "they were taken together: {events}");
}
