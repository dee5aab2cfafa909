//! `vecmill-worker embed`: texts on standard input to vectors, without a job, a grant or a server.
//!
//! A thread reads and tokenizes, the model's thread computes, the main task writes. Between them are short queues, so
//! memory does not grow with the input, and a text that comes alone is embedded at once.

mod output;
mod progress;

use std::{
    collections::VecDeque,
    fs::File,
    io::{IsTerminal, Read},
    os::fd::AsFd,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::Context;
use clap::ValueEnum;
use tokio::{sync::mpsc, task::JoinHandle};
use vecmill_producer::{
    contract::{Dtype, RowInput, Truncate},
    read::{ReadError, ReadOptions, Rows, stream_jsonl, stream_lines},
};

use self::{
    output::{Embedded, Output},
    progress::Progress,
};
use crate::{
    embedder::{Embedder, Hiddens, NotComputed},
    engine::{Encoded, Input, ModelInfo, Tokenizer, finish},
    metrics::Metrics,
    model_source::ModelSource,
    panics, part,
    schedule::Class,
};

const EXAMPLES: &str = "\
Each vector is a line {\"index\": 0, \"embedding\": [..]} on standard output, in input order; the index counts lines
from 0. Blank lines are skipped. A line that can't be embedded is named on standard error, the others go on, and the
exit code is 1. gzip and zstd are seen through.

Examples:
  vecmill-worker embed --model-dir /models/0.6B < lines.txt > vectors.jsonl
  zcat corpus.jsonl.gz | vecmill-worker embed --model-dir /models/0.6B --format jsonl --output vectors.parquet
  echo 'how do tides work?' | vecmill-worker embed --model vecmill/mini --instruction 'Find passages that answer'";

/// Tokenized rows that wait for the model: some batches of short texts. One takes up to 128 KB (32,768 tokens).
const ROWS_WAITING_MAX: usize = 512;

/// Batches at once: a GPU computes one and has the next queued; two more lie ready while finished rows are written.
const BATCHES_MAX: usize = 4;

/// Tokens in a batch on a CPU, if nothing else is asked for.
const BATCH_TOKENS: usize = 4096;

/// The one tenant that the model's thread sees.
const TENANT: &str = "standard input";

/// Fewest dimensions that Qwen3-Embedding is trained for.
const DIMENSIONS_MIN: usize = 32;

/// Flags of `embed`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    source: ModelSource,
    /// What a line of standard input is
    #[arg(long, env = "VECMILL_FORMAT", value_enum, default_value = "lines")]
    format: Format,
    /// Field of the texts' ids, in JSON lines
    #[arg(long, env = "VECMILL_ID_FIELD", value_name = "NAME", default_value = "id")]
    id_field: String,
    /// Field of the texts, in JSON lines
    #[arg(long, env = "VECMILL_TEXT_FIELD", value_name = "NAME", default_value = "text")]
    text_field: String,
    /// Task that the texts are queries for; leave out for passages
    #[arg(long, env = "VECMILL_INSTRUCTION", value_name = "TASK")]
    instruction: Option<String>,
    /// Prompt of the model's card to put before each text, for example query
    #[arg(long, env = "VECMILL_PROMPT", value_name = "NAME", conflicts_with = "instruction")]
    prompt: Option<String>,
    /// What becomes of texts with more tokens than the model takes: they fail (none) or lose their end
    #[arg(long, env = "VECMILL_TRUNCATE", value_enum, default_value_t)]
    truncate: Truncate,
    /// Length of the vectors; by default all that the model gives
    #[arg(long, env = "VECMILL_DIMENSIONS", value_name = "N")]
    dimensions: Option<u32>,
    /// File to write, by its name Parquet (.parquet) or JSON lines (.jsonl); by default standard output
    #[arg(long, env = "VECMILL_OUTPUT", value_name = "FILE")]
    output: Option<PathBuf>,
    /// Element type of the written vectors
    #[arg(long, env = "VECMILL_OUTPUT_DTYPE", value_enum, default_value_t)]
    output_dtype: Dtype,
    /// Most tokens in a batch; a longer text goes alone [default: 4096; on a GPU what its memory holds, 32768 at most]
    #[arg(long, env = "VECMILL_BATCH_TOKENS", value_name = "N", value_parser = clap::value_parser!(u32).range(16..=1 << 20))]
    batch_tokens: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A text
    Lines,
    /// An object with id and text, an OpenAI batch line, or a string
    Jsonl,
}

