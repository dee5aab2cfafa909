//! A tenant who asks for what it always asks, one request after the other of each kind, and keeps how each went.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context;
use axum::{Router, extract::State, routing::post};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tokio::sync::Notify;
use vecmill_tests::{
    Tenant,
    cluster::MODEL,
    form::{FORM_TYPE, form},
    receivers::served,
};

/// Longer than anything should take: what comes later counts as an error.
const PATIENCE: Duration = Duration::from_secs(20);
/// Within which a batch of one line is computed and its webhook told, whatever goes on.
const BATCH_WITHIN: Duration = Duration::from_secs(60);

/// How requests went.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    took: Vec<Duration>,
    errors: Vec<String>,
}

impl Seen {
    pub(crate) fn asked(&self) -> usize {
        self.took.len()
    }

    pub(crate) fn errors(&self) -> &[String] {
        &self.errors
    }

    /// What was seen at another time as well.
    pub(crate) fn add(&mut self, other: Self) {
        self.took.extend(other.took);
        self.errors.extend(other.errors);
    }

    fn place(&self, share: f64) -> Duration {
        let mut took = self.took.clone();
        took.sort();
        let last = took.len().saturating_sub(1);
        took.get((last as f64 * share).ceil() as usize).copied().unwrap_or_default()
    }

    pub(crate) fn p50(&self) -> Duration {
        self.place(0.5)
    }

    pub(crate) fn p99(&self) -> Duration {
        self.place(0.99)
    }

    pub(crate) fn worst(&self) -> Duration {
        self.place(1.0)
    }
}

/// What the bystander's webhooks are posted to.
pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    told: Arc<Notify>,
}

impl Receiver {
    pub(crate) async fn start() -> Self {
        let told = Arc::new(Notify::new());
        let hear = async |State(told): State<Arc<Notify>>| told.notify_one();
        let routes = Router::new().route("/", post(hear)).with_state(Arc::clone(&told));
        Self { address: served(routes).await, told }
    }
}

/// The tenant.
pub(crate) struct Bystander {
    client: Client,
    gateway: String,
    signer: String,
    tenant: Tenant,
    receiver: Receiver,
}

impl Bystander {
    pub(crate) fn new(gateway: &str, signer: &str, tenant: Tenant, receiver: Receiver) -> anyhow::Result<Self> {
        let client = Client::builder().no_proxy().timeout(PATIENCE).build()?;
        let (gateway, signer) = (gateway.to_owned(), signer.to_owned());
        Ok(Self { client, gateway, signer, tenant, receiver })
    }

    /// Asks while `other` goes on; gives how that went, and what came of the other.
    pub(crate) async fn watch<T>(&self, other: impl Future<Output = T>) -> anyhow::Result<(Seen, T)> {
        let seen = Mutex::new(Seen::default());
        let note = |what: &str, begun: Instant, result: anyhow::Result<()>| {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.took.push(begun.elapsed());
            if let Err(error) = result {
                seen.errors.push(format!("{what}: {error:#}"));
            }
        };
        let looking = async {
            tokio::join!(
                every(30, async || note("an embedding", Instant::now(), self.embedding().await)),
                every(300, async || note(
                    "a list",
                    Instant::now(),
                    self.asked(Method::GET, "/v1/batches?limit=1", None).await.map(drop)
                )),
                every(300, async || note("a log-in", Instant::now(), self.log_in().await)),
                every(300, async || note("the revocations", Instant::now(), self.revocations().await)),
                every(1000, async || {
                    // Its time is the machine's to give: only that it is done counts.
                    if let Err(error) = self.batch().await {
                        note("a batch", Instant::now(), Err(error));
                    }
                }),
            );
        };
        tokio::pin!(other);
        let other = tokio::select! {
            other = &mut other => other,
            () = looking => anyhow::bail!("the bystander has ended"),
        };
        Ok((seen.into_inner().unwrap_or_else(PoisonError::into_inner), other))
    }

    async fn asked(&self, method: Method, path: &str, body: Option<Value>) -> anyhow::Result<Value> {
        let mut request =
            self.client.request(method, format!("{}{path}", self.gateway)).bearer_auth(&self.tenant.api_key);
        if let Some(body) = body {
            request = request.json(&body);
        }
        answered(request).await
    }

    async fn embedding(&self) -> anyhow::Result<()> {
        let body = json!({"model": MODEL, "input": "word", "encoding_format": "base64"});
        let answer = self.asked(Method::POST, "/v1/embeddings", Some(body)).await?;
        anyhow::ensure!(answer["data"][0]["embedding"].is_string(), "no vector");
        Ok(())
    }

    async fn log_in(&self) -> anyhow::Result<()> {
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", self.tenant.key_id()),
            ("client_secret", &self.tenant.api_key),
        ];
        answered(self.client.post(format!("{}/oauth/token", self.signer)).form(&form)).await.map(drop)
    }

    async fn revocations(&self) -> anyhow::Result<()> {
        let answer = self.client.get(format!("{}/v1/revocations/2", self.signer)).send().await?;
        anyhow::ensure!(answer.status() == 200, "{}", answer.status());
        Ok(())
    }

    /// A batch of a line of its own, from the upload to the webhook.
    async fn batch(&self) -> anyhow::Result<()> {
        static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let lines = format!("{{\"id\":\"1\",\"text\":\"the {number}th text of a bystander\"}}\n");
        let form = form("corpus.jsonl", lines.as_bytes());
        let upload = self.client.post(format!("{}/v1/files", self.gateway)).bearer_auth(&self.tenant.api_key);
        let file = answered(upload.header("content-type", FORM_TYPE).body(form)).await.context("its upload")?;
        let body = json!({
            "input_file_id": file["id"], "endpoint": "/v1/embeddings", "completion_window": "24h", "model": MODEL,
            "webhook_url": format!("http://{}/", self.receiver.address),
        });
        let batch = self.asked(Method::POST, "/v1/batches", Some(body)).await.context("making it")?;
        let path = format!("/v1/batches/{}", batch["id"].as_str().context("an id")?);
        let ended = async {
            loop {
                let batch = self.asked(Method::GET, &path, None).await.context("its status")?;
                match batch["status"].as_str() {
                    Some("completed") => return Ok(()),
                    Some("failed" | "expired" | "cancelled") => anyhow::bail!("{batch}"),
                    _ => tokio::time::sleep(Duration::from_millis(300)).await,
                }
            }
        };
        tokio::time::timeout(BATCH_WITHIN, ended).await.context("it was not computed in time")??;
        let told = tokio::time::timeout(BATCH_WITHIN, self.receiver.told.notified()).await;
        told.context("its webhook was not told in time")
    }
}

async fn answered(request: reqwest::RequestBuilder) -> anyhow::Result<Value> {
    let answer = request.send().await?;
    let (status, body) = (answer.status(), answer.text().await?);
    anyhow::ensure!(status == 200, "{status}: {}", body.chars().take(200).collect::<String>());
    Ok(serde_json::from_str(&body)?)
}

/// Does it again and again; never ends.
async fn every(pause_ms: u64, mut ask: impl AsyncFnMut()) {
    loop {
        ask().await;
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
    }
}
