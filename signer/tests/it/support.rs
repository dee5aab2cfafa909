//! A forger that signs any header and any claims, and a signer on a port of its own.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use sqlx::postgres::PgConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, Connection as _};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use vecmill_signer::claims::{Digest, JobId, TenantId};
use vecmill_signer::client::{ApiKey, GrantRequest, SignerClient};
use vecmill_signer::config::{Config, FAILED_LOGINS_PER_MINUTE};
use vecmill_signer::edge::Bounds;
use vecmill_signer::keys::KeySet;
use vecmill_signer::server::{self, App};
use vecmill_signer::store::{Bootstrapped, Database, FirstTenant, NewKey, Store, TenantSettings};
use vecmill_signer::vault::Vault;
use vecmill_signer::verify::{Keys, RemoteKeys, Verifier};

use crate::program::{end_of, json_of};

pub(crate) const ISSUER: &str = "test-signer";
/// The time at which forged tokens are minted and, unless a test says otherwise, checked.
pub(crate) const NOW: u64 = 1_800_000_000;

pub(crate) fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// What a token says, whoever signed it.
pub(crate) fn claims_of(token: &str) -> Value {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).expect("claims")).expect("base64");
    serde_json::from_slice(&claims).expect("JSON")
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
            "names": [], "jobs": [], "tenants": {},
        });
        self.sign(&header("revocations-2+jwt"), &claims.to_string())
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

pub(crate) fn submission_claims() -> Value {
    let claims = with(with(access_claims(), "aud", json!("vecmill-signer")), "scope", json!("jobs:submit"));
    with(claims, "exp", json!(NOW + 86_400))
}

pub(crate) fn embed_claims() -> Value {
    json!({
        "iss": ISSUER, "sub": "acme", "aud": "vecmill-embed", "jti": "ab".repeat(16),
        "iat": NOW, "nbf": NOW, "exp": NOW + 90, "model": "vecmill/mini", "dimensions_max": 64, "client_id": "key1",
        "parent": "cd".repeat(16), "limits": limits(), "epoch": 0,
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

/// Names the private Postgres; `infra/test` starts one and says where.
const POSTGRES: &str = "VECMILL_TEST_POSTGRES_URL";

/// Where a signer keeps its state, in a folder of its own, or a database of its own beside it.
pub(crate) struct Home {
    pub(crate) folder: TempDir,
    postgres: Option<String>,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder"), postgres: None }
    }

    /// One with an empty database on the private Postgres. It goes with the server.
    pub(crate) async fn on_postgres() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let server = std::env::var(POSTGRES).expect("VECMILL_TEST_POSTGRES_URL names no Postgres: run ./infra/test");
        let name = format!("signer_{}_{}", std::process::id(), NUMBER.fetch_add(1, Ordering::SeqCst));
        let mut connection = PgConnection::connect(&server).await.expect("Postgres answers");
        // The name is ours.
        let create = AssertSqlSafe(format!("CREATE DATABASE {name}"));
        sqlx::raw_sql(create).execute(&mut connection).await.expect("a database");
        connection.close().await.expect("closed");
        let (server, _) = server.rsplit_once('/').expect("a URL with a database");
        Self { postgres: Some(format!("{server}/{name}")), ..Self::new() }
    }

    /// One with a given Postgres database.
    pub(crate) fn at(url: &str) -> Self {
        Self { postgres: Some(url.to_owned()), ..Self::new() }
    }

    /// One of each kind: what holds for one database must hold for the other.
    pub(crate) async fn of_each_kind() -> [Self; 2] {
        [Self::new(), Self::on_postgres().await]
    }

    /// The policy database, whichever it is.
    pub(crate) fn policy(&self) -> Database {
        self.postgres.clone().map_or_else(|| self.database().into(), Database::Postgres)
    }

    /// Sets the policy database up with tenant `acme`.
    pub(crate) async fn bootstrap(&self, settings: TenantSettings) -> (Store, Vault, Bootstrapped) {
        let store = Store::open_or_create(self.policy()).await.expect("a database");
        let first = FirstTenant { id: "acme".parse().expect("a name"), settings };
        let keys = store.bootstrap(&self.master_key_file(), &first, "test").await.expect("bootstrapped");
        let vault = Vault::open(&self.master_key_file()).expect("a vault");
        (store, vault, keys)
    }

    /// The signer's program at work here.
    pub(crate) fn program(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vecmill-signer"));
        // Of the caller's environment only what says whose run it belongs to.
        command.env_clear().env("TMPDIR", std::env::temp_dir()).args(arguments);
        command.env("VECMILL_SIGNER_MASTER_KEY_FILE", self.master_key_file());
        match &self.postgres {
            Some(url) => command.env("VECMILL_SIGNER_DATABASE_URL", url),
            None => command.env("VECMILL_SIGNER_DATABASE", self.database()),
        };
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.program(arguments).output().expect("the program runs")
    }

    /// What a command that succeeds prints.
    #[track_caller]
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        json_of(&self.run(&[arguments, &["--json"]].concat()))
    }

    /// The SQLite file, if the policy database is one.
    pub(crate) fn database(&self) -> PathBuf {
        self.folder.path().join("signer.db")
    }

    pub(crate) fn master_key_file(&self) -> PathBuf {
        self.folder.path().join("master.key")
    }
}

