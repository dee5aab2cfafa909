//! `vecmill-gateway`: the tenants' door. What a stock OpenAI client asks for, answered by the workers.

mod admission;
mod auth;
mod batches;
mod bodies;
mod embed_tokens;
mod embeddings;
mod error;
mod files;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod ids;
mod jobs;
mod limits;
mod models;
mod openapi;
mod outside;
mod paging;
mod routes;
mod settings;
mod shared;
mod storage;
mod stored;
mod transfers;
mod usage;
mod webhooks;
mod workers;

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit, MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::Response;
use bytes::Bytes;
use clap::{CommandFactory as _, Parser, Subcommand};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tracing_subscriber::EnvFilter;
use vecmill_signer::claims::{JobId, TenantId};
use vecmill_signer::edge;
use vecmill_signer::server::shutdown_signal;

use self::admission::Admission;
use self::auth::Auth;
use self::batches::Turns;
use self::bodies::Bodies;
use self::embed_tokens::EmbedTokens;
use self::error::ApiError;
use self::limits::RequestLimits;
use self::settings::{Config, Settings};
use self::shared::Shared;
use self::webhooks::Webhooks;
use self::workers::Workers;
use crate::shares::{Share, Shares};
use crate::status::{JobStatus, ManifestBudget, Watch};
use crate::store::Store;
use crate::topology::BrokerSettings;

/// The largest request: 300,000 tokens are below 2 MiB of most texts. The message that carries it adds a token.
const BODY_LEN_MAX: usize = 7 << 20;
/// Probes at once. A fleet's load balancers ask twice a second each, and are answered within a millisecond.
const PROBES_MAX: usize = 16;
/// Longest wait for open requests at shutdown: below Kubernetes' 30 s before it kills.
const DRAIN_MAX: Duration = Duration::from_secs(25);
/// The id of a request: in the answer, in the logs of gateway and worker, and in the audit.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

const EXAMPLES: &str = "\
Examples:
  vecmill-gateway serve --model Qwen/Qwen3-Embedding-4B
  vecmill-gateway serve --listen 0.0.0.0:443 --tls-cert-file cert.pem --tls-key-file key.pem

Then, with any OpenAI client:
  OpenAI(base_url=\"http://127.0.0.1:8702/v1\", api_key=\"vm_..\").embeddings.create(model=.., input=..)

Every flag can be set by the environment variable that its help names. Secrets have no flags: VECMILL_AMQP_URL,
VECMILL_REDIS_URL and, for webhooks, VECMILL_WEBHOOK_KEY, the same at all gateways; or VECMILL_AMQP_URL_FILE and so on.
S3's come as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Exit codes: 0 done, 1 failed, 2 wrong arguments or settings.";

/// The tenants' door: an OpenAI-compatible HTTP service before the workers.
#[derive(Debug, Parser)]
#[command(name = "vecmill-gateway", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the HTTP service
    Serve(Box<Serve>),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, clap::Args)]
struct Serve {
    #[command(flatten)]
    settings: Settings,
    /// What to log, as tracing's filters read it
    #[arg(long, env = "VECMILL_GATEWAY_LOG", value_name = "FILTER", default_value = "info")]
    log: EnvFilter,
    /// Log a JSON object a line
    #[arg(long, env = "VECMILL_GATEWAY_LOG_JSON")]
    log_json: bool,
}

/// Everything the handlers share.
#[derive(Debug)]
struct App {
    auth: Auth,
    embed_tokens: EmbedTokens,
    workers: Workers,
    admission: Admission,
    limits: RequestLimits,
    shared: Shared,
    store: Store,
    broker: BrokerSettings,
    model: String,
    model_dimensions: u32,
    answer_within: Duration,
    /// Requests that are worked on, by tenant.
    places: Shares,
    bodies: Bodies,
    /// Looks at whether it is ready.
    probes: Semaphore,
    /// What it takes and answers, written out once: anyone may ask for it.
    description: Bytes,
    /// Uploads, downloads and watches under way, by tenant.
    transfers: Shares,
    file_bytes_max: u64,
    /// None where no key was given.
    webhooks: Option<Webhooks>,
    /// Whose batch is prepared next.
    turns: Turns,
    manifests: ManifestBudget,
}

impl App {
    /// What tells of ends, where it is set up.
    fn webhooks(&self) -> Result<&Webhooks, ApiError> {
        self.webhooks.as_ref().ok_or_else(|| {
            let sentence = "webhooks are not set up at this gateway: watch the batch in their place";
            ApiError::invalid("webhooks_not_set_up", Some("webhook_url"), sentence)
        })
    }

    /// Looks at a job again and again, within what manifests may take of the gateway's memory.
    fn watch(&self, tenant: &TenantId, job: &JobId) -> Watch {
        Watch::new(self.store.clone(), tenant, job).within(&self.manifests)
    }

    /// Where a job stands.
    async fn status(&self, tenant: &TenantId, job: &JobId) -> Result<JobStatus, ApiError> {
        Ok(self.watch(tenant, job).look().await?)
    }

