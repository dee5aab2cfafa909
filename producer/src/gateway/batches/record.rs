//! A batch as it lies on S3.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use vecmill_signer::claims::{Digest, JobId, TenantId};

use super::super::error::ApiError;
use super::super::{App, ids, storage};
use crate::contract::{Dtype, Precision, Truncate};
use crate::life::EndState;
use crate::read::InputFormat;
use crate::submit::Submitted;

/// How a batch's id begins.
pub(super) const PREFIX: &str = "batch_";
/// Bad lines that a batch names; the error file has all.
pub(super) const BAD_LINES_MAX: usize = 1_000;
/// Bytes of them as they are stored: with what a tenant may give besides, a record is shorter than its readers take.
const BAD_LINES_BYTES_MAX: usize = 512 << 10;
/// Characters of what is said of one: a reason may quote a tenant's own names.
const BAD_LINE_CHARS_MAX: usize = 500;

/// What was asked for, and what has become of it as far as the job itself does not tell.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in super::super) struct BatchRecord {
    pub(super) version: u32,
    pub(super) id: String,
    pub(super) created_at: u64,
    pub(super) input_file_id: String,
    pub(super) completion_window: String,
    pub(super) window_s: u64,
    pub(super) metadata: Option<BTreeMap<String, String>>,
    pub(super) order: Order,
    /// Once its chunks are queued.
    pub(in super::super) job: Option<JobId>,
    #[serde(default)]
    pub(super) submitted: Option<Submitted>,
    pub(super) in_progress_at: Option<u64>,
    pub(super) expires_at: Option<u64>,
    pub(super) bad_lines: Vec<BadLine>,
    /// It never became a job.
    pub(super) failed_at: Option<u64>,
    /// What it came to, in records from before that was an object of its own.
    pub(super) ended: Option<Ended>,
}

/// How the file is read and what is made of it, beyond OpenAI's own parameters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) model: Option<String>,
    pub(super) instruction: Option<String>,
    #[serde(default)]
    pub(super) input: InputOptions,
    #[serde(default)]
    pub(super) output: OutputOptions,
    #[serde(default)]
    pub(super) truncate: Truncate,
    #[serde(default)]
    pub(super) strict: bool,
    #[serde(default)]
    pub(super) republish: bool,
    #[serde(default)]
    pub(super) delete_input: bool,
    pub(super) chunk_rows: Option<u32>,
    pub(super) chunk_bytes: Option<u32>,
}

/// How the input file is read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct InputOptions {
    /// `jsonl`, `parquet`, `csv` or `lines`; what the file's name says where this is left out, else `jsonl`.
    #[schema(value_type = Option<String>, pattern = "^(jsonl|parquet|csv|lines)$")]
    pub(super) format: Option<InputFormat>,
    /// Field or column of the ids: `id` where this is left out.
    pub(super) id_field: Option<String>,
    /// Field or column of the texts: `text` where this is left out.
    pub(super) text_field: Option<String>,
}

/// What is made of the vectors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct OutputOptions {
    /// The output file: OpenAI's lines, which it is where this is left out, or one Parquet file.
    #[serde(default)]
    pub(super) format: OutputFormat,
    /// How each number is stored: `f32`, which it is where this is left out, or `f16`.
    #[serde(default)]
    #[schema(value_type = Option<String>, pattern = "^(f32|f16)$")]
    pub(super) dtype: Dtype,
    /// The precision that they are computed in: `f32`, `bf16` or `fp8`; that of whichever worker takes them where this is left out.
    // Not written where it is not asked for: a batch from before it must be the same when it is asked for again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, pattern = "^(f32|bf16|fp8)$")]
    pub(super) precision: Option<Precision>,
    /// Length of the vectors; what the first line asks for where this is left out, else the model's own.
    #[schema(minimum = 32)]
    pub(super) dimensions: Option<u32>,
    /// How a line writes a vector; what the first line asks for where this is left out, else numbers.
    pub(super) encoding_format: Option<super::super::embeddings::Encoding>,
}

/// The form of an output file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in super::super) enum OutputFormat {
    /// A line of JSON a vector.
    #[default]
    Jsonl,
    /// Columns `id`, `embedding`, `tokens` and `truncated`.
    Parquet,
}

/// A line of the input that can't be used, or a reason why there is no job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(in super::super) struct BadLine {
    /// For programs.
    pub(super) code: String,
    /// Which line, from 1.
    pub(super) line: Option<u64>,
    /// For people.
    pub(super) message: String,
    /// The parameter at fault.
    pub(super) param: Option<String>,
}

