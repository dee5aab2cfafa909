//! The bundled corpus: passages over a dozen topics in many languages, and queries that name their answers.

use std::path::Path;

use anyhow::Context;
use serde::Deserialize;

const CORPUS: &str = include_str!("../../assets/sample/corpus.jsonl");
const QUERIES: &str = include_str!("../../assets/sample/queries.jsonl");

/// A query and the passages that answer it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Query {
    pub(super) query: String,
    pub(super) relevant: Vec<String>,
}

/// Writes the corpus beside its results, so that the user can read what was embedded.
pub(super) fn write_corpus(path: &Path) -> anyhow::Result<()> {
    std::fs::write(path, CORPUS).with_context(|| format!("{} can't be written", path.display()))
}

/// The queries.
pub(super) fn queries() -> anyhow::Result<Vec<Query>> {
    QUERIES.lines().map(|line| serde_json::from_str(line).context("a bundled query")).collect()
}

/// The beginning of a bundled passage.
pub(super) fn passage(id: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Passage {
        id: String,
        text: String,
    }
    let mut passages = CORPUS.lines().filter_map(|line| serde_json::from_str::<Passage>(line).ok());
    passages.find(|passage| passage.id == id).map(|passage| passage.text)
}