/// Embeds.
pub(super) fn run(args: &Args) -> ExitCode {
    super::log_quietly();
    panics::say_only_where();
    let mut mistakes = args.source.mistakes();
    mistakes.extend(args.output.as_deref().and_then(output::mistake));
    if !mistakes.is_empty() {
        return super::refuse(&mistakes);
    }
    match embed(args) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failed) => {
            let texts = if failed == 1 { "1 text has" } else { &*format!("{failed} texts have") };
            super::complain(format_args!("{texts} no vector"));
            ExitCode::FAILURE
        }
        Err(error) if super::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            super::complain(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Gives how many texts failed.
#[tokio::main]
async fn embed(args: &Args) -> anyhow::Result<u64> {
    let (model, tokenizer) = args.source.load()?;
    let hidden = model.info().hidden;
    let dimensions = args.dimensions.map_or(hidden, |dimensions| dimensions as usize);
    anyhow::ensure!(
        (DIMENSIONS_MIN.min(hidden)..=hidden).contains(&dimensions),
        "--dimensions is {dimensions}; the model's vectors can be cut to {DIMENSIONS_MIN} or more, up to {hidden}"
    );
    let prepare = Prepare {
        prompt: args.prompt.as_deref().map(|name| prompt(model.info(), name)).transpose()?,
        instruction: args.instruction.clone(),
        truncate: args.truncate,
    };
    let ids = args.format == Format::Jsonl;
    let metadata = part::metadata(&args.source.model, model.info(), dimensions);
    let mut output = Output::create(args.output.as_deref(), dimensions, args.output_dtype, ids, &metadata)?;
    let batch_tokens =
        args.batch_tokens.map(|tokens| tokens as usize).or(model.info().batch_tokens).unwrap_or(BATCH_TOKENS);
    let embedder = Embedder::start(model, batch_tokens, Arc::new(Metrics::default()))?;

    // A descriptor of its own, which a thread can own and whose size is known where it is a file.
    let input = File::from(std::io::stdin().as_fd().try_clone_to_owned().context("standard input can't be read")?);
    if input.is_terminal() {
        super::complain("reading texts from the terminal, one a line; Ctrl-D ends");
    }
    let bytes_read = Arc::new(AtomicU64::new(0));
    let mut progress = Progress::new(&input, Arc::clone(&bytes_read), args.output.is_some());
    let options = ReadOptions {
        id_field: args.id_field.clone(),
        text_field: args.text_field.clone(),
        dimensions: args.dimensions,
        ..ReadOptions::default()
    };
    let format = args.format;
    let (rows, mut tokenized) = mpsc::channel(ROWS_WAITING_MAX);
    std::thread::Builder::new().name("input".to_owned()).spawn(move || {
        let input = Counted { input, bytes_read };
        let opened = match format {
            Format::Lines => stream_lines(input, &options),
            Format::Jsonl => stream_jsonl(input, &options),
        };
        match opened {
            Ok(opened) => tokenize(opened, &tokenizer, &prepare, &rows),
            Err(error) => _ = rows.blocking_send(Err(error)),
        }
    })?;

    let mut running: VecDeque<Batch> = VecDeque::new();
    let (mut failed, mut ended, mut broken) = (0, false, None);
    while !(ended && running.is_empty()) {
        tokio::select! {
            biased;
            hiddens = async { (&mut running[0].hiddens).await }, if !running.is_empty() => {
                let Some(batch) = running.pop_front() else { continue };
                failed += write(batch.rows, hiddens??, dimensions, &mut output, &mut progress)?;
            }
            first = tokenized.recv(), if !ended && running.len() < BATCHES_MAX => {
                let (rows, end) = gather(first, &mut tokenized, batch_tokens);
                match end {
                    End::NotYet => {}
                    End::Input => ended = true,
                    End::Broken(error) => (ended, broken) = (true, Some(error)),
                }
                if !rows.is_empty() {
                    running.push_back(Batch::start(&embedder, rows));
                }
            }
        }
    }
    progress.finish();
    output.finish()?;
    // What came before the fault is written.
    broken.map_or(Ok(failed), |error| Err(error.into()))
}

/// A prompt of the model's card.
fn prompt(model: &ModelInfo, name: &str) -> anyhow::Result<String> {
    let names = || match model.prompts.keys().cloned().collect::<Vec<_>>() {
        names if names.is_empty() => "none".to_owned(),
        names => names.join(", "),
    };
    model.prompts.get(name).cloned().with_context(|| format!("--prompt {name}: the model's card has {}", names()))
}

/// How rows become token ids.
struct Prepare {
    /// Put before each text as it stands.
    prompt: Option<String>,
    instruction: Option<String>,
    truncate: Truncate,
}

impl Prepare {
    fn encode(&self, tokenizer: &Tokenizer, input: &RowInput) -> Result<Encoded, String> {
        let prompted;
        let input = match (input, &self.prompt) {
            (RowInput::Text(text), Some(prompt)) => {
                prompted = format!("{prompt}{text}");
                Input::Text(&prompted)
            }
            (RowInput::Tokens(_), Some(_)) => {
                return Err("token ids take no --prompt: give an --instruction, or texts".to_owned());
            }
            (input, None) => input.into(),
        };
        tokenizer.encode_input(input, self.instruction.as_deref(), self.truncate).map_err(|error| error.to_string())
    }
}

/// A row of the input, tokenized or refused.
struct TokenizedRow {
    line: u64,
    id: String,
    truncated: bool,
    tokens: Result<Vec<u32>, String>,
}

/// Reads and tokenizes until the input or the receiver ends. What could not be read as a row goes on as a refused one.
fn tokenize(
    input: Rows,
    tokenizer: &Tokenizer,
    prepare: &Prepare,
    rows: &mpsc::Sender<Result<TokenizedRow, ReadError>>,
) {
    for row in input {
        let row = row.map(|row| match row {
            Ok(row) => {
                let encoded = prepare.encode(tokenizer, &row.input);
                let truncated = encoded.as_ref().is_ok_and(|encoded| encoded.truncated);
                TokenizedRow { line: row.line, id: row.id, truncated, tokens: encoded.map(|encoded| encoded.ids) }
            }
            Err(bad) => TokenizedRow { line: bad.line, id: String::new(), truncated: false, tokens: Err(bad.reason) },
        });
        if rows.blocking_send(row).is_err() {
            return;
        }
    }
}

/// Why a batch has no more rows.
enum End {
    /// It is full, or nothing more is there yet.
    NotYet,
    Input,
    Broken(ReadError),
}

/// As many rows as are there and fit a batch. What has to be waited for belongs into the next one.
fn gather(
    first: Option<Result<TokenizedRow, ReadError>>,
    more: &mut mpsc::Receiver<Result<TokenizedRow, ReadError>>,
    budget_tokens: usize,
) -> (Vec<TokenizedRow>, End) {
    let (mut rows, mut tokens) = (Vec::new(), 0);
    let mut next = match first {
        Some(row) => Ok(row),
        None => return (rows, End::Input),
    };
    loop {
        match next {
            Ok(Ok(row)) => {
                tokens += row.tokens.as_ref().map_or(0, Vec::len);
                rows.push(row);
            }
            Ok(Err(error)) => return (rows, End::Broken(error)),
            Err(_) => return (rows, End::NotYet),
        }
        if tokens >= budget_tokens || rows.len() >= ROWS_WAITING_MAX {
            return (rows, End::NotYet);
        }
        next = more.try_recv();
    }
}

/// Rows at the model's thread.
struct Batch {
    rows: Vec<(TokenizedRow, u32)>,
    hiddens: JoinHandle<Result<Hiddens, NotComputed>>,
}

impl Batch {
    fn start(embedder: &Embedder, rows: Vec<TokenizedRow>) -> Self {
        let (mut kept, mut tokens) = (Vec::new(), Vec::new());
        for mut row in rows {
            let count = row.tokens.as_ref().map_or(0, Vec::len) as u32;
            if let Ok(row) = &mut row.tokens {
                tokens.push(std::mem::take(row));
            }
            kept.push((row, count));
        }
        let embedder = embedder.clone();
        Self { rows: kept, hiddens: tokio::spawn(async move { embedder.embed(TENANT, Class::Bulk, tokens).await }) }
    }
}

/// Cuts, norms and writes a batch's rows in their order, and names those that failed. Gives how many did.
fn write(
    rows: Vec<(TokenizedRow, u32)>,
    hiddens: Hiddens,
    dimensions: usize,
    output: &mut Output,
    progress: &mut Progress,
) -> anyhow::Result<u64> {
    let mut hiddens = hiddens.into_iter();
    let (mut embedded, mut failed) = (Vec::new(), 0);
    for (TokenizedRow { line, id, truncated, tokens: refused }, tokens) in rows {
        let vector = refused.and_then(|_| {
            let hidden = hiddens.next().context("the engine gave too few rows").map_err(|error| error.to_string())?;
            finish(&hidden.map_err(|error| error.to_string())?, dimensions).map_err(|error| error.to_string())
        });
        match vector {
            Ok(vector) => {
                progress.count(tokens);
                embedded.push(Embedded { line, id, vector, tokens, truncated });
            }
            Err(reason) => {
                failed += 1;
                progress.suspend(|| super::complain(format_args!("line {line}: {reason}")));
            }
        }
    }
    output.write(embedded)?;
    progress.show();
    Ok(failed)
}

/// Counts what is read, for the progress bar.
struct Counted {
    input: File,
    bytes_read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, block: &mut [u8]) -> std::io::Result<usize> {
        let bytes = self.input.read(block)?;
        self.bytes_read.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(bytes)
    }
}
