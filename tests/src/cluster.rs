//! A signer, workers and the `vecmill` command as real processes, on given servers, with names of their own.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;
use vecmill_producer::{
    contract::JobKeys,
    publish::{Publisher, connect},
    store::{Store, StoreCredentials, StoreSettings},
    topology::{BrokerSettings, Topology},
};
use vecmill_signer::claims::{JobId, TenantId};
use vecmill_worker::engine::synthetic;

pub use crate::process::Process;
use crate::{
    eventually, free_address, history,
    job::FIRST_RUN,
    program::{json_of, told},
    servers::{Env, RIGHTS, Role, Servers},
};

/// The model's name in the tests' grants.
pub const MODEL: &str = "vecmill/mini";
/// The tests' model: small, so that thousands of texts take seconds.
const MODEL_SEED: u64 = 7;
/// Starting a program, with a busy machine in mind.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(60);

/// A tenant with an API key.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// The tenant.
    pub id: TenantId,
    /// An API key: a writer's, unless the test made another.
    pub api_key: String,
}

impl Tenant {
    /// The id of its API key: `vm_<id>_<secret>`.
    pub fn key_id(&self) -> &str {
        self.api_key.split('_').nth(1).expect("an API key")
    }
}

/// One Vecmill on some servers. What it names on them (queues, tenants) is its own, so that tests share servers.
pub struct Cluster {
    /// The servers.
    pub servers: Servers,
    /// Settings for every program.
    pub env: Env,
    /// A folder for what the test writes.
    pub dir: TempDir,
    signer: Option<Process>,
    unique: String,
}

/// How to start a worker.
#[derive(Clone, Debug, Default)]
pub struct WorkerOptions {
    /// Variables on top of the cluster's.
    pub env: Vec<(&'static str, String)>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // Whatever the test looked for, what it was told on the way must have been so.
            history::check();
        }
    }
}

impl Cluster {
    /// A cluster on the shared servers, with a signer.
    pub async fn shared() -> Self {
        Self::on(Servers::shared()).await
    }

    /// A cluster on servers of its own, with a signer.
    pub async fn private() -> Self {
        Self::on(Servers::private()).await
    }

    /// A cluster on these servers, with a signer.
    pub async fn on(servers: Servers) -> Self {
        let mut cluster = Self::without_signer(servers);
        cluster.start_signer().await;
        cluster
    }

    /// A cluster whose signer the test plays itself, at `VECMILL_SIGNER_URL`.
    pub fn without_signer(servers: Servers) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let unique = format!("t{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let servers = if servers.are_shared() { servers.with_bucket(&unique) } else { servers };
        let dir = TempDir::with_prefix("vecmill-test-").expect("a folder");
        let model = dir.path().join("model");
        synthetic::write(&model, &synthetic::Shape::tiny(), MODEL_SEED).expect("a model");
        let mut env = servers.env.clone();
        let settings = [
            ("VECMILL_AMQP_NAMESPACE", unique.clone()),
            ("VECMILL_LANES", "4".to_owned()),
            // Short rungs, so that what waits is seen to come back.
            ("VECMILL_WAIT_LADDER", "1,2,3".to_owned()),
            ("VECMILL_MODEL", MODEL.to_owned()),
            ("VECMILL_MODEL_DIMENSIONS", "64".to_owned()),
            ("VECMILL_MODEL_DIR", model.display().to_string()),
            ("VECMILL_DIMENSIONS", "32".to_owned()),
            ("VECMILL_SIGNER_DATABASE", dir.path().join("signer.db").display().to_string()),
            ("VECMILL_SIGNER_MASTER_KEY_FILE", dir.path().join("master-key").display().to_string()),
            ("VECMILL_CACHE_DIR", dir.path().join("cache").display().to_string()),
            ("RAYON_NUM_THREADS", "1".to_owned()),
        ];
        env.extend(settings.map(|(name, value)| (name.to_owned(), value)));
        let cluster = Self { servers, env, dir, signer: None, unique };
        cluster.declare_topology();
        cluster
    }

    /// Declares the queues, which only an operator may.
    ///
    /// # Panics
    /// When that fails.
    #[track_caller]
    pub fn declare_topology(&self) {
        let mut command = self.command("vecmill", &["topology", "declare", "--json"]);
        command.env("VECMILL_AMQP_URL", &self.env["VECMILL_AMQP_URL"]);
        assert_eq!(json_of(&command.output().expect("vecmill runs"))["declared"], true);
    }

