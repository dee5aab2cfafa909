//! The signer's HTTP service.

mod admin;
mod auth;
mod authorization;
mod current;
mod embed_tokens;
mod error;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod grants;
mod oauth;
mod open;
mod routes;
mod submissions;
mod tenants;
mod token;

use std::future::{Future, pending};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, DefaultBodyLimit, FromRequest as _, MatchedPath, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::cidr::Cidr;
use crate::config::Config;
use crate::edge::{self, FailedLogins, ServerTls};
use crate::store::{Store, StoreError};
use crate::vault::Vault;
pub(crate) use admin::{AUDIT_LIMIT_DEFAULT, OVERLAP_S_DEFAULT, OVERLAP_S_MAX};
use current::Current;
use error::ApiError;
use routes::UNBOUNDED;
pub use routes::{Access, route_table};
use tenants::Tenants;

/// The largest honest body is a grant request: under 1 KiB, with an 8 KiB token in its header.
const BODY_LEN_MAX: usize = 16 * 1024;
/// Longest a request may take: above the database's 5 s wait for its write lock.
const REQUEST_MAX: Duration = Duration::from_secs(10);
/// Longest that a body may take: it is no larger than what one packet after the other brings within a second.
const BODY_MAX: Duration = Duration::from_secs(5);
/// Requests at once. Each takes milliseconds; more than this means that the database is stuck, and queueing won't help.
const IN_FLIGHT_MAX: usize = 256;
/// Longest wait for open requests at shutdown. Above [`REQUEST_MAX`], below Kubernetes' 30 s before it kills.
const DRAIN_MAX: Duration = Duration::from_secs(15);

/// Everything the handlers share.
#[derive(Debug)]
pub struct App {
    store: Store,
    vault: Arc<Vault>,
    current: Arc<Current>,
    issuer: String,
    public_url: String,
    lanes: u32,
    in_flight: Semaphore,
    tenants: Tenants,
    failed_logins: FailedLogins,
    log_of_floods: edge::Pace,
    gateways: Vec<Cidr>,
    tls: Option<ServerTls>,
    bounds: edge::Bounds,
}

impl App {
    /// Opens the database and the master key, loads the signing keys, and from then on follows what others change.
    pub async fn open(config: &Config) -> Result<Self, StoreError> {
        let store = Store::open(&config.database).await?;
        store.refuse_reserved().await?;
        store.fold_revocations().await?;
        let vault = Arc::new(Vault::open(&config.master_key_file)?);
        let mounted = config.signing_key_file.as_deref().map(crate::vault::mounted_key).transpose()?;
        if let Some(mounted) = &mounted {
            store.adopt_signing_key(mounted, "serve").await?;
        }
        let current =
            Current::start(store.clone(), Arc::clone(&vault), config.issuer.clone(), mounted, config.old_revocations)
                .await?;
        Ok(Self {
            store,
            vault,
            current,
            issuer: config.issuer.clone(),
            public_url: config.public_url.clone().unwrap_or_else(|| {
                let scheme = if config.tls.is_some() { "https" } else { "http" };
                format!("{scheme}://{}", config.listen)
            }),
            lanes: config.lanes,
            in_flight: Semaphore::new(IN_FLIGHT_MAX),
            tenants: Tenants::default(),
            failed_logins: FailedLogins::new(config.failed_logins_per_minute),
            log_of_floods: edge::Pace::default(),
            gateways: config.gateways.clone(),
            tls: config.tls.clone(),
            bounds: config.bounds,
        })
    }

    /// Writes what is still to be written and closes the database.
    async fn close(&self) {
        self.current.flush().await;
        self.store.close().await;
    }
}

/// The routes. Serve them with the peer's address attached, as [`serve`] does: no handler reads a forwarded address.
pub fn router(app: Arc<App>) -> Router {
    routes::mounted(&app)
        .fallback(async || ApiError::not_found())
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
        .layer(middleware::from_fn_with_state(Arc::clone(&app), bounded))
        .layer(DefaultBodyLimit::max(BODY_LEN_MAX))
        .with_state(app)
}

/// Serves until `shutdown` resolves, then finishes what is under way.
pub async fn serve(
    listener: TcpListener,
    app: Arc<App>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let shutdown = async {
        shutdown.await;
        tracing::info!("shutting down");
    };
    let served =
        edge::serve(listener, app.tls.clone(), router(Arc::clone(&app)), app.bounds, shutdown, DRAIN_MAX).await;
    app.close().await;
    served
}

/// Resolves at SIGTERM or SIGINT. The handlers stand from the call on: a signal that comes before the future is first
/// polled is not lost, and does not kill.
pub fn shutdown_signal() -> impl Future<Output = ()> + Send + 'static {
    use tokio::signal::unix::{SignalKind, signal};
    let on = |kind| {
        let signals = signal(kind);
        async move {
            match signals {
                Ok(mut signals) => {
                    signals.recv().await;
                }
                // Without the handler the signal keeps its default: it ends the process.
                Err(_) => pending().await,
            }
        }
    };
    let (terminate, interrupt) = (on(SignalKind::terminate()), on(SignalKind::interrupt()));
    async move {
        tokio::select! {
            () = terminate => {}
            () = interrupt => {}
        }
    }
}

/// Bounds the number and the time of requests, and logs each: the route's pattern, never a path or a header.
async fn bounded(
    State(app): State<Arc<App>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    let begun = Instant::now();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map_or("unknown", MatchedPath::as_str).to_owned();
    let response = match whole(request).await {
        Err(refusal) => refusal.into_response(),
        Ok(request) if UNBOUNDED.contains(&route.as_str()) => next.run(request).await,
        Ok(request) => match app.in_flight.try_acquire() {
            Ok(_permit) => match tokio::time::timeout(REQUEST_MAX, next.run(request)).await {
                Ok(response) => response,
                Err(_) => ApiError::unavailable("the request took too long").into_response(),
            },
            Err(_) => ApiError::unavailable("too many requests at once").into_response(),
        },
    };
    let status = response.status();
    let took_ms = begun.elapsed().as_millis();
    if status.is_server_error() {
        tracing::warn!(%method, route, status = status.as_u16(), took_ms, client_addr = %peer.ip(), "request");
    } else {
        tracing::debug!(%method, route, status = status.as_u16(), took_ms, client_addr = %peer.ip(), "request");
    }
    response
}

/// The request with its body at hand. Only then it gets a place: whoever is slow, or never says all, holds none. What bodies are
/// waited for is bounded by the connections.
async fn whole(request: Request) -> Result<Request, ApiError> {
    let (parts, body) = request.into_parts();
    // Within the limit that stands before this.
    let reading = Bytes::from_request(Request::from_parts(parts.clone(), body), &());
    match tokio::time::timeout(BODY_MAX, reading).await {
        Ok(Ok(body)) => Ok(Request::from_parts(parts, body.into())),
        Ok(Err(rejection)) => Err(ApiError::bad_body(rejection.status(), rejection.body_text())),
        Err(_) => Err(ApiError::bad_request("invalid_request", "the body took too long to come")),
    }
}
