//! A worker's settings, checked together before anything connects.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use vecmill_producer::{store::StoreSettings, topology::BrokerSettings};
use vecmill_signer::{
    claims::DEFAULT_ISSUER,
    edge::{self, Bounds, ClientTlsArgs, ServerTls},
    secret::secret,
    verify::{Keys, RemoteKeys, STALENESS_MAX, Verifier},
};

use crate::{model_source::ModelSource, quota::RedisQuota};

/// Memory for the chunks in hand where nothing else is set. What a producer cuts takes 20 MiB with the largest model, and a worker
/// has two chunks of each of 16 lanes: some 600 MiB.
pub const CHUNK_MEMORY_BYTES: u64 = 2 << 30;

/// The settings as given.
#[derive(Clone, Debug, clap::Args)]
pub struct Settings {
    #[command(flatten)]
    model: ModelSource,
    /// Most tokens in a batch; a longer text goes alone [default: 4096; on a GPU what its memory holds, 32768 at most]
    #[arg(long, env = "VECMILL_BATCH_TOKENS", value_name = "N", value_parser = clap::value_parser!(u32).range(16..=1 << 20))]
    batch_tokens: Option<u32>,
    /// Chunks of each lane taken ahead
    #[arg(long, env = "VECMILL_PREFETCH", value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    prefetch: u16,
    /// Bytes of memory for the chunks in hand, half of them at most for one tenant's: objects, texts and vectors. A chunk for which
    /// there is no room waits outside
    #[arg(long, env = "VECMILL_CHUNK_MEMORY", value_name = "BYTES", default_value_t = CHUNK_MEMORY_BYTES, value_parser = clap::value_parser!(u64).range(64 << 20..=1 << 40))]
    chunk_memory_bytes: u64,
    /// Seconds to finish what has begun after SIGTERM; the rest is handed back
    #[arg(long, env = "VECMILL_DRAIN_S", value_name = "S", default_value_t = 60)]
    drain_s: u64,
    /// Address for /healthz, /readyz and /metrics
    #[arg(long, env = "VECMILL_WORKER_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:8701")]
    listen: String,
    /// PEM file of the certificate to serve them over TLS with, and its chain; taken anew when it changes
    #[arg(long, env = "VECMILL_WORKER_TLS_CERT_FILE", value_name = "FILE")]
    tls_cert_file: Option<PathBuf>,
    /// PEM file of the certificate's private key
    #[arg(long, env = "VECMILL_WORKER_TLS_KEY_FILE", value_name = "FILE")]
    tls_key_file: Option<PathBuf>,
    /// PEM file of the authorities that must have signed each client's certificate; without it clients show none
    #[arg(long, env = "VECMILL_WORKER_TLS_CLIENT_CA_FILE", value_name = "FILE")]
    tls_client_ca_file: Option<PathBuf>,
    /// Allow plain HTTP at an address that other machines can reach
    #[arg(long, env = "VECMILL_WORKER_INSECURE_LISTEN")]
    insecure_listen: bool,
    #[command(flatten)]
    bounds: Bounds,
    /// Name of this worker in audit records and on the broker; by default the host's name and the process id
    #[arg(long, env = "VECMILL_WORKER_NAME", value_name = "NAME")]
    name: Option<String>,
    /// URL of the signer, whose public keys verify grants
    #[arg(long, env = "VECMILL_SIGNER_URL", value_name = "URL", default_value = "http://127.0.0.1:8700")]
    signer_url: String,
    /// Issuer name that grants must carry
    #[arg(long, env = "VECMILL_ISSUER", value_name = "NAME", default_value = DEFAULT_ISSUER)]
    issuer: String,
    /// Seconds that what the signer last said of revocations is gone by while it is away; then this worker pauses
    // An hour is what public keys are kept for; below ten seconds a restart of the signer would stop everything.
    #[arg(long, env = "VECMILL_REVOCATIONS_MAX_AGE_S", value_name = "S", default_value_t = STALENESS_MAX.as_secs(), value_parser = clap::value_parser!(u64).range(10..=3600))]
    revocations_max_age_s: u64,
    #[command(flatten)]
    tls: ClientTlsArgs,
    #[command(flatten)]
    store: StoreSettings,
    /// Bucket for audit records, for one with object lock or versions and readers of its own [default: --s3-bucket]
    #[arg(long = "s3-audit-bucket", env = "VECMILL_S3_AUDIT_BUCKET", value_name = "NAME")]
    audit_bucket: Option<String>,
    #[command(flatten)]
    broker: BrokerSettings,
}