    /// Sets up and starts the signer of a cluster that has none yet.
    pub async fn start_signer(&mut self) {
        self.signer = Some(self.set_up_signer("http").comes_up("/readyz").await);
    }

    fn set_up_signer(&mut self, scheme: &str) -> Process {
        self.signer(&["bootstrap", "--tenant", &format!("{}-admin", self.unique)]);
        let listen = free_address();
        let url = format!("{scheme}://{listen}");
        self.env.insert("VECMILL_SIGNER_LISTEN".to_owned(), listen);
        self.env.insert("VECMILL_SIGNER_URL".to_owned(), url.clone());
        self.spawn("vecmill-signer", &["serve"], &[], url)
    }

    /// The signer, where it runs.
    pub fn signer_process(&self) -> Option<&Process> {
        self.signer.as_ref()
    }

    /// Kills the signer; its database stays.
    pub fn stop_signer(&mut self) {
        self.signer = None;
    }

    /// Starts the signer at the address where it was.
    pub async fn start_signer_again(&mut self) {
        let url = self.env["VECMILL_SIGNER_URL"].clone();
        self.signer = Some(self.spawn("vecmill-signer", &["serve"], &[], url).comes_up("/readyz").await);
    }

    /// The same over TLS, with the servers' certificate, and every client set to trust its authority alone and to reach
    /// everything over TLS.
    pub async fn start_signer_with_tls(&mut self) {
        let tls = PathBuf::from(&self.env["VECMILL_TEST_TLS_DIR"]);
        let file = |name: &str| tls.join(name).display().to_string();
        let more = [
            ("VECMILL_SIGNER_TLS_CERT_FILE", file("server.pem")),
            ("VECMILL_SIGNER_TLS_KEY_FILE", file("server.key")),
            ("VECMILL_CA_FILE", file("ca.pem")),
            ("VECMILL_S3_CA_FILE", file("ca.pem")),
            ("VECMILL_AMQP_URL", self.env["VECMILL_TEST_AMQPS_URL"].clone()),
            ("VECMILL_REDIS_URL", self.env["VECMILL_TEST_REDISS_URL"].clone()),
            ("VECMILL_S3_ENDPOINT", self.env["VECMILL_TEST_S3_TLS"].clone()),
        ];
        self.env.extend(more.map(|(name, value)| (name.to_owned(), value)));
        let mut signer = self.set_up_signer("https");
        eventually("the signer listens", START_LIMIT, || {
            assert_eq!(signer.end(), None, "the signer ended before it listened");
            std::future::ready(signer.logged().contains("listening").then_some(()))
        })
        .await;
        self.signer = Some(signer);
    }

    /// A new tenant with a writer's key; `limits` are flags of `vecmill-signer tenant create`.
    pub fn tenant(&self, name: &str, limits: &[&str]) -> Tenant {
        let id = format!("{}-{name}", self.unique);
        self.signer(&[&["tenant", "create", &id], limits].concat());
        let id: TenantId = id.parse().expect("a tenant id");
        Tenant { api_key: self.api_key(&id, "writer"), id }
    }

    /// The same with a key that may do everything in the tenant.
    pub fn admin(&self, name: &str, limits: &[&str]) -> Tenant {
        let tenant = self.tenant(name, limits);
        Tenant { api_key: self.api_key(&tenant.id, "admin"), ..tenant }
    }

    /// A new API key of a tenant's.
    pub fn api_key(&self, tenant: &TenantId, role: &str) -> String {
        let key = self.signer(&["key", "create", "--tenant", tenant.as_str(), "--role", role]);
        key["key"].as_str().expect("an API key").to_owned()
    }

    /// A worker, ready to take chunks.
    pub async fn worker(&self, options: WorkerOptions) -> Process {
        self.worker_unready(options).comes_up("/readyz").await
    }

    /// A worker, just started.
    pub fn worker_unready(&self, options: WorkerOptions) -> Process {
        let listen = free_address();
        let mut env = options.env;
        env.push(("VECMILL_WORKER_LISTEN", listen.clone()));
        self.spawn("vecmill-worker", &["run"], &env, format!("http://{listen}"))
    }

