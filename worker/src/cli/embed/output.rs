//! Where vectors go: JSON lines on standard output or in a file, or a Parquet file.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

use anyhow::Context;
use half::f16;
use serde::Serialize;
use vecmill_producer::contract::Dtype;

use crate::part::PartFile;

/// A text's vector.
pub(super) struct Embedded {
    /// From 1.
    pub(super) line: u64,
    pub(super) id: String,
    pub(super) vector: Vec<f32>,
    pub(super) tokens: u32,
    pub(super) truncated: bool,
}

/// An open output.
pub(super) enum Output {
    Jsonl { out: Box<dyn Write>, dtype: Dtype, ids: bool },
    Parquet(Box<PartFile<File>>),
}

#[derive(Serialize)]
struct Line<'a> {
    index: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    /// Only where it is so.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
    embedding: &'a [f32],
}

fn extension(path: &Path) -> &str {
    path.extension().and_then(|extension| extension.to_str()).unwrap_or_default()
}

/// What is wrong with an output's name.
pub(super) fn mistake(path: &Path) -> Option<String> {
    match extension(path) {
        "parquet" | "pq" | "jsonl" | "ndjson" => None,
        _ => Some(format!("--output (VECMILL_OUTPUT) {} must end in .parquet or .jsonl", path.display())),
    }
}

impl Output {
    /// Opens the file, or standard output. `ids` says whether lines carry ids.
    /// `metadata` goes into a Parquet file.
    pub(super) fn create(
        path: Option<&Path>,
        dimensions: usize,
        dtype: Dtype,
        ids: bool,
        metadata: &[(String, String)],
    ) -> anyhow::Result<Self> {
        let Some(path) = path else {
            return Ok(Self::Jsonl { out: Box::new(BufWriter::new(std::io::stdout())), dtype, ids });
        };
        let file = File::create(path).with_context(|| format!("{} can't be written", path.display()))?;
        Ok(match extension(path) {
            "parquet" | "pq" => Self::Parquet(Box::new(PartFile::begin(file, dimensions, dtype, metadata)?)),
            _ => Self::Jsonl { out: Box::new(BufWriter::new(file)), dtype, ids },
        })
    }

    /// Writes rows; JSON lines are out when this returns.
    pub(super) fn write(&mut self, rows: Vec<Embedded>) -> anyhow::Result<()> {
        match self {
            Self::Jsonl { out, dtype, ids } => {
                for mut row in rows {
                    if *dtype == Dtype::F16 {
                        row.vector.iter_mut().for_each(|value| *value = f16::from_f32(*value).to_f32());
                    }
                    let id = ids.then_some(row.id.as_str());
                    let line = Line { index: row.line - 1, id, truncated: row.truncated, embedding: &row.vector };
                    serde_json::to_writer(&mut *out, &line).map_err(std::io::Error::from)?;
                    out.write_all(b"\n")?;
                }
                out.flush()?;
            }
            Self::Parquet(file) => {
                let (mut ids, mut vectors) = (Vec::new(), Vec::new());
                let (mut tokens, mut truncated) = (Vec::new(), Vec::new());
                for row in rows {
                    ids.push(row.id);
                    vectors.push(row.vector);
                    tokens.push(row.tokens);
                    truncated.push(row.truncated);
                }
                file.write(&ids, &vectors, &tokens, &truncated)?;
            }
        }
        Ok(())
    }

    /// Ends the output.
    pub(super) fn finish(self) -> anyhow::Result<()> {
        match self {
            Self::Jsonl { mut out, .. } => out.flush()?,
            Self::Parquet(file) => _ = file.finish()?,
        }
        Ok(())
    }
}