/// Settings that can work.
pub struct Config {
    pub(crate) model: ModelSource,
    pub(crate) batch_tokens: Option<usize>,
    pub(crate) prefetch: u16,
    pub(crate) chunk_memory_bytes: u64,
    pub(crate) drain: Duration,
    pub(crate) listen: SocketAddr,
    pub(crate) listen_tls: Option<ServerTls>,
    pub(crate) bounds: Bounds,
    pub(crate) name: String,
    pub(crate) verifier: Verifier,
    /// Two: one for charges, one for asking whether it is there.
    pub(crate) quota: (RedisQuota, RedisQuota),
    pub(crate) store: StoreSettings,
    /// Where it is not the other one.
    pub(crate) audit_bucket: Option<String>,
    pub(crate) broker: BrokerSettings,
}

impl Settings {
    /// Checks everything; gives all mistakes, a sentence each.
    pub fn check(mut self) -> Result<Config, Vec<String>> {
        let mut mistakes = self.model.mistakes();
        mistakes.extend(self.store.mistakes());
        if self.audit_bucket.as_deref().is_some_and(str::is_empty) {
            mistakes.push(
                "--s3-audit-bucket (VECMILL_S3_AUDIT_BUCKET) is empty: name the bucket, or leave it out".to_owned(),
            );
        }
        mistakes.extend(self.broker.mistakes());
        let tls = keep(&mut mistakes, self.tls.load().map_err(|error| error.to_string())).unwrap_or_default();
        self.broker.tls = tls.clone();
        let keys = keep(
            &mut mistakes,
            RemoteKeys::with_tls(&self.signer_url, &tls)
                .map_err(|error| format!("--signer-url (VECMILL_SIGNER_URL): {error}")),
        );
        let listen_tls = ServerTls::open(
            self.tls_cert_file.as_deref(),
            self.tls_key_file.as_deref(),
            self.tls_client_ca_file.as_deref(),
        );
        let listen_tls = keep(
            &mut mistakes,
            listen_tls.map_err(|error| format!("--tls-cert-file, --tls-key-file, --tls-client-ca-file: {error}")),
        );
        let listen = keep(
            &mut mistakes,
            self.listen.parse::<SocketAddr>().map_err(|_| {
                format!(
                    "--listen (VECMILL_WORKER_LISTEN) is {:?}: it must be ADDRESS:PORT, for example 127.0.0.1:8701",
                    self.listen
                )
            }),
        );
        mistakes.extend(listen.and_then(|address| {
            edge::exposed(
                address,
                self.tls_cert_file.is_some(),
                self.insecure_listen,
                "--insecure-listen (VECMILL_WORKER_INSECURE_LISTEN=true)",
                "--tls-cert-file and --tls-key-file",
            )
        }));
        let quota = keep(
            &mut mistakes,
            match secret("VECMILL_REDIS_URL") {
                None => {
                    Err("VECMILL_REDIS_URL is not set: give Redis' URL, for example redis://:password@127.0.0.1:6379"
                        .to_owned())
                }
                Some(url) => RedisQuota::new(&url, &tls)
                    .and_then(|quota| Ok((quota, RedisQuota::new(&url, &tls)?)))
                    .map_err(|error| format!("VECMILL_REDIS_URL: {error}")),
            },
        );
        match (keys, listen, quota) {
            (Some(keys), Some(listen), Some(quota)) if mistakes.is_empty() => Ok(Config {
                model: self.model,
                batch_tokens: self.batch_tokens.map(|tokens| tokens as usize),
                prefetch: self.prefetch,
                chunk_memory_bytes: self.chunk_memory_bytes,
                drain: Duration::from_secs(self.drain_s),
                listen,
                listen_tls: listen_tls.flatten(),
                bounds: self.bounds,
                name: self.name.unwrap_or_else(default_name),
                verifier: Verifier::new(self.issuer, Keys::Remote(keys))
                    .with_staleness_max(Duration::from_secs(self.revocations_max_age_s)),
                quota,
                audit_bucket: self.audit_bucket,
                store: self.store,
                broker: self.broker,
            }),
            _ => Err(mistakes),
        }
    }
}

/// The value, or its mistake among the others.
fn keep<T>(mistakes: &mut Vec<String>, result: Result<T, String>) -> Option<T> {
    result.map_err(|mistake| mistakes.push(mistake)).ok()
}

fn default_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "worker".to_owned());
    format!("{}-{}", host.trim(), std::process::id())
}
