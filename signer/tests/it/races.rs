//! What is revoked while somebody asks: no token and no grant outlives what it rests on, however the two fall.

use std::path::Path;
use std::time::Duration;

use sqlx::{AnyConnection, Connection as _};
use vecmill_signer::claims::TenantId;
use vecmill_signer::client::{AccessToken, ApiKey, SignerClient};
use vecmill_signer::edge::ClientTls;
use vecmill_signer::store::{Database, Store, TenantSettings};

use crate::support::{Home, Signer, claims_of, grant_request};

const ROUNDS: u64 = 24;
/// Verifiers ask every 2 s, and a signer looks at its database twice a second.
const HEARD: Duration = Duration::from_secs(5);
const MODEL: &str = "vecmill/mini";

/// What somebody got in a race.
#[derive(Default)]
struct Got {
    access: Vec<String>,
    embeds: Vec<String>,
    submissions: Vec<AccessToken>,
    grants: Vec<String>,
}

fn expires(token: &str) -> u64 {
    claims_of(token)["exp"].as_u64().expect("a time")
}

/// Asks for everything with the key, all at once, from before the revocation until after it.
async fn grab(client: SignerClient, access: AccessToken, number: u8) -> Got {
    let mut got = Got::default();
    let mut may_log_in = true;
    for turn in 0..6_u8 {
        let request = grant_request(number.wrapping_mul(8).wrapping_add(turn));
        // Once it has failed it is not tried again: an address has so many failures a minute.
        let login = async || if may_log_in { Some(client.access_token(&[]).await) } else { None };
        let (logged_in, embed, submission, grant) = tokio::join!(
            login(),
            client.embed_token(&access, MODEL),
            client.submission(&access),
            client.job_grant(&access, &request)
        );
        may_log_in = matches!(logged_in, Some(Ok(_)));
        got.access.extend(logged_in.into_iter().flatten().map(|access| access.token.to_string()));
        got.embeds.extend(embed.map(|embed| embed.token.to_string()));
        got.submissions.extend(submission);
        got.grants.extend(grant.map(|grant| grant.grant));
    }
    got
}

/// Until when the statement names the key.
async fn told_until(home: &Home, key_id: &str) -> u64 {
    sqlx::any::install_default_drivers();
    let url = match home.policy() {
        Database::File(path) => format!("sqlite://{}", Path::display(&path)),
        Database::Postgres(url) => url,
    };
    let mut connection = AnyConnection::connect(&url).await.expect("a database");
    let until: i64 = sqlx::query_scalar("SELECT told_until_s FROM revocations WHERE kind = 'key' AND id = $1")
        .bind(key_id)
        .fetch_one(&mut connection)
        .await
        .expect("an entry");
    connection.close().await.expect("closed");
    until as u64
}

/// Who revokes, and what: another process than the one that is asked, as a command is.
#[derive(Clone, Copy, Debug)]
enum Blow {
    Key,
    VoidTokens,
    Suspend,
    Token,
}

impl Blow {
    async fn strike(self, signer: &Signer, far: &Store, tenant: &TenantId, key: &ApiKey, access: &AccessToken) {
        match self {
            Self::Key => drop(far.revoke_key(None, key.id(), "race").await.expect("revoked")),
            Self::VoidTokens => drop(far.void_tokens(tenant, "race").await.expect("voided")),
            Self::Suspend => drop(far.set_active(tenant, false, "race").await.expect("suspended")),
            Self::Token => signer.revoke(key, &access.token).await,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_that_is_got_in_a_race_outlives_the_revocation() {
    for home in Home::of_each_kind().await {
        let (store, vault, keys) = home.bootstrap(TenantSettings::default()).await;
        let signer = Signer::serving(home, store, vault, keys).await;
        let far = Store::open(signer.home.policy()).await.expect("a database");
        let verifier = signer.verifier();
        let mut outcomes = Vec::new();
        for round in 0..ROUNDS {
            let blow = [Blow::Key, Blow::Key, Blow::VoidTokens, Blow::Suspend, Blow::Token][round as usize % 5];
            let tenant: TenantId = format!("racer-{round}").parse().expect("a name");
            let key = signer.key(tenant.as_str(), "writer").await;
            let client = signer.client(&key);
            let access = client.access_token(&[]).await.expect("a token");
            let grabbing = tokio::spawn(grab(client, access.clone(), round as u8));
            tokio::time::sleep(Duration::from_millis(round % 12)).await;
            blow.strike(&signer, &far, &tenant, &key, &access).await;
            outcomes.push((blow, tenant, key, grabbing.await.expect("no panic")));
        }
        tokio::time::sleep(HEARD).await;
        let (mut grants, mut embeds) = (0, 0);
        for (blow, tenant, key, got) in outcomes {
            let case = format!("{blow:?} of {tenant}");
            for token in &got.embeds {
                embeds += 1;
                // A login after the tokens were voided is good, but no embed token is made with one here.
                assert!(verifier.embed(token).await.is_err(), "{case}: an embed token");
            }
            for submission in &got.submissions {
                let client = SignerClient::with_access_token(&signer.url(), submission.clone(), &ClientTls::default());
                let asked = client.expect("a client").job_grant(submission, &grant_request(1)).await;
                assert!(asked.is_err(), "{case}: a submission token");
            }
            // A job that was granted in time goes on when the access token is revoked, as it does when that expires.
            if matches!(blow, Blow::Token) {
                continue;
            }
            for token in &got.grants {
                grants += 1;
                assert!(verifier.grant(token).await.is_err(), "{case}: a grant");
            }
            if matches!(blow, Blow::Key) {
                let told = told_until(&signer.home, key.id()).await;
                for token in got.grants.iter().chain(&got.embeds).chain(&got.access) {
                    assert!(verifier.access(token).await.is_err(), "{case}: an access token");
                    assert!(told > expires(token), "{case}: told until {told}, and one lives until {}", expires(token));
                }
            }
        }
        assert!(grants > 0 && embeds > 0, "the races were none: {grants} grants, {embeds} embed tokens");
    }
}
