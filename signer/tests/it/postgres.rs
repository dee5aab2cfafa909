//! What only Postgres has: two signers on one database, one policy whichever is asked; a server far away that may be gone, and TLS
//! to it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use vecmill_signer::claims::{RevokedName, TenantId};
use vecmill_signer::client::SignerClient;
use vecmill_signer::store::{AuditFilter, Store, TenantSettings};
use vecmill_signer::verify::{Keys, RemoteKeys, Verifier};

use crate::program::printed;
use crate::support::{Home, ISSUER, Signer, claims_of, eventually, http};

/// Half a second between two looks at the database, and room for a busy machine.
const SOON: Duration = Duration::from_secs(10);

async fn signer() -> Signer {
    let home = Home::on_postgres().await;
    let (store, vault, keys) = home.bootstrap(TenantSettings::default()).await;
    Signer::serving(home, store, vault, keys).await
}

#[tokio::test]
async fn what_one_does_the_other_knows() {
    let one = signer().await;
    let (other, _stop, _served) = one.twin().await;
    let key = one.key("globex", "writer").await;
    let there = SignerClient::new(&other, key.clone()).expect("a client");
    let token = there.access_token(&[]).await.expect("a token of the other").token.to_string();

    // One verifies what the other signed.
    let keys = Keys::Remote(RemoteKeys::new(&one.url()).expect("an address"));
    let verifier = Verifier::new(ISSUER.to_owned(), keys);
    assert_eq!(verifier.access(&token).await.expect("good").key_id(), key.id());

    let admin = one.token(&one.keys.admin).await;
    let published = async |url: &str| -> BTreeSet<String> {
        let jwks = http().get(format!("{url}/.well-known/jwks.json")).send().await.expect("an answer");
        let jwks: Value = jwks.json().await.expect("JSON");
        let keys = jwks["keys"].as_array().expect("keys").iter();
        keys.map(|key| key["kid"].as_str().expect("a kid").to_owned()).collect()
    };
    assert_eq!(one.ask(Some(&admin), "POST", "/v1/admin/signing-keys/rotate", None).await.status, 201);
    let (one_url, other_url) = (one.url(), other.clone());
    eventually("the other publishes the new key too", SOON, || async {
        let (here, there) = (published(&one_url).await, published(&other_url).await);
        here.len() == 2 && here == there
    })
    .await;

    assert_eq!(
        one.ask(Some(&admin), "POST", &format!("/v1/admin/tenants/globex/keys/{}/revoke", key.id()), None).await.status,
        200
    );
    assert!(there.access_token(&[]).await.is_err(), "the other asks the database itself");
    let as_bearer = async || {
        let request = http().post(format!("{other}/v1/grants")).bearer_auth(&token).json(&json!({}));
        request.send().await.expect("an answer").status().as_u16()
    };
    assert_eq!(as_bearer().await, 401);
    eventually("a verifier that asks the other hears of it", SOON, || async {
        let statement = http().get(format!("{other}/v1/revocations/2")).send().await.expect("an answer");
        let statement = statement.text().await.expect("a JWT");
        claims_of(&statement)["names"].as_array().expect("names").contains(&json!(RevokedName::of_key(key.id())))
    })
    .await;
}