    /// A place for what takes longer than a request: an upload, a download, a watch.
    fn transfer(&self, tenant: &TenantId) -> Result<Share, ApiError> {
        self.transfers.take(tenant.as_str(), 1).ok_or_else(|| {
            let sentence = "the gateway has all the uploads, downloads and watches it serves at once, or the tenant its share of \
                            them; ask again";
            ApiError::unavailable("overloaded", sentence)
        })
    }
}

/// The id of the request at hand.
#[derive(Clone, Debug)]
struct RequestId(String);

/// The program. It stands here and not in `bin/`, because a program that awaits a library's futures compiles them all
/// once more.
#[tokio::main]
pub async fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(serve) => run(*serve).await,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "vecmill-gateway", &mut std::io::stdout());
            ExitCode::SUCCESS
        }
    }
}

async fn run(serve: Serve) -> ExitCode {
    let log = tracing_subscriber::fmt()
        .with_env_filter(serve.log)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    if serve.log_json {
        log.json().init()
    } else {
        log.init()
    }
    let config = match serve.settings.check() {
        Ok(config) => config,
        Err(mistakes) => {
            eprintln!("vecmill-gateway: the settings have {} mistake(s)", mistakes.len());
            mistakes.iter().for_each(|mistake| eprintln!("  {mistake}"));
            return ExitCode::from(2);
        }
    };
    match listen(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vecmill-gateway: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn listen(config: Config) -> std::io::Result<()> {
    let listener = TcpListener::bind(config.listen)
        .await
        .map_err(|error| std::io::Error::new(error.kind(), format!("can't listen on {}: {error}", config.listen)))?;
    let shutdown = shutdown_signal();
    tracing::info!(address = %listener.local_addr()?, model = config.model, tls = config.listen_tls.is_some(), "listening");
    let app = Arc::new(App {
        auth: Auth::new(config.signer_url, config.tls, config.verifier, config.failed_logins_per_minute),
        embed_tokens: EmbedTokens::default(),
        workers: Workers::connect(config.broker.clone()),
        admission: Admission::new(config.answer_within),
        limits: RequestLimits::new(config.redis.clone()),
        shared: Shared::new(config.redis, config.store.bucket.clone()),
        store: Store::connect(&config.store).await,
        broker: config.broker,
        description: openapi::written(&config.model),
        model: config.model,
        model_dimensions: config.model_dimensions,
        answer_within: config.answer_within,
        places: Shares::new(config.in_flight.into()),
        bodies: Bodies::new(config.body_bytes, config.bounds.connections),
        probes: Semaphore::new(PROBES_MAX),
        transfers: Shares::new(config.transfers.into()),
        file_bytes_max: config.file_bytes_max,
        webhooks: config.webhooks,
        turns: Turns::new(config.preparing as usize),
        manifests: ManifestBudget::default(),
    });
    tokio::spawn(batches::run(Arc::clone(&app)));
    tokio::spawn(webhooks::run(Arc::clone(&app)));
    tokio::spawn(stored::run(Arc::clone(&app)));
    let shutdown = async {
        shutdown.await;
        tracing::info!("shutting down");
    };
    let served =
        edge::serve(listener, config.listen_tls, router(Arc::clone(&app)), config.bounds, shutdown, DRAIN_MAX).await;
    app.turns.close().await;
    served
}

fn router(app: Arc<App>) -> Router {
    routes::mounted(&app)
        .fallback(async || ApiError::not_found("not_found", "there is nothing at this address"))
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
        .layer(DefaultBodyLimit::max(BODY_LEN_MAX))
        .layer(middleware::from_fn(named))
        .with_state(app)
}

/// Names each request, and logs it: the route's pattern, never a path or a header.
async fn named(ConnectInfo(peer): ConnectInfo<SocketAddr>, mut request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let id = request_id();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map_or("unknown", MatchedPath::as_str).to_owned();
    request.extensions_mut().insert(RequestId(id.clone()));
    let mut response = next.run(request).await;
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    let (status, took_ms) = (response.status(), begun.elapsed().as_millis());
    if status.is_server_error() || status == StatusCode::UNAUTHORIZED {
        tracing::warn!(request = id, %method, route, status = status.as_u16(), took_ms, client_addr = %peer.ip(), "request");
    } else if route.starts_with("/v1/") {
        tracing::info!(request = id, %method, route, status = status.as_u16(), took_ms, client_addr = %peer.ip(), "request");
    } else {
        // Probes, twice a second each.
        tracing::debug!(request = id, %method, route, status = status.as_u16(), took_ms, client_addr = %peer.ip(), "request");
    }
    response
}

/// 128 random bits. Not the caller's: what a request is found by in logs and audit must be nobody's to choose.
fn request_id() -> String {
    let mut bytes = [0; 16];
    // The one source of randomness that TLS has too; without it there would be no connection.
    let _ = edge::provider().secure_random.fill(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_arguments_are_one() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_two_requests_have_one_id() {
        let ids: std::collections::HashSet<_> = (0..100).map(|_| request_id()).collect();
        assert_eq!(ids.len(), 100);
        assert!(ids.iter().all(|id| id.len() == 32));
    }
}
