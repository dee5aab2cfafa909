//! RabbitMQ, Redis and S3, as `infra/services` starts them.

use std::{
    collections::BTreeMap,
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

use tempfile::TempDir;

use crate::program::printed;

/// Addresses and credentials, as environment variables for the programs.
pub type Env = BTreeMap<String, String>;

/// The variables that `infra/services env` prints.
const NAMES: [&str; 25] = [
    "VECMILL_AMQP_URL",
    "VECMILL_REDIS_URL",
    "VECMILL_S3_ENDPOINT",
    "VECMILL_S3_BUCKET",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_REGION",
    // The same servers over TLS, and the folder with their authority and certificate.
    "VECMILL_TEST_AMQPS_URL",
    "VECMILL_TEST_REDISS_URL",
    "VECMILL_TEST_S3_TLS",
    "VECMILL_TEST_TLS_DIR",
    // What each role has: see `Role`.
    "VECMILL_TEST_PRODUCER_AMQP_URL",
    "VECMILL_TEST_PRODUCER_AWS_ACCESS_KEY_ID",
    "VECMILL_TEST_PRODUCER_AWS_SECRET_ACCESS_KEY",
    "VECMILL_TEST_PRODUCER_OF_ONE_AWS_ACCESS_KEY_ID",
    "VECMILL_TEST_PRODUCER_OF_ONE_AWS_SECRET_ACCESS_KEY",
    "VECMILL_TEST_GATEWAY_AMQP_URL",
    "VECMILL_TEST_GATEWAY_REDIS_URL",
    "VECMILL_TEST_GATEWAY_AWS_ACCESS_KEY_ID",
    "VECMILL_TEST_GATEWAY_AWS_SECRET_ACCESS_KEY",
    "VECMILL_TEST_WORKER_AMQP_URL",
    "VECMILL_TEST_WORKER_REDIS_URL",
    "VECMILL_TEST_WORKER_AWS_ACCESS_KEY_ID",
    "VECMILL_TEST_WORKER_AWS_SECRET_ACCESS_KEY",
    "VECMILL_TEST_OPS_AMQP_URL",
];

/// Who a program is to the servers: each role has users and keys of its own, with the rights in `infra/roles`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Who submits by command: of any tenant.
    Producer,
    /// The same, of the tenant `only-this` alone; on S3 only.
    ProducerOfOne,
    /// A gateway.
    Gateway,
    /// A worker.
    Worker,
    /// Who looks at queues.
    Ops,
}

impl Role {
    /// The role that one of the programs has. None has rights at all where there is none: the signer's.
    pub(crate) fn of(program: &str) -> Option<Self> {
        match program {
            "vecmill" => Some(Self::Producer),
            "vecmill-gateway" => Some(Self::Gateway),
            "vecmill-worker" => Some(Self::Worker),
            _ => None,
        }
    }

    /// The variable that holds the role's own `name`.
    pub fn variable(self, name: &str) -> String {
        let role = match self {
            Self::Producer => "PRODUCER",
            Self::ProducerOfOne => "PRODUCER_OF_ONE",
            Self::Gateway => "GATEWAY",
            Self::Worker => "WORKER",
            Self::Ops => "OPS",
        };
        format!("VECMILL_TEST_{role}_{}", name.strip_prefix("VECMILL_").unwrap_or(name))
    }
}

/// Addresses with users and keys in them, and keys: an operator's of everything, unless a role is asked for.
pub(crate) const RIGHTS: [&str; 4] =
    ["VECMILL_AMQP_URL", "VECMILL_REDIS_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];

/// Servers to test against.
pub struct Servers {
    /// What the programs need to reach them.
    pub env: Env,
    /// The folder of private instances, removed at the end.
    dir: Option<TempDir>,
}

impl Servers {
    /// The instances that all tests share: never stopped, only used.
    ///
    /// # Panics
    /// When `infra/test` did not start them.
    pub fn shared() -> Self {
        let value = |name: &&str| {
            let value = std::env::var(name);
            (name.to_string(), value.unwrap_or_else(|_| panic!("{name} is not set: run the tests by ./infra/test")))
        };
        Self { env: NAMES.iter().map(value).collect(), dir: None }
    }

    /// With a bucket of its own on them: gateways look through a whole bucket for work that nobody is at, and would take up
    /// that of other tests.
    ///
    /// # Panics
    /// When it can't be made.
    pub(crate) fn with_bucket(mut self, name: &str) -> Self {
        self.make_bucket(name);
        self.env.insert("VECMILL_S3_BUCKET".to_owned(), name.to_owned());
        self
    }

    /// Makes a bucket, as an operator does.
    ///
    /// # Panics
    /// When it can't be made.
    pub(crate) fn make_bucket(&self, name: &str) {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--fail", "--noproxy", "*", "--max-time", "30", "--config", "-"]);
        curl.args(["--aws-sigv4", "aws:amz:us-east-1:s3", "--request", "PUT"]);
        curl.arg(format!("{}/{name}", self.env["VECMILL_S3_ENDPOINT"]));
        let mut child = curl.stdin(Stdio::piped()).spawn().expect("curl runs");
        let keys = format!("user = \"{}:{}\"\n", self.env["AWS_ACCESS_KEY_ID"], self.env["AWS_SECRET_ACCESS_KEY"]);
        // By its standard input: others see arguments.
        child.stdin.take().expect("piped").write_all(keys.as_bytes()).expect("it listens");
        assert!(child.wait().expect("it ends").success(), "the bucket {name} can't be made");
    }

    /// Whether other tests use them, too.
    pub(crate) fn are_shared(&self) -> bool {
        self.dir.is_none()
    }

    /// Instances of this test's own, to be killed and restarted.
    pub fn private() -> Self {
        Self::started(&[])
    }

    /// The same, but over TLS RabbitMQ and Redis take only who shows a certificate of their authority's.
    pub fn private_for_certificates() -> Self {
        Self::started(&[("VECMILL_SERVICES_CLIENT_CERTIFICATES", "required")])
    }

    fn started(settings: &[(&str, &str)]) -> Self {
        let base = std::env::var_os("VECMILL_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let dir = TempDir::with_prefix_in("servers-", base).expect("a folder for the servers");
        let mut servers = Self { env: Env::new(), dir: Some(dir) };
        servers.control_with("start", &[], settings);
        let printed = servers.control("env", &[]);
        servers.env = printed
            .lines()
            .filter_map(|line| line.strip_prefix("export ")?.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.trim_matches(['\'', '"']).to_owned()))
            .collect();
        for name in NAMES {
            assert!(servers.env.contains_key(name), "infra/services env does not print {name}");
        }
        servers
    }

    /// `start`, `stop` or `kill` some of the private instances; gives what was printed.
    ///
    /// # Panics
    /// When the servers are shared ones, or the script fails.
    pub fn control(&self, action: &str, services: &[&str]) -> String {
        self.control_with(action, services, &[])
    }

    fn control_with(&self, action: &str, services: &[&str], settings: &[(&str, &str)]) -> String {
        let dir = self.dir.as_ref().expect("only private servers can be stopped").path();
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../infra/services");
        let mut command = Command::new(&script);
        command.arg(action).arg(dir).args(services).envs(settings.iter().copied());
        // They go with this test, also when it is killed.
        command.env("VECMILL_SERVICES_OWNER", std::process::id().to_string());
        printed(&command.output().expect("infra/services runs"))
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        if self.dir.is_some() {
            self.control("kill", &[]);
        }
    }
}
