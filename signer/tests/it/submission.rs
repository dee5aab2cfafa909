//! Submission tokens: what a gateway goes on with when the access token of whoever made a batch is over.

use vecmill_signer::claims::Scope;
use vecmill_signer::client::{AccessToken, ClientError, SignerClient};
use vecmill_signer::edge::ClientTls;
use vecmill_signer::store::TenantSettings;
use vecmill_signer::verify::{Keys, Refusal, RemoteKeys, Verifier};

use crate::support::{ISSUER, Signer, grant_request, http};

/// What the signer says to whoever has the submission token and nothing else.
async fn granted(signer: &Signer, submission: &AccessToken) -> Result<String, u16> {
    let client = SignerClient::with_access_token(&signer.url(), submission.clone(), &ClientTls::default());
    let client = client.expect("a client");
    let access = client.access_token(&[Scope::JobsSubmit]).await.expect("what it was made with");
    match client.job_grant(&access, &grant_request(1)).await {
        Ok(grant) => Ok(grant.grant),
        Err(ClientError::Refused { status, .. }) => Err(status),
        Err(error) => panic!("no answer: {error}"),
    }
}

#[tokio::test]
async fn it_is_for_grants_alone_and_falls_with_what_it_rests_on() {
    let signer = Signer::start(TenantSettings::default()).await;
    let remote = RemoteKeys::new(&signer.url()).expect("a signer");
    let verifier = Verifier::new(ISSUER.to_owned(), Keys::Remote(remote));
    let submission = async |key: &vecmill_signer::client::ApiKey| {
        let client = signer.client(key);
        let access = client.access_token(&[]).await.expect("a token");
        let submission = client.submission(&access).await.expect("a submission token");
        assert_eq!(submission.tenant, access.tenant);
        assert_eq!(submission.expires_at / 100, (access.expires_at + 86_400 - 300) / 100, "a day");
        submission
    };
    let key = signer.key("globex", "writer").await;
    let first = submission(&key).await;
    for _ in 0..2 {
        let grant = granted(&signer, &first).await.expect("as often as the batch is taken up");
        let grant = verifier.grant(&grant).await.expect("good");
        assert_eq!((grant.tenant().as_str(), grant.key_id()), ("globex", key.id()));
    }
    assert_eq!(verifier.access(&first.token).await.expect_err("at a gateway or worker"), Refusal::WrongType);
    assert_eq!(verifier.grant(&first.token).await.expect_err("as a grant"), Refusal::WrongType);
    verifier.submission(&first.token).await.expect("as what it is");

    // Whoever may not submit gets none, and a role that is narrowed later takes effect on those there are.
    let reader = signer.client(&signer.key("globex", "reader").await);
    let access = reader.access_token(&[]).await.expect("a token");
    let refused = reader.submission(&access).await.expect_err("refused");
    assert!(matches!(refused, ClientError::Refused { status: 403, .. }), "{refused}");
    signer.store.create_role("narrowed", &[Scope::JobsSubmit], "test").await.expect("a role");
    let narrowed = submission(&signer.key("globex", "narrowed").await).await;
    granted(&signer, &narrowed).await.expect("good");
    signer.store.set_role("narrowed", &[Scope::JobsRead], "test").await.expect("a role");
    assert_eq!(granted(&signer, &narrowed).await, Err(403));

    let admin = signer.token(&signer.keys.admin).await;
    let post = async |path: &str| {
        let answer = signer.ask(Some(&admin), "POST", &format!("/v1/admin/tenants/{path}"), None).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
    };
    let other = submission(&signer.key("initech", "writer").await).await;
    post(&format!("globex/keys/{}/revoke", key.id())).await;
    assert_eq!(granted(&signer, &first).await, Err(401), "its key is revoked");
    granted(&signer, &other).await.expect("another tenant's is good");
    post("initech/void-tokens").await;
    assert_eq!(granted(&signer, &other).await, Err(401), "its tenant's tokens are void");
}

#[tokio::test]
async fn it_falls_with_its_access_token_and_can_be_revoked_itself() {
    let signer = Signer::start(TenantSettings::default()).await;
    let key = signer.key("globex", "writer").await;
    let client = signer.client(&key);
    let form = async |path: &str, token: &str| {
        let request = http().post(format!("{}{path}", signer.url())).basic_auth(key.id(), Some(key.expose()));
        let answer = request.form(&[("token", token)]).send().await.expect("an answer");
        assert_eq!(answer.status(), 200);
        answer.json::<serde_json::Value>().await.unwrap_or_default()
    };
    let active = async |token: &str| form("/oauth/introspect", token).await;
    let made = async || {
        let access = client.access_token(&[]).await.expect("a token");
        let submission = client.submission(&access).await.expect("a submission token");
        let told = active(&submission.token).await;
        assert_eq!(
            (&told["active"], &told["typ"], &told["scope"]),
            (&true.into(), &"submission+jwt".into(), &"jobs:submit".into())
        );
        granted(&signer, &submission).await.expect("good");
        (access, submission)
    };
    let (access, submission) = made().await;
    let (_, neighbour) = made().await;
    form("/oauth/revoke", &access.token).await;
    assert_eq!(active(&submission.token).await, serde_json::json!({"active": false}));
    assert_eq!(granted(&signer, &submission).await, Err(401), "with its access token");
    granted(&signer, &neighbour).await.expect("another access token's is good");

    let (access, submission) = made().await;
    form("/oauth/revoke", &submission.token).await;
    assert_eq!(active(&submission.token).await, serde_json::json!({"active": false}));
    assert_eq!(granted(&signer, &submission).await, Err(401), "itself");
    assert_eq!(active(&access.token).await["active"], true, "what it was made with is good");
    let embed = client.embed_token(&access, "vecmill/mini").await.expect("an embed token");
    assert_eq!(active(&embed.token).await["typ"], "embed+jwt");
    form("/oauth/revoke", &embed.token).await;
    assert_eq!(active(&embed.token).await["active"], false);
}
