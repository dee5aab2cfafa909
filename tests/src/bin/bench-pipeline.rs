//! What the pipeline costs: the same corpus through the engine alone and through everything, in turns.
//!
//! Run it by `infra/bench/pipeline`. Prints a line a turn and the ratio; 1.00 is the physical limit, at which the model
//! is never idle and nothing else takes its cores.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use vecmill_tests::{Cluster, Servers, Tenant, WorkerOptions, corpus};
use vecmill_worker::{
    embedder::Embedder,
    engine::{Compute, Model, Tokenizer, finish, synthetic},
    metrics::Metrics,
    schedule::Class,
};

const DIMENSIONS: usize = 1024;
const BATCH_TOKENS: usize = 4096;
const LIMIT: Duration = Duration::from_secs(3600);

fn setting(name: &str, default: usize) -> anyhow::Result<usize> {
    std::env::var(name).map_or(Ok(default), |value| value.parse().with_context(|| format!("{name} must be a number")))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (texts, layers, turns) =
        (setting("BENCH_TEXTS", 3000)?, setting("BENCH_LAYERS", 2)?, setting("BENCH_TURNS", 2)?);
    let mut cluster = Cluster::on(Servers::shared()).await;
    let dir = cluster.dir.path().join("realistic");
    println!(
        "model: {layers} layers of Qwen3-Embedding-0.6B's shape, f32, seeded random weights; {texts} texts a turn"
    );
    synthetic::write(&dir, &synthetic::Shape::realistic(layers), 1)?;
    cluster.env.insert("VECMILL_MODEL_DIR".to_owned(), dir.display().to_string());
    cluster.env.insert("VECMILL_DIMENSIONS".to_owned(), DIMENSIONS.to_string());
    cluster.env.insert("VECMILL_BATCH_TOKENS".to_owned(), BATCH_TOKENS.to_string());
    cluster.env.insert("VECMILL_CHUNK_ROWS".to_owned(), "100".to_owned());
    cluster.env.remove("RAYON_NUM_THREADS");
    let tenant = cluster.tenant("bench", &[]);
    let worker = cluster.worker(WorkerOptions::default()).await;
    let tokenizer = Tokenizer::load(&dir)?;
    let embedder =
        Embedder::start(Model::load(&dir, &Compute::default())?, BATCH_TOKENS, Arc::new(Metrics::default()))?;

    let (mut alone, mut whole, mut tokens) = (Vec::new(), Vec::new(), 0);
    for turn in 0..turns {
        let texts = corpus::texts(turn as u64 + 1, texts);
        let begun = Instant::now();
        tokens = engine_alone(&embedder, &tokenizer, &texts).await?;
        alone.push(begun.elapsed().as_secs_f64());
        let begun = Instant::now();
        pipeline(&cluster, &tenant, turn, &texts).await?;
        whole.push(begun.elapsed().as_secs_f64());
        println!(
            "turn {turn}: {tokens} tokens; engine alone {:.1} s ({:.0} tok/s), pipeline {:.1} s ({:.0} tok/s), ratio {:.3}",
            alone[turn],
            tokens as f64 / alone[turn],
            whole[turn],
            tokens as f64 / whole[turn],
            alone[turn] / whole[turn],
        );
    }
    drop(worker);
    println!("tokens of the last turn: {tokens}");
    println!(
        "pipeline over bare engine, all turns: {:.3} (limit 1.000)",
        alone.iter().sum::<f64>() / whole.iter().sum::<f64>()
    );
    Ok(())
}

/// Tokenize, pack, compute, cut and norm, in one process; from texts in memory to vectors in memory.
async fn engine_alone(embedder: &Embedder, tokenizer: &Tokenizer, texts: &[(String, String)]) -> anyhow::Result<usize> {
    let rows: Vec<Vec<u32>> = texts.iter().map(|(_, text)| tokenizer.encode(text, None)).collect::<Result<_, _>>()?;
    let tokens = rows.iter().map(Vec::len).sum();
    for hidden in embedder.embed("bench", Class::Bulk, rows).await? {
        finish(&hidden?, DIMENSIONS)?;
    }
    Ok(tokens)
}

/// From a file on disk to `_SUCCESS` on S3: cutting, signing, queueing and writing included.
async fn pipeline(cluster: &Cluster, tenant: &Tenant, turn: usize, texts: &[(String, String)]) -> anyhow::Result<()> {
    let path = corpus::write_jsonl(cluster.dir.path(), &format!("corpus-{turn}.jsonl"), texts);
    let job = cluster.submit(tenant, &path, &[]);
    let success = cluster.keys(tenant, &job).success();
    let store = cluster.store().await;
    vecmill_tests::eventually("the job is complete", LIMIT, || async {
        store.exists(&success).await.is_ok_and(|there| there).then_some(())
    })
    .await;
    Ok(())
}
