//! Nearest passages by brute force: for a first look at a few hundred or thousand vectors.

use anyhow::Context;
use vecmill_producer::{
    part,
    status::{Results, Watch},
};

use crate::{engine::finish, schedule::Class};

use super::run::Local;

/// Bytes of a part read whole; local mode cuts small chunks.
const PART_BYTES_MAX: usize = 256 << 20;

/// A passage and its cosine similarity with the query.
#[derive(Clone, Debug, serde::Serialize)]
pub(super) struct Hit {
    pub(super) id: String,
    pub(super) score: f32,
}

/// All vectors of a job.
pub(super) struct Vectors(Vec<(String, Vec<f32>)>);

impl Vectors {
    /// Reads every part.
    pub(super) async fn read(watch: &Watch) -> anyhow::Result<Self> {
        let mut vectors = Vec::new();
        let Results { keys, parts, .. } = watch.results().await?.context("the job has vanished")?;
        for entry in parts {
            let key = keys.object(&entry.path);
            let bytes = watch.ledger().store().get(&key, PART_BYTES_MAX).await?.context("a part has vanished")?;
            let rows = part::decode(bytes).with_context(|| format!("{key} is not a part"))?;
            vectors.extend(rows.into_iter().map(|(id, vector, _)| (id, vector)));
        }
        Ok(Self(vectors))
    }

    /// The nearest passages. Both sides have norm 1, so the dot product is the cosine.
    pub(super) fn nearest(&self, query: &[f32], count: usize) -> Vec<Hit> {
        let dot = |vector: &[f32]| vector.iter().zip(query).map(|(a, b)| a * b).sum();
        let mut hits: Vec<Hit> = self.0.iter().map(|(id, vector)| Hit { id: id.clone(), score: dot(vector) }).collect();
        hits.sort_by(|a, b| b.score.total_cmp(&a.score));
        hits.truncate(count);
        hits
    }
}

/// The vector of a query: Qwen3's prompt with the task, then as a passage's.
pub(super) async fn embed_query(local: &Local, query: &str, task: &str, dimensions: usize) -> anyhow::Result<Vec<f32>> {
    let tokens = local.tokenizer.encode(query, Some(task)).with_context(|| "the query can't be tokenized")?;
    let mut hiddens = local.embedder.embed(local.tenant.as_str(), Class::Synchronous, vec![tokens]).await?;
    let hidden = hiddens.pop().context("the engine gave no vector")??;
    Ok(finish(&hidden, dimensions)?)
}
