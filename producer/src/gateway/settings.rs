//! The gateway's settings, checked together before anything connects.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, value_parser};
use vecmill_signer::claims::DEFAULT_ISSUER;
use vecmill_signer::edge::{self, Bounds, ClientTls, ClientTlsArgs, ServerTls};
use vecmill_signer::secret::secret;
use vecmill_signer::verify::{Keys, RemoteKeys, STALENESS_MAX, Verifier};
use zeroize::Zeroizing;

use super::outside::Allowed;
use super::webhooks::Webhooks;
use crate::redis::Redis;
use crate::store::StoreSettings;
use crate::topology::BrokerSettings;

/// Shortest key that webhooks' secrets are derived from: as long as what they are.
const WEBHOOK_KEY_BYTES_MIN: usize = 32;

/// The settings as given.
#[derive(Clone, Debug, Args)]
pub(super) struct Settings {
    /// Address and port to listen on
    #[arg(long, env = "VECMILL_GATEWAY_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:8702")]
    listen: String,
    /// PEM file of the certificate to serve TLS with, and its chain; taken anew when it changes
    #[arg(long, env = "VECMILL_GATEWAY_TLS_CERT_FILE", value_name = "FILE")]
    tls_cert_file: Option<PathBuf>,
    /// PEM file of the certificate's private key
    #[arg(long, env = "VECMILL_GATEWAY_TLS_KEY_FILE", value_name = "FILE")]
    tls_key_file: Option<PathBuf>,
    /// PEM file of the authorities that must have signed each client's certificate; without it clients show none
    #[arg(long, env = "VECMILL_GATEWAY_TLS_CLIENT_CA_FILE", value_name = "FILE")]
    tls_client_ca_file: Option<PathBuf>,
    /// Allow plain HTTP at an address that other machines can reach: API keys travel in it
    #[arg(long, env = "VECMILL_GATEWAY_INSECURE_LISTEN")]
    insecure_listen: bool,
    #[command(flatten)]
    bounds: Bounds,
    /// The model that the workers serve
    #[arg(long, env = "VECMILL_MODEL", value_name = "NAME", default_value = "Qwen/Qwen3-Embedding-4B")]
    model: String,
    /// Length of the model's own vectors; known of Qwen's models
    #[arg(long, env = "VECMILL_MODEL_DIMENSIONS", value_name = "N", value_parser = value_parser!(u32).range(32..=65_536))]
    model_dimensions: Option<u32>,
    /// Seconds within which a request for embeddings is answered, one way or the other. A request waits no longer than the token
    /// that goes with it is good, which is 90 at most
    #[arg(long, env = "VECMILL_GATEWAY_ANSWER_WITHIN_S", value_name = "S", default_value_t = 30, value_parser = value_parser!(u64).range(1..=120))]
    answer_within_s: u64,
    /// Requests worked on at once, half of them at most of one tenant; the next is told to come back
    #[arg(long, env = "VECMILL_GATEWAY_IN_FLIGHT", value_name = "N", default_value_t = 512, value_parser = value_parser!(u32).range(1..=100_000))]
    in_flight: u32,
    /// Uploads, downloads and watches at once, half of what is free one tenant's; the next is told to come back. Each takes up to 16 MiB: a part of a file, and the
    /// one before it on its way
    #[arg(long, env = "VECMILL_GATEWAY_TRANSFERS", value_name = "N", default_value_t = 64, value_parser = value_parser!(u32).range(1..=100_000))]
    transfers: u32,
    /// Bytes of an uploaded file
    #[arg(long, env = "VECMILL_GATEWAY_FILE_BYTES_MAX", value_name = "BYTES", default_value_t = 16 << 30, value_parser = value_parser!(u64).range(1..=78 << 30))]
    file_bytes_max: u64,
    /// Batches cut into chunks at once, one of each tenant, each of a file in the folder that TMPDIR names
    #[arg(long, env = "VECMILL_GATEWAY_PREPARING", value_name = "N", default_value_t = 4, value_parser = value_parser!(u32).range(1..=1_000))]
    preparing: u32,
    /// Ranges of addresses, each with a port, beside the public Internet that webhooks may be posted to: 10.0.0.0/8:443,[fd00::]/8:8443
    #[arg(long, env = "VECMILL_GATEWAY_WEBHOOK_ALLOW", value_name = "CIDR:PORT,..", value_delimiter = ',')]
    webhook_allow: Vec<Allowed>,
    /// Failed logins a minute, for each address and for each API key, before the answer is 429
    #[arg(long, env = "VECMILL_GATEWAY_FAILED_LOGINS_PER_MINUTE", value_name = "N", default_value_t = 30, value_parser = value_parser!(u32).range(1..=1_000_000))]
    failed_logins_per_minute: u32,
    /// URL of the signer
    #[arg(long, env = "VECMILL_SIGNER_URL", value_name = "URL", default_value = "http://127.0.0.1:8700")]
    signer_url: String,
    /// Issuer name that tokens must carry
    #[arg(long, env = "VECMILL_ISSUER", value_name = "NAME", default_value = DEFAULT_ISSUER)]
    issuer: String,
    /// Seconds that what the signer last said of revocations is gone by while it is away; then nothing is served
    #[arg(long, env = "VECMILL_REVOCATIONS_MAX_AGE_S", value_name = "S", default_value_t = STALENESS_MAX.as_secs(), value_parser = value_parser!(u64).range(10..=3600))]
    revocations_max_age_s: u64,
    /// Bytes of request bodies and of vectors in answers held at once, half of them at most of one tenant. The process takes up to
    /// three times as many
    // Of one request 40 MiB at most: its body, and 2,048 vectors of 4,096 numbers. Six tenants have room for one of these at once.
    #[arg(long, env = "VECMILL_GATEWAY_BODY_BYTES", value_name = "BYTES", default_value_t = 256 << 20, value_parser = value_parser!(u64).range(128 << 20..=1 << 40))]
    body_bytes: u64,
    #[command(flatten)]
    tls: ClientTlsArgs,
    #[command(flatten)]
    broker: BrokerSettings,
    #[command(flatten)]
    store: StoreSettings,
}