impl BadLine {
    /// As many as a record has room for, each as long as is useful.
    pub(super) fn bounded(lines: impl IntoIterator<Item = Self>) -> Vec<Self> {
        let mut bytes = 0;
        let shortened = lines.into_iter().take(BAD_LINES_MAX).map(|mut line| {
            if let Some((end, _)) = line.message.char_indices().nth(BAD_LINE_CHARS_MAX) {
                line.message.truncate(end);
            }
            line
        });
        let fits = shortened.take_while(|line| {
            bytes += serde_json::to_vec(line).map_or(0, |line| line.len() + 1);
            bytes <= BAD_LINES_BYTES_MAX
        });
        fits.collect()
    }
}

/// The end of a batch.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Ended {
    pub(super) state: EndState,
    pub(super) at: u64,
    pub(super) counts: Counts,
    pub(super) tokens: u64,
    pub(super) output_file_id: Option<String>,
    pub(super) error_file_id: Option<String>,
    /// The life of the job that its files are made from.
    #[serde(default)]
    pub(super) life: u32,
    /// The summary that its files are made from; none where there was no job, or it ended before there were summaries.
    #[serde(default)]
    pub(super) summary: Option<Digest>,
    /// Chunks that were given up, as lines that can't be used.
    #[serde(default)]
    pub(super) bad_lines: Vec<BadLine>,
}

impl Ended {
    /// An end without a job.
    pub(super) fn unprepared(state: EndState, at: u64) -> Self {
        Self {
            state,
            at,
            counts: Counts::default(),
            tokens: 0,
            output_file_id: None,
            error_file_id: None,
            life: 0,
            summary: None,
            bad_lines: Vec::new(),
        }
    }
}

/// How many requests have come to what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = RequestCounts)]
pub(in super::super) struct Counts {
    /// Lines of the input.
    pub(super) total: u64,
    /// Those that have a vector.
    pub(super) completed: u64,
    /// Those that never will.
    pub(super) failed: u64,
}

impl BatchRecord {
    /// Its id.
    pub(in super::super) fn id(&self) -> &str {
        &self.id
    }

    /// Reads a record.
    pub(in super::super) async fn read(app: &App, tenant: &TenantId, id: &str) -> Result<Option<Self>, ApiError> {
        if !ids::is_good(PREFIX, id) {
            return Ok(None);
        }
        let record: Option<Self> = app.store.get_json(&storage::batch(tenant, id), storage::RECORD_BYTES_MAX).await?;
        let Some(mut record) = record else { return Ok(None) };
        storage::readable(record.version)?;
        if record.ended.is_none() {
            let key = storage::batch_ended(tenant, id);
            record.ended = app.store.get_json(&key, storage::RECORD_BYTES_MAX).await?;
        }
        Ok(Some(record))
    }

    /// Writes down what it came to, unless that was done before; gives what counts.
    pub(super) async fn end(&mut self, app: &App, tenant: &TenantId, ended: Ended) -> Result<(), ApiError> {
        let key = storage::batch_ended(tenant, &self.id);
        let bytes = serde_json::to_vec(&ended).unwrap_or_default();
        self.ended = match app.store.put_new(&key, bytes, "application/json").await? {
            true => Some(ended),
            false => app.store.get_json(&key, storage::RECORD_BYTES_MAX).await?,
        };
        Ok(())
    }

    /// Writes what was asked for and what has become of it.
    pub(super) async fn write(&self, app: &App, tenant: &TenantId) -> Result<(), ApiError> {
        Ok(app.store.put_json(&storage::batch(tenant, &self.id), self).await?)
    }

    /// That it never became a job, and why.
    pub(super) fn fail(&mut self, code: &str, message: String, bad_lines: Vec<BadLine>) {
        self.failed_at = Some(ids::unix_s());
        let first = BadLine { code: code.to_owned(), line: None, message, param: None };
        self.bad_lines = BadLine::bounded(std::iter::once(first).chain(bad_lines));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_bad_lines_fits_its_record() {
        let line = |message: String| BadLine { code: "bad_json".to_owned(), line: Some(7), message, param: None };
        // Each a character that JSON writes with six.
        let worst = BadLine::bounded((0..5_000).map(|_| line("\u{1}".repeat(10_000))));
        let bytes = serde_json::to_vec(&worst).expect("JSON").len();
        assert!(bytes <= BAD_LINES_BYTES_MAX + 2 && worst.len() > 100, "{bytes} bytes of {} lines", worst.len());
        assert_eq!(BadLine::bounded((0..5_000).map(|_| line("short".to_owned()))).len(), BAD_LINES_MAX);
    }
}
