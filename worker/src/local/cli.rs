//! `vecmill-local`, the program: flags, progress, and what it shows at the end.

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Mutex},
    time::Instant,
};

use anyhow::Context;
use clap::Parser;
use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing_subscriber::EnvFilter;
use vecmill_producer::{
    contract::{Dtype, JobSpec, Manifest, Precision, RunId, Truncate},
    prepare::{Corpus, Event, Prepared},
    read::{InputFormat, ReadOptions},
    source::Source,
    split::Cut,
    status::{JobState, JobStatus, Watch},
};

use super::{
    run::{GivenUp, Local},
    s3::BUCKET,
    sample,
    search::{Hit, Vectors, embed_query},
};
use crate::{
    built_in::BUILT_IN_MODEL,
    engine::{Compute, ComputeDevice, ComputeDtype, ComputePath, CudaOptions},
    model_source::ModelSource,
    panics,
};

const EXAMPLES: &str = "\
Examples:
  vecmill-local                                             embed the bundled passages, search them
  vecmill-local corpus.jsonl --out vectors --dimensions 256
  vecmill-local corpus.csv --query \"how do tides work?\"
  vecmill-local corpus.txt --model Qwen/Qwen3-Embedding-0.6B            download the model once
  vecmill-local corpus.txt --model my/model --model-dir /models/0.6B

Killed and started again with the same corpus and flags, it goes on where it was.";

/// Texts of a chunk: small, so that a run that is killed has little to do again.
const CHUNK_ROWS: u32 = 32;
const CHUNK_BYTES: u32 = 64 << 10;
/// Passages shown for a query.
const HITS_SHOWN: usize = 3;
/// Bundled queries shown.
const SAMPLE_QUERIES_SHOWN: usize = 4;
/// Characters of a passage shown.
const PASSAGE_SHOWN: usize = 90;

/// Embed a corpus in one process: the whole pipeline, no server, no download. Not for production.
#[derive(Debug, Parser)]
#[command(name = "vecmill-local", version, after_help = EXAMPLES)]
struct Cli {
    /// Corpus: JSONL, Parquet, CSV or text lines; a file or `-`; leave out for the bundled passages
    corpus: Option<Source>,
    /// Folder for everything that is written
    #[arg(long, env = "VECMILL_OUT", value_name = "DIR", default_value = "vecmill-out")]
    out: PathBuf,
    /// How to read the corpus; by default what its name says
    #[arg(long, env = "VECMILL_FORMAT", value_enum)]
    format: Option<InputFormat>,
    /// Field or column of the texts' ids
    #[arg(long, env = "VECMILL_ID_FIELD", value_name = "NAME", default_value = "id")]
    id_field: String,
    /// Field or column of the texts
    #[arg(long, env = "VECMILL_TEXT_FIELD", value_name = "NAME", default_value = "text")]
    text_field: String,
    /// Length of the vectors
    #[arg(long, env = "VECMILL_DIMENSIONS", value_name = "N", default_value_t = 256)]
    dimensions: u32,
    /// Element type of the stored vectors
    #[arg(long, env = "VECMILL_DTYPE", value_enum, default_value_t)]
    dtype: Dtype,
    /// Precision of the model's products; by default bf16 on a GPU, with AMX and on AMD's CPUs with AVX512-BF16,
    /// else f32
    #[arg(long, env = "VECMILL_COMPUTE_DTYPE", value_enum, default_value_t)]
    compute_dtype: ComputeDtype,
    /// What computes
    #[arg(long, env = "VECMILL_DEVICE", value_enum, default_value_t)]
    device: ComputeDevice,
    /// Which of the CPU's instructions to compute with; by default the fastest that it has
    #[arg(long, env = "VECMILL_CPU_PATH", value_enum, value_name = "PATH")]
    cpu_path: Option<ComputePath>,
    #[command(flatten)]
    cuda: CudaOptions,
    /// Task that the corpus' texts are queries for; leave out for passages
    #[arg(long, env = "VECMILL_INSTRUCTION", value_name = "TASK")]
    instruction: Option<String>,
    /// What becomes of a text with more tokens than the model takes
    #[arg(long, env = "VECMILL_TRUNCATE", value_enum, default_value_t)]
    truncate: Truncate,
    /// Search the vectors for this; may be given several times
    #[arg(long, env = "VECMILL_QUERY", value_name = "TEXT")]
    query: Vec<String>,
    /// Task that the queries are for
    #[arg(
        long,
        env = "VECMILL_QUERY_TASK",
        value_name = "TASK",
        default_value = "Given a question, retrieve passages that answer it"
    )]
    query_task: String,
    /// Refuse the whole corpus when any row is bad
    #[arg(long, env = "VECMILL_STRICT")]
    strict: bool,
    /// Print the result as JSON
    #[arg(long, env = "VECMILL_JSON")]
    json: bool,
    /// Model's name
    #[arg(long, env = "VECMILL_LOCAL_MODEL", value_name = "NAME", default_value = BUILT_IN_MODEL)]
    model: String,
    /// Folder with the model; without it, any but the built-in one is downloaded from the Hugging Face hub
    #[arg(long, env = "VECMILL_MODEL_DIR", value_name = "DIR", requires = "model")]
    model_dir: Option<PathBuf>,
    /// Commit, branch or tag on the hub [default: main]
    #[arg(long, env = "VECMILL_MODEL_REVISION", value_name = "REVISION")]
    revision: Option<String>,
}

