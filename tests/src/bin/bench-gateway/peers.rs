//! The usual gateways before the same engine: FastAPI that checks an API key, Nginx with Lua that checks our own access tokens,
//! each with an HTTP server around the engine behind it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use axum::{Json, Router, extract::State, http::StatusCode, routing::post};
use base64::{Engine as _, engine::general_purpose};
use serde_json::{Value, json};
use vecmill_signer::client::SignerClient;
use vecmill_tests::{
    Cluster, Tenant,
    cluster::{MODEL, Process},
    free_address,
};
use vecmill_worker::{
    embedder::Embedder,
    engine::{Compute, Model, Tokenizer, finish},
    metrics::Metrics,
    schedule::Class,
};

use super::{BATCH_TOKENS, percentiles, request, through, throughput};

/// Requests of a latency's turn.
const REQUESTS: usize = 500;

/// A peer; ended when dropped.
struct Peer {
    child: Child,
    url: String,
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have died by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Answers a second and latency of each, in turns.
pub(super) async fn compare(
    cluster: &Cluster,
    gateway: &Process,
    tenant: &Tenant,
    turns: usize,
    time: Duration,
    connections: usize,
) -> anyhow::Result<()> {
    let scratch =
        PathBuf::from(std::env::var("BENCH_PEERS").context("BENCH_PEERS is not set: run infra/bench/gateway")?);
    let backend = backend(cluster).await?;
    println!("side by side: answers a second on {connections} connections; latency of one at a time, in ms");
    let names = ["vecmill", "fastapi", "nginx"];
    let mut rates = vec![Vec::new(); names.len()];
    for turn in 0..turns {
        for (index, name) in names.into_iter().enumerate() {
            let (peer, key) = match name {
                "vecmill" => (None, tenant.api_key.clone()),
                name => {
                    // Tokens live five minutes; so does a turn's.
                    let token = prepare(cluster, tenant, &scratch).await?;
                    let key = if name == "nginx" { token } else { tenant.api_key.clone() };
                    (Some(start(name, &scratch, &backend, &key).await?), key)
                }
            };
            let url = peer.as_ref().map_or(&gateway.url, |peer| &peer.url);
            ensure!(status(url, "vm_wrong").await? == 401, "{name} lets in who it should not");
            throughput(url, &key, Duration::from_secs(1), connections).await?;
            let rate = throughput(url, &key, time, connections).await?;
            let [p50, p99] = percentiles(through(url, &key, REQUESTS).await?);
            println!("turn {turn}  {name:8} {rate:7.0}/s   p50 {p50:6.3}  p99 {p99:6.3}");
            rates[index].push(rate);
        }
    }
    for (index, name) in names.into_iter().enumerate().skip(1) {
        let mut ratios: Vec<f64> = rates[0].iter().zip(&rates[index]).map(|(ours, theirs)| ours / theirs).collect();
        ratios.sort_by(f64::total_cmp);
        println!("vecmill / {name}: {:.2} answers a second (median of the turns)", ratios[ratios.len() / 2]);
    }
    Ok(())
}

/// The engine behind HTTP, in this process; gives its address.
async fn backend(cluster: &Cluster) -> anyhow::Result<String> {
    struct Backend {
        embedder: Embedder,
        tokenizer: Tokenizer,
    }
    async fn embed(State(backend): State<Arc<Backend>>, Json(body): Json<Value>) -> Result<Json<Value>, StatusCode> {
        let wrong = |_| StatusCode::INTERNAL_SERVER_ERROR;
        let text = body["input"].as_str().unwrap_or_default();
        let ids = backend.tokenizer.encode(text, None).map_err(|_| StatusCode::BAD_REQUEST)?;
        let tokens = ids.len();
        let mut hiddens = backend.embedder.embed("bench", Class::Synchronous, vec![ids]).await.map_err(wrong)?;
        let hidden = hiddens.remove(0).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
        let vector = finish(&hidden, 64).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
        let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
        let embedding = general_purpose::STANDARD.encode(bytes);
        Ok(Json(json!({
            "object": "list", "model": MODEL, "data": [{"object": "embedding", "index": 0, "embedding": embedding}],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        })))
    }
    let dir = cluster.model_dir();
    let model = Model::load(&dir, &Compute::default())?;
    let embedder = Embedder::start(model, BATCH_TOKENS, Arc::new(Metrics::default()))?;
    let backend = Arc::new(Backend { embedder, tokenizer: Tokenizer::load(&dir)? });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let routes = Router::new().route("/v1/embeddings", post(embed)).with_state(backend);
    tokio::spawn(async move { axum::serve(listener, routes).await });
    Ok(address)
}

/// Writes what the peers check against; gives a fresh access token.
async fn prepare(cluster: &Cluster, tenant: &Tenant, scratch: &Path) -> anyhow::Result<String> {
    let signer = &cluster.env["VECMILL_SIGNER_URL"];
    let token = SignerClient::new(signer, tenant.api_key.parse()?)?.access_token(&[]).await?;
    let client = reqwest::Client::builder().no_proxy().build()?;
    let keys: Value = client.get(format!("{signer}/.well-known/jwks.json")).send().await?.json().await?;
    let (kid, public) = (keys["keys"][0]["kid"].as_str(), keys["keys"][0]["x"].as_str());
    let public = general_purpose::URL_SAFE_NO_PAD.decode(public.context("a public key")?)?;
    let hex: String = public.iter().map(|byte| format!("{byte:02x}")).collect();
    for (name, text) in [("keys", tenant.api_key.as_str()), ("public.hex", &hex), ("kid", kid.context("a kid")?)] {
        std::fs::write(scratch.join(name), text)?;
    }
    Ok(token.token.to_string())
}

async fn start(name: &str, scratch: &Path, backend: &str, key: &str) -> anyhow::Result<Peer> {
    let address = free_address();
    let port = address.rsplit(':').next().context("a port")?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../infra/bench/gateways/peers.py");
    let mut command = Command::new("python3");
    command.arg(script).arg(name).arg(scratch).args([port, "vecmill-signer", backend]);
    let peer = Peer { child: command.spawn().context("python3")?, url: format!("http://{address}") };
    for _ in 0..300 {
        if status(&peer.url, key).await.is_ok_and(|status| status == 200) {
            return Ok(peer);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("{name} does not start")
}

async fn status(url: &str, key: &str) -> anyhow::Result<u16> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    Ok(request(&client, url, key).send().await?.status().as_u16())
}