pub(crate) fn job(number: u8) -> JobId {
    JobId::from_digest(&[number; 32])
}

/// A client that gives up: a signer that hangs must fail the test, not stall it.
pub(crate) fn http() -> reqwest::Client {
    reqwest::Client::builder().timeout(Duration::from_secs(10)).no_proxy().build().expect("a client")
}

/// Waits until `look` sees what it waits for, and says how long that took.
pub(crate) async fn eventually<F: Future<Output = bool>>(
    what: &str,
    within: Duration,
    look: impl Fn() -> F,
) -> Duration {
    let begun = Instant::now();
    while !look().await {
        assert!(begun.elapsed() < within, "not within {within:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    begun.elapsed()
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
        let (store, vault, keys) = home.bootstrap(settings).await;
        prepare(home.database()).await;
        Self::serving(home, store, vault, keys).await
    }

    /// Serves what was set up.
    pub(crate) async fn serving(home: Home, store: Store, vault: Vault, keys: Bootstrapped) -> Self {
        let (address, stop, served) = serve(&home, "127.0.0.1:0").await;
        Self { home, keys, store, vault, address, stop, served }
    }

    /// Another server on the same database: its address, and what stops it.
    pub(crate) async fn twin(&self) -> (String, oneshot::Sender<()>, JoinHandle<()>) {
        let (address, stop, served) = serve(&self.home, "127.0.0.1:0").await;
        (format!("http://{address}"), stop, served)
    }

    /// Stops the server and starts it again at the same address, after a while.
    pub(crate) async fn away(&mut self, meanwhile: impl AsyncFnOnce()) {
        let (none, _) = oneshot::channel();
        std::mem::replace(&mut self.stop, none).send(()).expect("the server runs");
        (&mut self.served).await.expect("the server ends well");
        meanwhile().await;
        let (_, stop, served) = serve(&self.home, &self.address.to_string()).await;
        (self.stop, self.served) = (stop, served);
    }

    /// A new API key of `tenant`, which is made if need be.
    pub(crate) async fn key(&self, tenant: &str, role: &str) -> ApiKey {
        let tenant: TenantId = tenant.parse().expect("a name");
        if self.store.tenant(&tenant).await.expect("a database").is_none() {
            self.store.create_tenant(&tenant, &TenantSettings::default(), "test").await.expect("a tenant");
        }
        let new = NewKey { tenant, role: role.to_owned(), expires_s: None };
        self.store.create_key(&self.vault, &new, "test").await.expect("a key")
    }

    /// A fresh access token with all of the key's scopes.
    pub(crate) async fn token(&self, key: &ApiKey) -> String {
        self.client(key).access_token(&[]).await.expect("a token").token.to_string()
    }

    /// A grant that the key gets for a job of that number.
    pub(crate) async fn grant(&self, key: &ApiKey, number: u8) -> String {
        let client = self.client(key);
        let access = client.access_token(&[]).await.expect("a token");
        client.job_grant(&access, &grant_request(number)).await.expect("a grant").grant
    }

    /// Asks as the bearer of `token`, if there is one.
    pub(crate) async fn ask(&self, token: Option<&str>, method: &str, path: &str, body: Option<Value>) -> Answer {
        let method = method.parse().expect("a method");
        let mut request = http().request(method, format!("{}{path}", self.url()));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.expect("an answer");
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let body = answer.bytes().await.expect("a body");
        Answer { status, headers, body: serde_json::from_slice(&body).unwrap_or(Value::Null) }
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

    /// Revokes a token in the name of `key`.
    pub(crate) async fn revoke(&self, key: &ApiKey, token: &str) {
        let request = http().post(format!("{}/oauth/revoke", self.url())).basic_auth(key.id(), Some(key.expose()));
        let answer = request.form(&[("token", token)]).send().await.expect("an answer");
        assert_eq!(answer.status(), reqwest::StatusCode::OK);
    }

    /// A verifier far away that follows this signer.
    pub(crate) fn verifier(&self) -> Verifier {
        Verifier::new(ISSUER.to_owned(), Keys::Remote(RemoteKeys::new(&self.url()).expect("an address")))
    }

    pub(crate) fn client(&self, key: &ApiKey) -> SignerClient {
        SignerClient::new(&self.url(), key.clone()).expect("a client")
    }
}

/// What the job of that number asks to be granted.
pub(crate) fn grant_request(number: u8) -> GrantRequest {
    GrantRequest {
        job: job(number),
        manifest_sha256: Digest::of(b"manifest"),
        model: "vecmill/mini".to_owned(),
        dimensions: 64,
        rows: 10,
        window_s: 3600,
        life: None,
        run: None,
    }
}

/// The signer's program, serving; killed when dropped.
pub(crate) struct Program {
    child: Child,
    pub(crate) url: String,
    _log: std::thread::JoinHandle<()>,
}

impl Program {
    /// Starts it and waits until it listens.
    pub(crate) fn serve(home: &Home, env: &[(&str, &str)]) -> Self {
        let mut command = home.program(&["serve", "--listen", "127.0.0.1:0"]);
        let mut child = command.envs(env.iter().copied()).stderr(Stdio::piped()).spawn().expect("the program runs");
        let mut log = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
        let mut said = String::new();
        let line = loop {
            match log.next() {
                Some(line) if line.contains("listening") => break line,
                Some(line) => said += &format!("{line}\n"),
                None => panic!("it ended before it listened, with {}:\n{}", child.wait().expect("ours"), end_of(&said)),
            }
        };
        let port = line.split("127.0.0.1:").nth(1).expect("an address").split(' ').next().expect("a port").to_owned();
        // A full pipe would hold the program up.
        let log = std::thread::spawn(move || log.for_each(drop));
        Self { child, url: format!("http://127.0.0.1:{port}"), _log: log }
    }

    /// SIGTERM; gives how it ended.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        let killed = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().expect("kill runs");
        assert!(killed.success());
        self.child.wait().expect("ours")
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        // It may have died by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a server said.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: Value,
}

async fn serve(home: &Home, listen: &str) -> (SocketAddr, oneshot::Sender<()>, JoinHandle<()>) {
    let config = Config {
        listen: listen.parse().expect("an address"),
        database: home.policy(),
        master_key_file: home.master_key_file(),
        issuer: ISSUER.to_owned(),
        lanes: 4,
        public_url: None,
        signing_key_file: None,
        tls: None,
        gateways: Vec::new(),
        bounds: Bounds::default(),
        old_revocations: false,
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
