//! How to read: the format and the fields.

use serde::{Deserialize, Serialize};

use crate::contract::TEXT_BYTES_MAX;

/// The field of the ids where nothing else is said. It alone may be missing as a column: a name that somebody asked
/// for must be there.
pub(super) const ID_FIELD: &str = "id";

/// The field of the texts where nothing else is said.
pub(super) const TEXT_FIELD: &str = "text";

/// Bytes of text that stand for a token id, in bounds: fewer than any language has a token on average.
const BYTES_PER_TOKEN: usize = 4;

/// The field of token ids, or of a text, where there is none of [`ReadOptions::text_field`]'s default name.
pub(super) const INPUT_FIELD: &str = "input";

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
    /// The format that a file's name stands for, looking through `.gz` and `.zst`; `None` where it says nothing.
    pub fn from_name(name: &str) -> Option<Self> {
        match extension(name)?.as_str() {
            "jsonl" | "ndjson" | "json" => Some(Self::Jsonl),
            "parquet" | "pq" => Some(Self::Parquet),
            "csv" | "tsv" | "tab" => Some(Self::Csv),
            "txt" | "text" | "lines" => Some(Self::Lines),
            _ => None,
        }
    }
}

/// The last extension of a name in lower case, looking through compression.
pub(super) fn extension(name: &str) -> Option<String> {
    let name = name.rsplit(['/', '\\']).next()?.to_ascii_lowercase();
    let plain = [".gz", ".zst", ".zstd"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(&name);
    plain.rsplit_once('.').map(|(_, extension)| extension.to_owned())
}

/// Which fields to read, and what the job expects of the lines that say something about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadOptions {
    /// Field or column of the ids. A row of JSON without it, and a table without a column `id` where that is the
    /// name, have the row's place as id; a table without another column that is named here can't be read.
    pub id_field: String,
    /// Field or column of the texts: strings, or lists of token ids. A row of JSON that does not have it, and a Parquet
    /// file without a column `text` where that is the name, may have `input` instead.
    pub text_field: String,
    /// Most bytes of a text in UTF-8; at most [`TEXT_BYTES_MAX`], beyond which no chunk is read.
    pub text_bytes_max: usize,
    /// The job's dimensions: an OpenAI batch line that asks for others is a bad row. Where this is `None`, so is one
    /// that asks for any: it would not get them.
    pub dimensions: Option<u32>,
    /// Whether an OpenAI batch line must ask for dimensions: where one does and another does not, they ask for vectors of
    /// different lengths.
    pub dimensions_in_every_line: bool,
    /// The job's model: an OpenAI batch line that asks for another is a bad row. `None` takes any.
    pub model: Option<String>,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            id_field: ID_FIELD.to_owned(),
            text_field: TEXT_FIELD.to_owned(),
            text_bytes_max: TEXT_BYTES_MAX,
            dimensions: None,
            dimensions_in_every_line: false,
            model: None,
        }
    }
}

impl ReadOptions {
    /// Most token ids of a text: 262,144 by default. The model's own limit is the worker's to check.
    pub(super) fn tokens_max(&self) -> usize {
        self.text_bytes_max / BYTES_PER_TOKEN
    }

    /// Most bytes of one line of JSON or one CSV record. JSON writes a byte of text as up to six (`\u0007`), and
    /// 2 MiB are left for other fields: 8 MiB by default, held once at a time.
    pub(super) fn record_bytes_max(&self) -> usize {
        self.text_bytes_max.saturating_mul(6).saturating_add(2 << 20)
    }
}
