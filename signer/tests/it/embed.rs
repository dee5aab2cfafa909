//! Embed tokens: what a synchronous request carries to a worker, through a queue that others may read.

use serde_json::json;
use vecmill_signer::client::{ApiKey, ClientError};
use vecmill_signer::store::{SettingsPatch, TenantSettings};
use vecmill_signer::verify::{Refusal, VerifiedEmbed, Verifier};

use crate::revocation::SECONDS;
use crate::support::{Signer, eventually};

const MODEL: &str = "vecmill/mini";

async fn refused(verifier: &Verifier, token: &str, what: &str) -> Refusal {
    eventually(what, SECONDS, || async { verifier.embed(token).await.is_err() }).await;
    verifier.embed(token).await.expect_err("refused")
}

#[tokio::test]
async fn it_is_for_one_models_vectors_alone_and_falls_with_what_it_rests_on() {
    let signer = Signer::start(TenantSettings::default()).await;
    let verifier = signer.verifier();
    let key = signer.key("globex", "writer").await;
    let patch: SettingsPatch =
        serde_json::from_value(json!({"dimensions_max": 64, "stored_bytes": 7})).expect("a patch");
    let globex = "globex".parse().expect("a name");
    signer.store.set_limits(&globex, patch, "test").await.expect("set");

    let client = signer.client(&key);
    let access = client.access_token(&[]).await.expect("a token");
    let given = client.embed_token(&access, MODEL).await.expect("an embed token");
    assert!(!format!("{given:?}").contains(given.token.as_str()));
    let embed: VerifiedEmbed = verifier.embed(&given.token).await.expect("good");
    assert_eq!((embed.tenant(), embed.key_id(), embed.model()), (&globex, key.id(), MODEL));
    assert_eq!((embed.dimensions_max(), given.dimensions_max), (64, 64));
    assert_eq!((embed.expires_at(), embed.expires_at() - embed.issued_at()), (given.expires_at, 90));
    assert_eq!((embed.limits().stored_bytes, embed.client_addr()), (Some(7), Some("127.0.0.1")));

    // Nothing else takes it, and it takes no other token's place.
    assert_eq!(verifier.access(&given.token).await.expect_err("at a gateway"), Refusal::WrongType);
    assert_eq!(verifier.grant(&given.token).await.expect_err("as a grant"), Refusal::WrongType);
    assert_eq!(verifier.embed(&access.token).await.expect_err("an access token"), Refusal::WrongType);
    for path in ["/v1/grants", "/v1/submissions", "/v1/embed-tokens", "/v1/admin/tenants/globex/keys"] {
        let method = if path.ends_with("keys") { "GET" } else { "POST" };
        let answer = signer.ask(Some(&given.token), method, path, Some(json!({"model": MODEL}))).await;
        assert_eq!(answer.status, 401, "{path}");
    }

    // Whom policy denies the model, or the role the scope.
    let denied = client.embed_token(&access, "other/model").await.expect_err("refused");
    assert!(matches!(&denied, ClientError::Refused { status: 403, error, .. } if error == "access_denied"), "{denied}");
    assert!(denied.to_string().contains("this tenant may not use that model"), "{denied}");
    let reader = signer.client(&signer.key("globex", "reader").await);
    let no_scope = reader.access_token(&[]).await.expect("a token");
    let denied = reader.embed_token(&no_scope, MODEL).await.expect_err("refused");
    assert!(matches!(denied, ClientError::Refused { status: 403, .. }), "{denied}");

    // What it rests on: its access token, its key, its tenant, the key that signed it.
    let embed = async |key: &ApiKey| {
        let client = signer.client(key);
        let access = client.access_token(&[]).await.expect("a token");
        let embed = client.embed_token(&access, MODEL).await.expect("an embed token");
        verifier.embed(&embed.token).await.expect("good");
        (access.token, embed.token)
    };
    let (sibling, of_sibling) = embed(&key).await;
    let (parent, of_parent) = embed(&key).await;
    signer.revoke(&key, &parent).await;
    assert_eq!(refused(&verifier, &of_parent, "its access token").await, Refusal::TokenRevoked);
    verifier.embed(&of_sibling).await.expect("another access token's is good");
    verifier.access(&sibling).await.expect("and that token itself");

    let lost = signer.key("globex", "writer").await;
    let (_, of_lost) = embed(&lost).await;
    signer.store.revoke_key(None, lost.id(), "test").await.expect("revoked");
    assert_eq!(refused(&verifier, &of_lost, "its key").await, Refusal::KeyRevoked);
    signer.store.void_tokens(&globex, "test").await.expect("voided");
    assert_eq!(refused(&verifier, &of_sibling, "its tenant's tokens").await, Refusal::TenantCutOff);
    let (_, last) = embed(&key).await;
    let kid = signer.store.list_signing_keys().await.expect("a database")[0].kid.clone();
    signer.store.withdraw_signing_key(&signer.vault, &kid, "test").await.expect("withdrawn");
    assert_eq!(refused(&verifier, &last, "the key that signed it").await, Refusal::SigningKeyWithdrawn);
}
