//! From rows to vectors: tokens off the model's thread, hidden states on it, cut and norm off it again.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use tokio::task::JoinError;
use vecmill_producer::contract::{ChunkRow, RowError, RowInput, Truncate};
use vecmill_signer::claims::TenantId;

use super::{Pipeline, admit::Stop};
use crate::{
    embedder::Hiddens,
    engine::{Encoded, Input, TEXT_BYTES_PER_TOKEN_MAX, TokenizeError, Tokenizer, finish},
    schedule::Class,
};

/// Text that is tokenized where it stands: it takes less than the two changes of thread to a blocking one and back.
const SMALL_TEXT_BYTES: usize = 512;
/// The same for vectors to cut and normalize: five of 2,560 numbers.
const SMALL_VALUES: usize = 12_800;

/// Text that is tokenized in one turn: some ten milliseconds. A text that is longer has a turn alone.
const PIECE_BYTES: usize = 64 << 10;
/// Bytes of a text for each token that the model takes, from where on a look at its beginning is worth while: English is below.
const BEGINNING_BYTES_PER_TOKEN: usize = 4;
/// Where a text is cut, its last word may be cut into more tokens than it has.
const CUT_TOKENS_MAX: usize = 64;

/// What is to be tokenized, and whose it is.
pub(super) struct Texts {
    pub(super) tenant: TenantId,
    pub(super) class: Class,
    pub(super) rows: Vec<ChunkRow>,
    pub(super) instruction: Option<String>,
    pub(super) truncate: Truncate,
    /// Where one row that can't be computed, or more tokens than this, make the rest worthless: then it ends there.
    pub(super) tokens_max: Option<u64>,
}

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

    fn append(&mut self, mut more: Self) {
        self.rows.append(&mut more.rows);
        self.tokens.append(&mut more.tokens);
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
    /// Tokenizes on a blocking thread, in pieces and in turn with other tenants; a query's worth of text here and now.
    pub(super) async fn tokenize(&self, texts: Texts) -> Result<Tokenized, Stop> {
        let Texts { tenant, class, rows, instruction, truncate, tokens_max } = texts;
        let ended = |_| Stop::Transient { reason: "tokenizing ended early".to_owned() };
        let beside = instruction.as_ref().map_or(0, String::len);
        let bytes = |row: &ChunkRow| row.input.size_bytes() + beside;
        if rows.iter().map(bytes).sum::<usize>() <= SMALL_TEXT_BYTES {
            return Ok(Tokenized::of(rows, &self.parts.tokenizer, instruction.as_deref(), truncate));
        }
        let instruction: Option<Arc<str>> = instruction.map(Into::into);
        let mut tokenized = Tokenized { rows: Vec::with_capacity(rows.len()), tokens: Vec::with_capacity(rows.len()) };
        let mut rows = rows.into_iter().peekable();
        while let Some(first) = rows.next() {
            let mut size = bytes(&first);
            let mut piece = vec![first];
            while let Some(next) = rows.next_if(|next| size + bytes(next) <= PIECE_BYTES) {
                size += bytes(&next);
                piece.push(next);
            }
            let turn = self.turnstile.turn(tenant.as_str(), class).await;
            let (tokenizer, instruction) = (self.parts.tokenizer.clone(), instruction.clone());
            let working = tokio::task::spawn_blocking(move || {
                // Also where nobody waits for it any more: the core is taken until it is done.
                let _turn = turn;
                Tokenized::of(piece, &tokenizer, instruction.as_deref(), truncate)
            });
            tokenized.append(working.await.map_err(ended)?);
            let over = tokens_max.is_some_and(|most| tokenized.total() > most || tokenized.first_failure().is_some());
            if over {
                break;
            }
        }
        Ok(tokenized)
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
    let encode = || match too_long_by_its_beginning(tokenizer, row, truncate) {
        Some(error) => Err(error),
        None => tokenizer.encode_input(Input::from(&row.input), instruction, truncate),
    };
    match catch_unwind(AssertUnwindSafe(encode)) {
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

/// A text that is far too long, as its beginning shows: what refuses it costs as much as the longest that is not refused, and not
/// as much as it is long. Beginnings double, so that what is looked at in vain is less than what is tokenized then.
fn too_long_by_its_beginning(tokenizer: &Tokenizer, row: &ChunkRow, truncate: Truncate) -> Option<TokenizeError> {
    let RowInput::Text(text) = &row.input else { return None };
    let tokens_max = tokenizer.tokens_max();
    let bytes_max = tokens_max.saturating_mul(TEXT_BYTES_PER_TOKEN_MAX);
    // What is to be cut is cut at its tokens; what is longer than that is refused without a look.
    if truncate == Truncate::End || text.len() > bytes_max {
        return None;
    }
    let mut bytes = tokens_max.saturating_mul(BEGINNING_BYTES_PER_TOKEN);
    while bytes < text.len() {
        let beginning = &text[..text.floor_char_boundary(bytes)];
        match tokenizer.encode_input(Input::Text(beginning), None, Truncate::None) {
            Err(TokenizeError::TooLong { tokens, .. }) if tokens > tokens_max + CUT_TOKENS_MAX => {
                return Some(TokenizeError::TooLong { tokens: tokens - CUT_TOKENS_MAX, tokens_max });
            }
            _ => bytes = bytes.saturating_mul(2),
        }
    }
    None
}

fn row_error(row: &ChunkRow, code: &str, message: String) -> RowError {
    RowError { line: row.line, id: Some(row.id.clone()), code: code.to_owned(), message }
}
