//! stub
#![allow(missing_docs)]
use std::path::Path;
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
pub enum InputFormat {
    Jsonl,
    Parquet,
    Csv,
    Lines,
}
impl InputFormat {
    pub fn from_name(_: &str) -> Option<Self> {
        Some(Self::Jsonl)
    }
}
#[derive(Clone, Debug, Default)]
pub struct ReadOptions {
    pub id_field: String,
    pub text_field: String,
    pub text_bytes_max: usize,
    pub dimensions: Option<u32>,
    pub model: Option<String>,
}
pub struct Row {
    pub line: u64,
    pub id: String,
    pub text: String,
}
#[derive(Clone, Debug)]
pub struct BadRow {
    pub line: u64,
    pub code: &'static str,
    pub reason: String,
}
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("x")]
    X,
}
pub type Rows = Box<dyn Iterator<Item = Result<Result<Row, BadRow>, ReadError>> + Send>;
pub fn open(_path: &Path, _format: InputFormat, _options: &ReadOptions) -> Result<Rows, ReadError> {
    Err(ReadError::X)
}
