//! What a worker needs, and whether it has it: `/healthz`, `/readyz` and `/metrics`.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use tokio::sync::watch;
use tracing::{info, warn};
use vecmill_signer::edge::{self, Bounds, ServerTls};

use crate::{delivery::stopped, metrics::Metrics};

/// Longest wait for open requests at the end: each is answered from memory.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// Something without which a worker takes no new work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// RabbitMQ.
    Broker,
    /// The signer's public keys.
    Keys,
    /// Redis.
    Quota,
    /// S3.
    Store,
}

/// What is lacking now, each with its reason. Starts with a lack of everything: closed by default.
#[derive(Debug)]
pub struct Health {
    lacking: Mutex<BTreeMap<Need, String>>,
}

impl Default for Health {
    fn default() -> Self {
        let unknown =
            [Need::Broker, Need::Keys, Need::Quota, Need::Store].map(|need| (need, "not asked yet".to_owned()));
        Self { lacking: Mutex::new(unknown.into()) }
    }
}

impl Health {
    /// Says that `need` is there.
    pub fn has(&self, need: Need) {
        if self.lock().remove(&need).is_some() {
            info!(?need, "there");
        }
    }

    /// Says that `need` is away, and why. Logged when it is news.
    pub fn lacks(&self, need: Need, reason: &str) {
        if self.lock().insert(need, reason.to_owned()).is_none() {
            warn!(?need, reason, "away: paused until it is back");
        }
    }

    /// What is lacking, as sentences.
    pub fn lacking(&self) -> Vec<String> {
        self.lock().iter().map(|(need, reason)| format!("{need:?}: {reason}")).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Need, String>> {
        self.lacking.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Serves the three routes until `stop` says so.
pub async fn serve(
    listen: SocketAddr,
    tls: Option<ServerTls>,
    bounds: Bounds,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    mut stop: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let ready = {
        let stop = stop.clone();
        get(move |State(health): State<Arc<Health>>| async move {
            let lacking = health.lacking();
            if *stop.borrow() {
                (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned())
            } else if lacking.is_empty() {
                (StatusCode::OK, "ready\n".to_owned())
            } else {
                (StatusCode::SERVICE_UNAVAILABLE, lacking.join("\n") + "\n")
            }
        })
    };
    let routes = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", ready)
        .route("/metrics", get(move || std::future::ready(exposition(&metrics))))
        .with_state(health);
    let listener = tokio::net::TcpListener::bind(listen).await?;
    edge::serve(listener, tls, routes, bounds, async move { stopped(&mut stop).await }, DRAIN_MAX).await
}

fn exposition(metrics: &Metrics) -> impl IntoResponse + use<> {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(axum::http::header::CONTENT_TYPE, content_type)], metrics.exposition())
}
