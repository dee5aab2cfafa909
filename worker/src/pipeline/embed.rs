//! From rows to vectors: tokens off the model's thread, hidden states on it, cut and norm off it again.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use tokio::task::JoinError;
use vecmill_producer::contract::{ChunkRow, RowError, Truncate};

use super::{Pipeline, admit::Stop};
use crate::{
    embedder::Hiddens,
    engine::{Encoded, Input, TokenizeError, Tokenizer, finish},
};

/// Text that is tokenized where it stands: it takes less than the two changes of thread to a blocking one and back.
const SMALL_TEXT_BYTES: usize = 512;
/// The same for vectors to cut and normalize: five of 2,560 numbers.
const SMALL_VALUES: usize = 12_800;

/// A chunk's rows as token ids. A row that has none keeps its place as a failure.
pub(super) struct Tokenized {
    rows: Vec<ChunkRow>,
    tokens: Vec<Result<Encoded, RowError>>,
}

/// A chunk's rows with their vectors.
pub(super) struct Embedded {
    pub(super) ids: Vec<String>,
    pub(super) vectors: Vec<Vec<f32>>,
    pub(super) tokens: Vec<u32>,
    pub(super) truncated: Vec<bool>,
    pub(super) failed: Vec<RowError>,
}

impl Tokenized {
    fn of(rows: Vec<ChunkRow>, tokenizer: &Tokenizer, instruction: Option<&str>, truncate: Truncate) -> Self {
        let tokens = rows.iter().map(|row| tokenize_row(tokenizer, row, instruction, truncate)).collect();
        Self { rows, tokens }
    }

    /// Exact tokens of the rows that can be computed; of what was cut, those that are kept.
    pub(super) fn total(&self) -> u64 {
        self.tokens.iter().flatten().map(|encoded| encoded.ids.len() as u64).sum()
    }

    /// The first row that can't be computed.
    pub(super) fn first_failure(&self) -> Option<&RowError> {
        self.tokens.iter().find_map(|row| row.as_ref().err())
    }

    /// The rows that can be computed, in order; their failures stay.
    pub(super) fn take_good(&mut self) -> Vec<Vec<u32>> {
        self.tokens.iter_mut().filter_map(|row| row.as_mut().ok().map(|row| std::mem::take(&mut row.ids))).collect()
    }
}

impl Pipeline {
    /// Tokenizes on a blocking thread, a bounded number of chunks at once; a query's worth of text here and now.
    pub(super) async fn tokenize(
        &self,
        rows: Vec<ChunkRow>,
        instruction: Option<String>,
        truncate: Truncate,
    ) -> Result<Tokenized, Stop> {
        let ended = |_| Stop::Transient { reason: "tokenizing ended early".to_owned() };
        let bytes = rows.iter().map(|row| row.input.size_bytes()).sum::<usize>()
            + instruction.as_ref().map_or(0, |text| text.len() * rows.len());
        if bytes <= SMALL_TEXT_BYTES {
            return Ok(Tokenized::of(rows, &self.parts.tokenizer, instruction.as_deref(), truncate));
        }
        let permit = Arc::clone(&self.tokenizing).acquire_owned().await.map_err(|_| Stop::HandBack)?;
        let tokenizer = self.parts.tokenizer.clone();
        let tokenized = tokio::task::spawn_blocking(move || {
            let tokenized = Tokenized::of(rows, &tokenizer, instruction.as_deref(), truncate);
            drop(permit);
            tokenized
        });
        tokenized.await.map_err(ended)
    }

    /// Cuts and normalizes; a vector that is not finite fails its row. On a blocking thread, but for a query's worth.
    pub(super) async fn finish(
        tokenized: Tokenized,
        counts: Vec<u32>,
        hiddens: Hiddens,
        dimensions: usize,
    ) -> Result<Embedded, JoinError> {
        let values: usize = hiddens.iter().flatten().map(Vec::len).sum();
        if values <= SMALL_VALUES {
            return Ok(Self::finish_rows(tokenized, &counts, hiddens, dimensions));
        }
        tokio::task::spawn_blocking(move || Self::finish_rows(tokenized, &counts, hiddens, dimensions)).await
    }

    fn finish_rows(tokenized: Tokenized, counts: &[u32], hiddens: Hiddens, dimensions: usize) -> Embedded {
        let rows = tokenized.rows.len();
        let mut embedded = Embedded {
            ids: Vec::with_capacity(rows),
            vectors: Vec::with_capacity(rows),
            tokens: Vec::new(),
            truncated: Vec::new(),
            failed: Vec::new(),
        };
        let mut computed = hiddens.into_iter().zip(counts);
        for (row, tokens) in tokenized.rows.into_iter().zip(tokenized.tokens) {
            let outcome = match tokens {
                Err(failure) => Err(failure),
                Ok(encoded) => match computed.next() {
                    Some((Ok(hidden), count)) => {
                        finish(&hidden, dimensions).map(|vector| (vector, *count, encoded.truncated)).map_err(|error| {
                            row_error(&row, "non_finite", format!("{error}; report the text to the operator"))
                        })
                    }
                    Some((Err(failure), _)) => Err(row_error(&row, "engine_failed", failure.to_string())),
                    None => Err(row_error(&row, "engine_failed", "the engine gave no vector".to_owned())),
                },
            };
            match outcome {
                Ok((vector, count, truncated)) => {
                    embedded.ids.push(row.id);
                    embedded.vectors.push(vector);
                    embedded.tokens.push(count);
                    embedded.truncated.push(truncated);
                }
                Err(failure) => embedded.failed.push(failure),
            }
        }
        embedded
    }
}

fn tokenize_row(
    tokenizer: &Tokenizer,
    row: &ChunkRow,
    instruction: Option<&str>,
    truncate: Truncate,
) -> Result<Encoded, RowError> {
    match catch_unwind(AssertUnwindSafe(|| tokenizer.encode_input(Input::from(&row.input), instruction, truncate))) {
        Ok(Ok(encoded)) => Ok(encoded),
        Ok(Err(error)) => {
            let code = match error {
                TokenizeError::Empty => "empty",
                TokenizeError::TooLong { .. } => "too_long",
                TokenizeError::Unknown { .. } => "unknown_token",
                TokenizeError::Failed => "tokenizer_failed",
            };
            Err(row_error(row, code, error.to_string()))
        }
        Err(_) => Err(row_error(row, "tokenizer_failed", "the tokenizer failed on this text".to_owned())),
    }
}

fn row_error(row: &ChunkRow, code: &str, message: String) -> RowError {
    RowError { line: row.line, id: Some(row.id.clone()), code: code.to_owned(), message }
}