#[derive(Debug, serde::Serialize)]
struct Outcome {
    status: JobStatus,
    model_is_built_in: bool,
    vectors: PathBuf,
    manifest: PathBuf,
    audit: PathBuf,
    seconds: f64,
    searches: Vec<Search>,
}

#[derive(Debug, serde::Serialize)]
struct Search {
    query: String,
    relevant: Vec<String>,
    hits: Vec<Hit>,
}

/// The program. It stands here and not in `bin/`, because a program that awaits a library's futures compiles them all
/// once more.
#[tokio::main]
pub async fn main() -> ExitCode {
    let cli = Cli::parse();
    // Quiet by default: what the user needs to know is printed.
    let filter = EnvFilter::try_from_env("VECMILL_LOG").unwrap_or_else(|_| EnvFilter::new("off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    panics::say_only_where();
    match run(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vecmill-local: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs; an error is a sentence for the user.
async fn run(cli: Cli) -> anyhow::Result<()> {
    let begun = Instant::now();
    let model = ModelSource {
        model: cli.model.clone(),
        model_dir: cli.model_dir.clone(),
        model_revision: cli.revision.clone(),
        compute: Compute { dtype: cli.compute_dtype, device: cli.device, cpu_path: cli.cpu_path, cuda: cli.cuda },
    };
    let mistakes = model.mistakes();
    anyhow::ensure!(mistakes.is_empty(), "{}", mistakes.join("\n"));
    std::fs::create_dir_all(&cli.out).with_context(|| format!("{} can't be written", cli.out.display()))?;
    let out = cli.out.canonicalize()?;
    let corpus = cli.corpus(&out)?;
    let spec = JobSpec {
        model: cli.model.clone(),
        dimensions: cli.dimensions,
        dtype: cli.dtype,
        instruction: cli.instruction.clone(),
        truncate: cli.truncate,
        // A precision that was chosen is part of the job: what goes on later in another one is another job. With `auto`
        // nothing is asked for, and the parts say what it came to.
        precision: match cli.compute_dtype {
            ComputeDtype::Auto => None,
            ComputeDtype::F32 => Some(Precision::F32),
            ComputeDtype::Bf16 => Some(Precision::Bf16),
            ComputeDtype::Fp8 => Some(Precision::Fp8),
        },
    };
    spec.check()?;

    let local = Local::start(&out, model).await?;
    let hidden = local.embedder.info().hidden;
    anyhow::ensure!(cli.dimensions as usize <= hidden, "--dimensions is {}; the model has {hidden}", cli.dimensions);
    let prepared = prepare(&local, &spec, &corpus).await?;
    let given_up = embed(&local, &prepared).await?;
    let status = JobStatus::read(&local.store, &local.tenant, &prepared.job).await?;
    let searches = if status.chunks_done > 0 { cli.search(&local, &prepared).await? } else { Vec::new() };
    let root = out.join(BUCKET);
    let keys = prepared.ledger.keys_of(RunId { life: prepared.life, run: status.run });
    let outcome = Outcome {
        model_is_built_in: cli.model == BUILT_IN_MODEL,
        vectors: root.join(keys.parts_prefix()),
        manifest: root.join(keys.final_manifest()),
        audit: root.join(keys.audit_prefix()),
        seconds: begun.elapsed().as_secs_f64(),
        searches,
        status,
    };
    if cli.json {
        println!("{}", serde_json::to_string(&outcome)?);
    } else {
        outcome.say(cli.corpus.is_none());
    }
    if let Some(GivenUp { chunk, reason }) = given_up.first() {
        anyhow::bail!("{} chunks were given up, the first is chunk {chunk}: {reason}", given_up.len());
    }
    anyhow::ensure!(outcome.status.state == JobState::Completed, "the job is {}", outcome.status.state);
    Ok(())
}

impl Cli {
    fn corpus(&self, out: &Path) -> anyhow::Result<Corpus> {
        let source = match &self.corpus {
            Some(source @ Source::S3 { .. }) => {
                anyhow::bail!("{source}: local mode reads files and standard input; `vecmill submit` reads s3://");
            }
            Some(source) => source.clone(),
            None => {
                let path = out.join("sample-corpus.jsonl");
                sample::write_corpus(&path)?;
                Source::File(path)
            }
        };
        let stdin = (source == Source::Stdin).then_some(InputFormat::Jsonl);
        let format = self.format.or_else(|| InputFormat::from_name(&source.to_string())).or(stdin);
        let format = format.with_context(|| {
            format!("{source}: its name does not say how to read it; give --format jsonl, parquet, csv or lines")
        })?;
        let options = ReadOptions {
            id_field: self.id_field.clone(),
            text_field: self.text_field.clone(),
            dimensions: Some(self.dimensions),
            ..ReadOptions::default()
        };
        let cut = Cut { chunk_rows: CHUNK_ROWS, chunk_bytes: CHUNK_BYTES };
        Ok(Corpus { source, format, options, cut, strict: self.strict })
    }

    async fn search(&self, local: &Local, prepared: &Prepared) -> anyhow::Result<Vec<Search>> {
        let mut queries: Vec<(String, Vec<String>)> =
            self.query.iter().map(|query| (query.clone(), Vec::new())).collect();
        if self.corpus.is_none() && queries.is_empty() {
            queries.extend(
                sample::queries()?.into_iter().take(SAMPLE_QUERIES_SHOWN).map(|query| (query.query, query.relevant)),
            );
        }
        if queries.is_empty() {
            return Ok(Vec::new());
        }
        let watch = Watch::new(local.store.clone(), &local.tenant, &prepared.job);
        let vectors = Vectors::read(&watch).await?;
        let mut searches = Vec::new();
        for (query, relevant) in queries {
            let vector = embed_query(local, &query, &self.query_task, self.dimensions as usize).await?;
            searches.push(Search { query, relevant, hits: vectors.nearest(&vector, HITS_SHOWN) });
        }
        Ok(searches)
    }
}

async fn prepare(local: &Local, spec: &JobSpec, corpus: &Corpus) -> anyhow::Result<Prepared> {
    let bar = Arc::new(Mutex::new(bar(None, "{msg:10} {spinner} {human_pos} texts").with_message("cutting")));
    let name = corpus.source.to_string();
    let report = {
        let bar = bar.clone();
        move |event| {
            let bar = bar.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            match event {
                Event::Rejected(bad) => {
                    bar.suspend(|| eprintln!("{name}:{}: {} [{}]", bad.line, bad.reason, bad.code));
                }
                Event::Uploaded(rows) => bar.inc(u64::from(rows)),
                _ => {}
            }
        }
    };
    let prepared = local.prepare(spec, corpus, report).await;
    bar.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).finish_and_clear();
    prepared
}

async fn embed(local: &Local, prepared: &Prepared) -> anyhow::Result<Vec<GivenUp>> {
    let begun = local.take_up(prepared).await?;
    let missing = begun.as_ref().map(|begun| begun.missing.clone()).unwrap_or_default();
    let rows = |manifest: &Manifest, chunk: u32| u64::from(manifest.chunks[chunk as usize].rows);
    let all = prepared.manifest.rows;
    let to_do: u64 = missing.iter().map(|&chunk| rows(&prepared.manifest, chunk)).sum();
    if to_do < all {
        eprintln!(
            "going on where an earlier run was: {} of {} texts are done",
            HumanCount(all - to_do),
            HumanCount(all)
        );
    }
    let bar =
        bar(Some(all), "{msg:10} {wide_bar} {human_pos}/{human_len} texts {per_sec} {eta}").with_message("embedding");
    bar.set_position(all - to_do);
    let given_up = match &begun {
        Some(begun) => local.embed(prepared, begun, |chunk| bar.inc(rows(&prepared.manifest, chunk))).await,
        None => Ok(Vec::new()),
    };
    bar.finish_and_clear();
    given_up
}

fn bar(length: Option<u64>, template: &str) -> ProgressBar {
    let target =
        if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(length, target).with_style(style)
}

impl Outcome {
    fn say(&self, bundled: bool) {
        let status = &self.status;
        let tokens = status.tokens.unwrap_or_default();
        println!(
            "{} texts, {} tokens, {} dimensions in {:.1} s",
            HumanCount(status.rows_done),
            HumanCount(tokens),
            status.dimensions.unwrap_or_default(),
            self.seconds
        );
        println!("  vectors   {}*.parquet", self.vectors.display());
        println!("  manifest  {}", self.manifest.display());
        println!("  audit     {}*.jsonl", self.audit.display());
        if status.rows_failed.unwrap_or_default() + status.rejected > 0 {
            let failed = status.rows_failed.unwrap_or_default();
            println!("  errors    {failed} texts failed, {} rows could not be read", status.rejected);
        }
        if let Some(truncated @ 1..) = status.rows_truncated {
            println!("  truncated {truncated} texts were cut to the model's longest");
        }
        for search in &self.searches {
            println!("\n{:?}", search.query);
            for hit in &search.hits {
                let mark = if search.relevant.contains(&hit.id) { "*" } else { " " };
                let passage = if bundled { sample::passage(&hit.id).map(|text| shorten(&text)) } else { None };
                println!("  {:.3} {mark} {:20} {}", hit.score, hit.id, passage.unwrap_or_default());
            }
        }
        if bundled && !self.searches.is_empty() {
            println!("\n* answers the query");
        }
        if self.model_is_built_in {
            println!(
                "\nThe model is {BUILT_IN_MODEL}, the small one in the box: for trying the pipeline. It often finds the right"
            );
            println!("English passage, and knows little else.");
            println!("Give --model Qwen/Qwen3-Embedding-0.6B, or --model NAME --model-dir DIR, for a real one.");
        }
        println!("\nLocal mode is for a first look and for tests, not for production.");
    }
}

fn shorten(text: &str) -> String {
    let text = text.replace('\n', " ");
    match text.char_indices().nth(PASSAGE_SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