#[tokio::test]
async fn many_at_once_on_both_lose_nothing() {
    let one = signer().await;
    let far = Store::open(one.home.policy()).await.expect("a database");
    let names: Vec<TenantId> = (0..40).map(|number| format!("tenant-{number}").parse().expect("a name")).collect();
    let tasks: Vec<_> = names
        .iter()
        .cloned()
        .enumerate()
        .map(|(number, name)| {
            let store = if number % 2 == 0 { one.store.clone() } else { far.clone() };
            tokio::spawn(async move { store.create_tenant(&name, &TenantSettings::default(), "me").await })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic").expect("created");
    }
    let tenants = one.store.tenants().await.expect("a database");
    assert_eq!(tenants.iter().map(|tenant| tenant.ordinal).collect::<Vec<_>>(), (0..41).collect::<Vec<_>>());
    let filter = AuditFilter { limit: 1000, ..AuditFilter::default() };
    let events = one.store.audit(&filter).await.expect("a database");
    let created: BTreeSet<_> =
        events.iter().filter(|event| event.action == "tenant.create").map(|event| event.subject.as_str()).collect();
    assert!(names.iter().all(|name| created.contains(name.as_str())));
    assert!(one.store.seq().await.expect("a database") > 0);
}

#[tokio::test]
async fn two_that_start_at_once_on_an_empty_database_set_it_up_once() {
    let home = Home::on_postgres().await;
    let opened =
        [home.policy(), home.policy(), home.policy()].map(|policy| tokio::spawn(Store::open_or_create(policy)));
    for store in opened {
        store.await.expect("no panic").expect("opened").ping().await.expect("it answers");
    }
    let (store, _, _) = home.bootstrap(TenantSettings::default()).await;
    assert_eq!(store.tenants().await.expect("a database").len(), 1);
}

/// A Postgres that may be killed, in a folder of its own.
struct PrivatePostgres {
    script: PathBuf,
    dir: PathBuf,
    url: String,
}

impl PrivatePostgres {
    fn start() -> Self {
        let script = PathBuf::from(std::env::var("VECMILL_TEST_SERVICES").expect("run ./infra/test"));
        let dir = PathBuf::from(std::env::var("VECMILL_TEST_DIR").expect("run ./infra/test"));
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let dir = dir.join(format!("postgres-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)));
        let this = Self { script, dir, url: String::new() };
        this.control("start");
        let printed = this.control("env");
        let url =
            printed.lines().find_map(|line| line.strip_prefix("export VECMILL_TEST_POSTGRES_URL=")).expect("its URL");
        Self { url: url.to_owned(), ..this }
    }

    fn control(&self, action: &str) -> String {
        let mut command = Command::new(&self.script);
        command.arg(action).arg(&self.dir).arg("postgres");
        // It goes with this test, however that ends.
        command.env("VECMILL_SERVICES_OWNER", std::process::id().to_string());
        printed(&command.output().expect("it runs"))
    }
}

#[tokio::test]
async fn a_signer_outlives_its_postgres() {
    let postgres = PrivatePostgres::start();
    let home = Home::at(&postgres.url);
    let (store, vault, keys) = home.bootstrap(TenantSettings::default()).await;
    let signer = Signer::serving(home, store, vault, keys).await;
    let url = Keys::Remote(RemoteKeys::new(&signer.url()).expect("an address"));
    let verifier = Verifier::new(ISSUER.to_owned(), url);
    let token = signer.token(&signer.keys.writer).await;
    verifier.access(&token).await.expect("good");

    postgres.control("kill");
    let ready = signer.ask(None, "GET", "/readyz", None).await;
    assert_eq!((ready.status, &ready.body["error"]), (503, &json!("temporarily_unavailable")));
    let key = &signer.keys.writer;
    let form = [("grant_type", "client_credentials")];
    let asked =
        http().post(format!("{}/oauth/token", signer.url())).basic_auth(key.id(), Some(key.expose())).form(&form);
    let refused = asked.send().await.expect("an answer");
    assert_eq!(
        (refused.status().as_u16(), refused.headers().contains_key("retry-after")),
        (503, true),
        "no is not the answer, nor yes"
    );
    verifier.access(&token).await.expect("what is signed is good without it, for as long as the statement is young");
    assert_eq!(signer.ask(None, "GET", "/.well-known/jwks.json", None).await.status, 200);

    postgres.control("start");
    eventually("it goes on by itself", Duration::from_secs(20), || async {
        signer.client(key).access_token(&[]).await.is_ok()
            && signer.ask(None, "GET", "/readyz", None).await.status == 200
    })
    .await;
}

#[tokio::test]
async fn postgres_over_tls_is_checked() {
    let postgres = PrivatePostgres::start();
    let good = format!("{}?sslmode=verify-full&sslrootcert={}/tls/ca.pem", postgres.url, postgres.dir.display());
    let home = Home::at(&good);
    home.json(&["bootstrap"]);
    for wrong in [
        // No authority of the system's has signed it.
        format!("{}?sslmode=verify-full", postgres.url),
        format!("{}?sslmode=verify-ca&sslrootcert=/dev/null", postgres.url),
    ] {
        let output = Home::at(&wrong).run(&["tenant", "list"]);
        assert!(!output.status.success(), "{wrong}");
    }
}
