//! A forger that signs any header and any claims, and a signer on a port of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use vecmill_signer::client::{ApiKey, SignerClient};
use vecmill_signer::config::{Config, FAILED_LOGINS_PER_MINUTE};
use vecmill_signer::keys::KeySet;
use vecmill_signer::server::{self, App};
use vecmill_signer::store::{Bootstrapped, FirstTenant, Store, TenantSettings};
use vecmill_signer::vault::Vault;
use vecmill_signer::verify::{Keys, Verifier};

pub(crate) const ISSUER: &str = "test-signer";
/// The time at which forged tokens are minted and, unless a test says otherwise, checked.
pub(crate) const NOW: u64 = 1_800_000_000;

pub(crate) fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Holds a key that a verifier trusts, and signs whatever a test wants.
pub(crate) struct Forger {
    pair: Ed25519KeyPair,
}

impl Forger {
    pub(crate) fn new() -> Self {
        Self { pair: Ed25519KeyPair::generate().expect("random source") }
    }

    pub(crate) fn public(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    pub(crate) fn jwks(&self) -> String {
        json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "k1", "x": b64(self.public())}]}).to_string()
    }

    /// A verifier that trusts this forger's key under the kid `k1`.
    pub(crate) fn verifier(&self) -> Verifier {
        let keys = KeySet::from_jwks(self.jwks().as_bytes()).expect("a key set");
        Verifier::new(ISSUER.to_owned(), Keys::Fixed(keys))
    }

    /// Signs header and claims as the text they are.
    pub(crate) fn sign(&self, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", b64(header), b64(claims));
        let signature = self.pair.sign(message.as_bytes());
        format!("{message}.{}", b64(signature.as_ref()))
    }

    /// A statement that nothing is revoked, signed now.
    pub(crate) fn statement(&self) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        let claims = json!({
            "iss": ISSUER, "aud": "vecmill-verifiers", "iat": now, "seq": 1, "kids": ["k1"], "withdrawn_kids": [],
            "keys": [], "tokens": [], "jobs": [], "tenants": {},
        });
        self.sign(&header("revocations+jwt"), &claims.to_string())
    }

    pub(crate) fn access(&self, claims: &Value) -> String {
        self.sign(&header("at+jwt"), &claims.to_string())
    }

    pub(crate) fn grant(&self, claims: &Value) -> String {
        self.sign(&header("job-grant+jwt"), &claims.to_string())
    }
}

pub(crate) fn header(typ: &str) -> String {
    json!({"alg": "EdDSA", "typ": typ, "kid": "k1"}).to_string()
}

pub(crate) fn limits() -> Value {
    json!({
        "requests_per_minute": 1, "tokens_per_minute": 2, "tokens_burst": 3, "tokens_per_day": 4, "queued_tokens": 5,
        "concurrent_jobs": 6,
    })
}

pub(crate) fn access_claims() -> Value {
    json!({
        "iss": ISSUER, "sub": "acme", "aud": "vecmill-api", "jti": "ab".repeat(16),
        "iat": NOW, "nbf": NOW, "exp": NOW + 300, "scope": "jobs:submit jobs:read", "client_id": "key1",
        "limits": limits(), "epoch": 0,
    })
}

pub(crate) fn grant_claims() -> Value {
    json!({
        "iss": ISSUER, "sub": "acme", "aud": "vecmill-workers", "jti": "cd".repeat(16),
        "iat": NOW, "nbf": NOW, "exp": NOW + 86_400, "manifest_sha256": "ef".repeat(32),
        "model": "vecmill/mini", "dimensions": 64, "rows": 1000, "key_id": "key1", "lane": 3,
        "limits": limits(), "epoch": 0,
    })
}

/// `claims` with one of them set to something else.
pub(crate) fn with(mut claims: Value, name: &str, value: Value) -> Value {
    claims[name] = value;
    claims
}

/// `claims` with one of them left out.
pub(crate) fn without(mut claims: Value, name: &str) -> Value {
    claims.as_object_mut().expect("an object").remove(name).expect("a claim");
    claims
}

/// Where a signer keeps its state, in a folder of its own.
pub(crate) struct Home {
    pub(crate) folder: TempDir,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder") }
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.folder.path().join("signer.db")
    }

    pub(crate) fn master_key_file(&self) -> PathBuf {
        self.folder.path().join("master.key")
    }
}

/// A bootstrapped signer with tenant `acme`, serving real HTTP.
pub(crate) struct Signer {
    pub(crate) home: Home,
    pub(crate) keys: Bootstrapped,
    pub(crate) store: Store,
    pub(crate) vault: Vault,
    pub(crate) address: SocketAddr,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

impl Signer {
    pub(crate) async fn start(settings: TenantSettings) -> Self {
        Self::start_after(settings, async |_| {}).await
    }

    /// Starts after `prepare` has had the database to itself.
    pub(crate) async fn start_after(settings: TenantSettings, prepare: impl AsyncFnOnce(PathBuf)) -> Self {
        let home = Home::new();
        let store = Store::open_or_create(&home.database()).await.expect("a database");
        let first = FirstTenant { id: "acme".parse().expect("a name"), settings };
        let keys = store.bootstrap(&home.master_key_file(), &first, "test").await.expect("bootstrapped");
        let vault = Vault::open(&home.master_key_file()).expect("a vault");
        prepare(home.database()).await;
        let (address, stop, served) = serve(&home.database(), &home.master_key_file(), "127.0.0.1:0").await;
        Self { home, keys, store, vault, address, stop, served }
    }

    /// Stops the server and waits until its port is closed; what it knew stays on disk.
    pub(crate) async fn stop(self) -> Home {
        self.stop.send(()).expect("the server runs");
        self.served.await.expect("the server ends well");
        self.home
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes the policy database behind the server's back, as another command of the signer does.
    pub(crate) async fn execute(&self, sql: &'static str, value: &str) {
        let options = SqliteConnectOptions::new().filename(self.home.database());
        let mut connection = SqliteConnection::connect_with(&options).await.expect("a database");
        let done = sqlx::query(sql).bind(value).execute(&mut connection).await.expect("executed");
        assert_eq!(done.rows_affected(), 1);
        connection.close().await.expect("closed");
    }

    pub(crate) fn client(&self, key: &ApiKey) -> SignerClient {
        SignerClient::new(&self.url(), key.clone()).expect("a client")
    }
}

async fn serve(
    database: &Path,
    master_key_file: &Path,
    listen: &str,
) -> (SocketAddr, oneshot::Sender<()>, JoinHandle<()>) {
    let config = Config {
        listen: listen.parse().expect("an address"),
        database: database.into(),
        master_key_file: master_key_file.to_owned(),
        issuer: ISSUER.to_owned(),
        lanes: 4,
        public_url: None,
        signing_key_file: None,
        tls: None,
        failed_logins_per_minute: FAILED_LOGINS_PER_MINUTE,
    };
    let app = App::open(&config).await.expect("an app");
    let listener = TcpListener::bind(config.listen).await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let (stop, stopped) = oneshot::channel();
    let served = tokio::spawn(async move {
        let shutdown = async {
            // A dropped sender stops the server too.
            let _ = stopped.await;
        };
        server::serve(listener, Arc::new(app), shutdown).await.expect("served");
    });
    (address, stop, served)
}