/// Settings that can work.
pub(super) struct Config {
    pub(super) listen: SocketAddr,
    pub(super) listen_tls: Option<ServerTls>,
    pub(super) bounds: Bounds,
    pub(super) model: String,
    pub(super) answer_within: Duration,
    pub(super) in_flight: u32,
    pub(super) body_bytes: u64,
    pub(super) failed_logins_per_minute: u32,
    pub(super) signer_url: String,
    pub(super) tls: ClientTls,
    pub(super) verifier: Verifier,
    pub(super) broker: BrokerSettings,
    pub(super) store: StoreSettings,
    pub(super) redis: Redis,
    pub(super) webhooks: Option<Webhooks>,
    pub(super) model_dimensions: u32,
    pub(super) transfers: u32,
    pub(super) file_bytes_max: u64,
    pub(super) preparing: u32,
}

impl Settings {
    /// Checks everything; gives all mistakes, a sentence each.
    pub(super) fn check(mut self) -> Result<Config, Vec<String>> {
        let mut mistakes = self.broker.mistakes();
        mistakes.extend(self.store.mistakes());
        let mut keep = |mistake: String| mistakes.push(mistake);
        let tls = self.tls.load().map_err(|error| keep(error.to_string())).unwrap_or_default();
        self.broker.tls = tls.clone();
        let keys = RemoteKeys::with_tls(&self.signer_url, &tls)
            .map_err(|error| keep(format!("--signer-url (VECMILL_SIGNER_URL): {error}")));
        let listen_tls = ServerTls::open(
            self.tls_cert_file.as_deref(),
            self.tls_key_file.as_deref(),
            self.tls_client_ca_file.as_deref(),
        )
        .map_err(|error| keep(format!("--tls-cert-file, --tls-key-file, --tls-client-ca-file: {error}")));
        let listen = self.listen.parse::<SocketAddr>().map_err(|_| {
            keep("--listen (VECMILL_GATEWAY_LISTEN) must be ADDRESS:PORT, for example 127.0.0.1:8702".to_owned());
        });
        if let Ok(address) = listen {
            let exposed = edge::exposed(
                address,
                self.tls_cert_file.is_some(),
                self.insecure_listen,
                "--insecure-listen (VECMILL_GATEWAY_INSECURE_LISTEN=true)",
                "--tls-cert-file and --tls-key-file",
            );
            exposed.into_iter().for_each(&mut keep);
        }
        let unset = "VECMILL_REDIS_URL is not set: give Redis' URL, for example redis://:password@127.0.0.1:6379";
        let redis = secret("VECMILL_REDIS_URL")
            .ok_or_else(|| unset.to_owned())
            .and_then(|url| {
                let redis = Redis::new(&url, &tls);
                redis.map_err(|error| format!("VECMILL_REDIS_URL: {}", edge::explain(&error)))
            })
            .map_err(&mut keep);
        let webhooks = secret("VECMILL_WEBHOOK_KEY").map(Zeroizing::new).and_then(|key| {
            if key.len() < WEBHOOK_KEY_BYTES_MIN {
                keep(format!("VECMILL_WEBHOOK_KEY must have {WEBHOOK_KEY_BYTES_MIN} bytes at least, all random"));
                return None;
            }
            Webhooks::new(&key, std::mem::take(&mut self.webhook_allow))
                .map_err(|error| keep(format!("webhooks can't be set up: {}", edge::explain(&error))))
                .ok()
        });
        let model_dimensions = self.model_dimensions.or_else(|| known_dimensions(&self.model)).ok_or_else(|| {
            keep(format!(
                "--model-dimensions (VECMILL_MODEL_DIMENSIONS) is not set, and the length of {}'s vectors is not known here",
                self.model
            ));
        });
        match (keys, listen_tls, listen, redis, model_dimensions) {
            (Ok(keys), Ok(listen_tls), Ok(listen), Ok(redis), Ok(model_dimensions)) if mistakes.is_empty() => {
                Ok(Config {
                    listen,
                    listen_tls,
                    bounds: self.bounds,
                    model: self.model,
                    answer_within: Duration::from_secs(self.answer_within_s),
                    in_flight: self.in_flight,
                    body_bytes: self.body_bytes,
                    failed_logins_per_minute: self.failed_logins_per_minute,
                    signer_url: self.signer_url,
                    tls,
                    verifier: Verifier::new(self.issuer, Keys::Remote(keys))
                        .with_staleness_max(Duration::from_secs(self.revocations_max_age_s)),
                    broker: self.broker,
                    store: self.store,
                    redis,
                    webhooks,
                    model_dimensions,
                    transfers: self.transfers,
                    file_bytes_max: self.file_bytes_max,
                    preparing: self.preparing,
                })
            }
            _ => Err(mistakes),
        }
    }
}

/// The lengths on the model cards.
fn known_dimensions(model: &str) -> Option<u32> {
    match model {
        "Qwen/Qwen3-Embedding-0.6B" => Some(1024),
        "Qwen/Qwen3-Embedding-4B" => Some(2560),
        "Qwen/Qwen3-Embedding-8B" => Some(4096),
        _ => None,
    }
}