    /// A gateway, ready to be asked.
    pub async fn gateway(&self, env: &[(&'static str, String)]) -> Process {
        self.gateway_that_answers("/readyz", env).await
    }

    /// The same, once it answers at `path`: one that lacks something is never ready.
    pub async fn gateway_that_answers(&self, path: &str, env: &[(&'static str, String)]) -> Process {
        let listen = free_address();
        let mut env = env.to_vec();
        env.push(("VECMILL_GATEWAY_LISTEN", listen.clone()));
        self.spawn("vecmill-gateway", &["serve"], &env, format!("http://{listen}")).comes_up(path).await
    }

    /// Runs `vecmill` as a tenant.
    pub fn vecmill(&self, tenant: &Tenant, arguments: &[&str]) -> Output {
        let mut command = self.command("vecmill", arguments);
        command.env("VECMILL_API_KEY", &tenant.api_key).output().expect("vecmill runs")
    }

    /// Runs `vecmill` as a tenant with some settings of its own.
    pub fn vecmill_with_env(&self, tenant: &Tenant, arguments: &[&str], env: &[(&str, &str)]) -> Output {
        let mut command = self.command("vecmill", arguments);
        command.env("VECMILL_API_KEY", &tenant.api_key).envs(env.iter().copied()).output().expect("vecmill runs")
    }

    /// Runs `vecmill` as a tenant without waiting for it.
    pub fn vecmill_in_background(&self, tenant: &Tenant, arguments: &[&str]) -> Child {
        let mut command = self.command("vecmill", arguments);
        command.env("VECMILL_API_KEY", &tenant.api_key).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("vecmill runs")
    }

    /// Runs `vecmill` as a tenant with something on its standard input.
    pub fn vecmill_with_input(&self, tenant: &Tenant, arguments: &[&str], input: &[u8]) -> Output {
        let mut command = self.command("vecmill", arguments);
        command.env("VECMILL_API_KEY", &tenant.api_key).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("vecmill runs");
        // A program that ends without reading all of it has its reasons; its output tells.
        let _ = child.stdin.take().expect("a pipe").write_all(input);
        child.wait_with_output().expect("vecmill runs")
    }

    /// Submits a file; gives the job.
    ///
    /// # Panics
    /// When `vecmill submit` fails.
    #[track_caller]
    pub fn submit(&self, tenant: &Tenant, corpus: &Path, more: &[&str]) -> JobId {
        let corpus = corpus.display().to_string();
        let submitted = json_of(&self.vecmill(tenant, &[&["submit", &corpus, "--json"], more].concat()));
        submitted["job"].as_str().expect("a job").parse().expect("a job id")
    }

    /// A job's status as `vecmill status --json` gives it.
    #[track_caller]
    pub fn status(&self, tenant: &Tenant, job: &JobId) -> Value {
        let asked = Instant::now();
        let status = json_of(&self.vecmill(tenant, &["status", job.as_str(), "--json"]));
        history::saw(asked, &status);
        status
    }

    /// Waits until a job is in a state, and gives its status.
    pub async fn reaches(&self, tenant: &Tenant, job: &JobId, state: &str, limit: Duration) -> Value {
        let last = Mutex::new(String::new());
        eventually(&format!("job {job} is {state}"), limit, || async {
            let asked = Instant::now();
            let output = self.vecmill(tenant, &["status", job.as_str(), "--json"]);
            let status = serde_json::from_slice::<Value>(&output.stdout).ok();
            status.iter().for_each(|status| history::saw(asked, status));
            let seen = status.as_ref().map_or_else(|| told(&output), |status| format!("is {}", status["state"]));
            let mut last = last.lock().expect("nothing panics with it");
            // Shown where the test fails: what it was instead.
            if *last != seen {
                println!("job {job}: vecmill status {seen}");
                *last = seen;
            }
            status.filter(|status| status["state"] == state)
        })
        .await
    }

    /// The bucket, as the programs see it.
    pub async fn store(&self) -> Store {
        self.store_with(["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"].map(|name| self.env[name].clone())).await
    }

    /// The bucket, as a role sees it.
    pub async fn store_as(&self, role: Role) -> Store {
        let key = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
        self.store_with(key.map(|name| self.env[&role.variable(name)].clone())).await
    }

    async fn store_with(&self, [id, secret]: [String; 2]) -> Store {
        let value = |name: &str| self.env[name].clone();
        let settings = StoreSettings {
            endpoint: Some(value("VECMILL_S3_ENDPOINT")),
            ca_file: None,
            bucket: value("VECMILL_S3_BUCKET"),
            region: value("AWS_REGION"),
        };
        Store::connect_with(&settings, StoreCredentials { id, secret }).await
    }

    /// Makes another bucket, named after the cluster's, and gives it.
    pub async fn another_bucket(&self, what: &str) -> (String, Store) {
        let name = format!("{}-{what}", self.env["VECMILL_S3_BUCKET"]);
        self.servers.make_bucket(&name);
        let store = self.store().await.of_bucket(&name);
        (name, store)
    }

    /// The first word of all names that are this cluster's own.
    pub fn unique(&self) -> &str {
        &self.unique
    }

    /// The keys of a job's first run.
    pub fn keys(&self, tenant: &Tenant, job: &JobId) -> JobKeys {
        JobKeys::new(&tenant.id, job, FIRST_RUN)
    }

    /// The model's folder.
    pub fn model_dir(&self) -> PathBuf {
        PathBuf::from(&self.env["VECMILL_MODEL_DIR"])
    }

    /// The names on the broker.
    pub fn topology(&self) -> Topology {
        self.broker().topology()
    }

    fn broker(&self) -> BrokerSettings {
        BrokerSettings {
            amqp_url: Some(self.env["VECMILL_AMQP_URL"].clone()),
            tls: <_>::default(),
            amqp_namespace: self.unique.clone(),
            lanes: 4,
            wait_ladder: vec![1, 2, 3],
        }
    }

    /// A connection to the broker and a publisher on it, with everything declared.
    pub async fn publisher(&self) -> (lapin::Connection, Publisher) {
        let connection =
            connect(&self.env["VECMILL_AMQP_URL"], "vecmill tests", &<_>::default()).await.expect("RabbitMQ");
        let publisher = Publisher::open(&connection).await.expect("a channel");
        publisher.declare(&self.topology()).await.expect("the topology");
        (connection, publisher)
    }

    /// One command to Redis.
    pub fn redis(&self, command: &[&str]) -> crate::redis::Reply {
        crate::redis::ask(&self.env["VECMILL_REDIS_URL"], command)
    }

    /// Takes the dead letters: each message's body and its reason header.
    pub async fn dead_letters(&self) -> Vec<(Vec<u8>, String)> {
        let (connection, _) = self.publisher().await;
        let channel = connection.create_channel().await.expect("a channel");
        let mut letters = Vec::new();
        while let Some(letter) = channel
            .basic_get(self.topology().dead_queue().as_str().into(), lapin::options::BasicGetOptions { no_ack: true })
            .await
            .expect("a get")
        {
            let headers = letter.properties.headers().clone().unwrap_or_default();
            let reason = headers.inner().get(vecmill_producer::contract::REASON_HEADER).cloned();
            let reason = match reason {
                Some(lapin::types::AMQPValue::LongString(reason)) => {
                    String::from_utf8_lossy(reason.as_bytes()).into_owned()
                }
                other => format!("{other:?}"),
            };
            letters.push((letter.delivery.data, reason));
        }
        letters
    }

    /// Runs a command of the signer's, and gives what it prints.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn signer(&self, arguments: &[&str]) -> Value {
        json_of(&self.run("vecmill-signer", &[arguments, &["--json"]].concat()))
    }

    /// Runs one of the programs with the cluster's settings.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Output {
        self.command(program, arguments).output().unwrap_or_else(|error| panic!("{program} does not run: {error}"))
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(release_dir().join(program));
        command.args(arguments).envs(&self.env).current_dir(self.dir.path());
        // Each program has the rights of its role, unless the test has given it others.
        for name in RIGHTS.into_iter().filter(|&name| self.env.get(name) == self.servers.env.get(name)) {
            match Role::of(program).and_then(|role| self.env.get(&role.variable(name))) {
                Some(of_role) => command.env(name, of_role),
                None => command.env_remove(name),
            };
        }
        command
    }

    fn spawn(&self, program: &str, arguments: &[&str], env: &[(&'static str, String)], url: String) -> Process {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let log = self.dir.path().join(format!("{program}-{}.log", COUNT.fetch_add(1, Ordering::Relaxed)));
        let mut command = self.command(program, arguments);
        command.envs(env.iter().cloned());
        Process::start(command, log, url)
    }
}

/// One of the programs, with nothing of the caller's environment but what says whose run it belongs to.
pub fn bare(program: &str) -> Command {
    let mut command = Command::new(release_dir().join(program));
    command.env_clear().env("TMPDIR", std::env::temp_dir());
    command
}

/// Where cargo leaves the programs: a benchmark stands beside them, a test in `deps` below.
pub fn release_dir() -> PathBuf {
    let this = std::env::current_exe().expect("this program's path");
    let dir = this.parent().expect("a folder");
    if dir.ends_with("deps") { dir.parent().expect("target/release").to_owned() } else { dir.to_owned() }
}
