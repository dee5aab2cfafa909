//! How to read: the format and the fields.

use serde::{Deserialize, Serialize};

/// Most bytes of an id. It is repeated in every result, so a megabyte of it would be a mistake.
pub(super) const ID_BYTES_MAX: usize = 512;

/// Most bytes of a text. The model takes 32,768 tokens, about 150 KiB of English and never more than a few bytes a
/// token; what is longer would fail there after having been stored and moved.
const TEXT_BYTES_MAX: usize = 1 << 20;

/// Most bytes of a line: the longest text with every character escaped as `\u00xx`, and its surroundings.
pub(super) const LINE_BYTES_MAX: usize = 8 << 20;

/// The formats of a corpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InputFormat {
    /// One JSON value a line: an object with id and text, an OpenAI batch line, or a string
    Jsonl,
    /// Parquet, with a column of ids and one of texts
    Parquet,
    /// CSV or TSV, with a header
    Csv,
    /// One text a line
    Lines,
}

impl InputFormat {
    /// The format that a file's name stands for, looking through `.gz` and `.zst`.
    pub fn from_name(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        let plain = [".gz", ".zst", ".zstd"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(&name);
        match plain.rsplit_once('.')?.1 {
            "jsonl" | "ndjson" | "json" => Some(Self::Jsonl),
            "parquet" | "pq" => Some(Self::Parquet),
            "csv" | "tsv" => Some(Self::Csv),
            "txt" | "text" | "lines" => Some(Self::Lines),
            _ => None,
        }
    }
}

/// Which fields to read, and what the job expects of the lines that say something about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadOptions {
    /// Field or column of the ids. Where it is missing the row's place is its id.
    pub id_field: String,
    /// Field or column of the texts.
    pub text_field: String,
    /// Most bytes of a text.
    pub text_bytes_max: usize,
    /// The job's dimensions: an OpenAI batch line that asks for others is a bad row.
    pub dimensions: Option<u32>,
    /// The job's model: an OpenAI batch line that asks for another is a bad row.
    pub model: Option<String>,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            id_field: "id".to_owned(),
            text_field: "text".to_owned(),
            text_bytes_max: TEXT_BYTES_MAX,
            dimensions: None,
            model: None,
        }
    }
}
