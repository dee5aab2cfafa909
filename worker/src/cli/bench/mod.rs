//! `vecmill-worker bench`: what the engine does on this machine, on random token ids, without tokenizing or writing.

mod case;
mod cost;
mod products;
mod times;

use std::{
    io::{BufRead, Write},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use self::{case::Case, cost::Cost};
use crate::{
    engine::{ComputePath, Model, PassedOver, Precision, finish, synthetic},
    model_source::ModelSource,
};

const NOTES: &str = "\
Cases are TEXTSxTOKENS, several of them with a + between, mixed:TOTAL:LEAST..MOST, or shared:TEXTSxSHARED+OWN (texts that
begin with the same tokens). Each is one batch: one turn to warm up, then the turns that count.
GFLOP/s counts what the batch needs of the layers' matrices (q, k, v, o, gate, up, down), in the last layer of unpooled
tokens keys and values only; \"and attention\" adds causal attention. Tokens that are shared count for each text.

With --times, a batch's time is told operation by operation, on a GPU by its own clock, and beside the time of the whole
batch, which is measured without; on a CPU that takes --cpu-path candle-f32. With --products, the products of the
model's shapes are measured each alone: on a GPU by each algorithm that cuBLASLt proposes, in bf16 and in FP8; of the
model only config.json is read.

With --interactive, each line of standard input is {\"texts\": [[ids, ..], ..], \"vectors\": false} and is answered by
{\"texts\", \"tokens\", \"seconds\"} and, if asked for, \"vectors\": other programs can be measured in turns with this one.

Examples:
  vecmill-worker bench --model-dir /models/0.6B
  vecmill-worker bench --model vecmill/mini --case 64x64 --case mixed:8192:32..512 --turns 20 --json
  vecmill-worker bench --model-dir /models/4B --times --case 64x512
  vecmill-worker bench --model-dir /models/4B --products";

/// Flags of `bench`.
#[derive(Debug, clap::Args)]
#[command(after_help = NOTES)]
pub(super) struct Args {
    #[command(flatten)]
    source: ModelSource,
    /// What to measure; may be given several times
    #[arg(
        long,
        env = "VECMILL_BENCH_CASE",
        value_name = "CASE",
        value_delimiter = ',',
        default_value = "16x128,4x512,1x2048,mixed:2048:32..512"
    )]
    case: Vec<Case>,
    /// Seconds for each case, three turns at least
    #[arg(long, env = "VECMILL_BENCH_SECONDS", value_name = "S", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Turns for each case, instead of seconds
    #[arg(long, env = "VECMILL_BENCH_TURNS", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    turns: Option<u32>,
    /// Print a line of JSON for each case
    #[arg(long, env = "VECMILL_JSON")]
    json: bool,
    /// Tell how a batch's time divides among its operations
    #[arg(long, env = "VECMILL_BENCH_TIMES")]
    times: bool,
    /// Measure the products of the model's shapes instead, each alone
    #[arg(long, env = "VECMILL_BENCH_PRODUCTS", conflicts_with_all = ["times", "turns"])]
    products: bool,
    /// Take batches from standard input; see below
    #[arg(long, conflicts_with_all = ["turns", "json", "times", "products"])]
    interactive: bool,
}

/// Fewest turns in the seconds given: a median of fewer says nothing.
const TURNS_MIN: usize = 3;

/// One case's figures, as `--json` prints them.
#[derive(Debug, Serialize)]
struct Figures<'a> {
    case: &'a str,
    texts: usize,
    tokens: usize,
    layers: u64,
    dtype: Precision,
    path: ComputePath,
    /// Faster paths, and why each was not taken.
    passed_over: &'a [PassedOver],
    threads: usize,
    turns: usize,
    seconds_median: f64,
    seconds_best: f64,
    tokens_per_second_median: f64,
    tokens_per_second_best: f64,
    /// Of the layers' matrices alone, at the median.
    gflops_matrices: f64,
    /// With attention's.
    gflops: f64,
    peak_memory_bytes: Option<u64>,
}

/// Measures.
pub(super) fn run(args: &Args) -> ExitCode {
    super::log_quietly();
    let mistakes = args.source.mistakes();
    if !mistakes.is_empty() {
        return super::refuse(&mistakes);
    }
    match bench(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if super::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            super::complain(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn bench(args: &Args) -> anyhow::Result<()> {
    if args.products {
        return products::run(&args.source, args.json);
    }
    let begun = Instant::now();
    let (model, _) = args.source.load()?;
    let loaded = begun.elapsed();
    let mut out = std::io::stdout().lock();
    if args.interactive {
        return interactive(&model, loaded, std::io::stdin().lock(), out);
    }
    let tokens_max = model.info().tokens_max;
    if let Some(case) = args.case.iter().find(|case| case.lengths.iter().any(|&length| length > tokens_max)) {
        anyhow::bail!("--case {}: the model takes texts of {tokens_max} tokens", case.name);
    }
    let cost = Cost::load(&args.source.dir()?).context("config.json can't be read")?;
    if !args.json {
        let (name, layers, threads) = (&model.info().name, cost.layers(), rayon::current_num_threads());
        writeln!(
            out,
            "{name}: {layers} layers, {}, {threads} threads, loaded in {:.1} s",
            model.info().path,
            loaded.as_secs_f64()
        )?;
        for passed_over in &model.info().passed_over {
            writeln!(out, "  {passed_over}")?;
        }
        if !args.times {
            writeln!(
                out,
                "{:20} {:>6} {:>7} {:>6} {:>13} {:>10} {:>10} {:>14} {:>10}",
                "case", "texts", "tokens", "turns", "tok/s median", "best", "GFLOP/s", "and attention", "peak MiB"
            )?;
        }
    }
    for case in &args.case {
        if args.times {
            times::run(&model, &cost, case, args, &mut out)?;
            continue;
        }
        let figures = measure(&model, &cost, case, args)?;
        if args.json {
            writeln!(out, "{}", serde_json::to_string(&figures)?)?;
        } else {
            say(&mut out, &figures)?;
        }
        out.flush()?;
    }
    Ok(())
}

fn measure<'a>(model: &'a Model, cost: &Cost, case: &'a Case, args: &Args) -> anyhow::Result<Figures<'a>> {
    let texts = texts_of(model, case);
    forget_peak_memory();
    turn(model, &texts)?;
    model.begin_profile();
    let seconds = turns(args, || Ok(turn(model, &texts)?.0.as_secs_f64()))?;
    let (median, best) = (seconds[seconds.len() / 2], seconds[0]);
    let tokens = case.tokens();
    let (matrices, attention) = (cost.matrices(&case.lengths) as f64, cost.attention(&case.lengths) as f64);
    Ok(Figures {
        case: &case.name,
        texts: case.lengths.len(),
        tokens,
        layers: cost.layers(),
        dtype: model.info().precision,
        path: model.info().path,
        passed_over: &model.info().passed_over,
        threads: rayon::current_num_threads(),
        turns: seconds.len(),
        seconds_median: median,
        seconds_best: best,
        tokens_per_second_median: tokens as f64 / median,
        tokens_per_second_best: tokens as f64 / best,
        gflops_matrices: matrices / median / 1e9,
        gflops: (matrices + attention) / median / 1e9,
        peak_memory_bytes: peak_memory_bytes(),
    })
}

fn say(out: &mut impl Write, figures: &Figures<'_>) -> std::io::Result<()> {
    let peak = figures.peak_memory_bytes.map_or_else(|| "?".to_owned(), |bytes| (bytes >> 20).to_string());
    writeln!(
        out,
        "{:20} {:>6} {:>7} {:>6} {:>13.0} {:>10.0} {:>10.1} {:>14.1} {:>10}",
        figures.case,
        figures.texts,
        figures.tokens,
        figures.turns,
        figures.tokens_per_second_median,
        figures.tokens_per_second_best,
        figures.gflops_matrices,
        figures.gflops,
        peak
    )
}

/// Takes turns, as many as are asked for, and gives what they give, seconds, in rising order.
fn turns(args: &Args, mut turn: impl FnMut() -> anyhow::Result<f64>) -> anyhow::Result<Vec<f64>> {
    let limit = Duration::from_secs(args.seconds);
    let begun = Instant::now();
    let mut seconds = Vec::new();
    while match args.turns {
        Some(turns) => seconds.len() < turns as usize,
        None => seconds.len() < TURNS_MIN || begun.elapsed() < limit,
    } {
        seconds.push(turn()?);
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds)
}

/// One batch: from token ids to unit vectors.
fn turn(model: &Model, texts: &[Vec<u32>]) -> anyhow::Result<(Duration, Vec<Vec<f32>>)> {
    let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    let begun = Instant::now();
    let hiddens = model.forward(&texts)?;
    let vectors = hiddens.iter().map(|hidden| finish(hidden, hidden.len())).collect::<Result<_, _>>()?;
    Ok((begun.elapsed(), vectors))
}

/// A case's texts: random ids, and this model's end token.
fn texts_of(model: &Model, case: &Case) -> Vec<Vec<u32>> {
    let beginning = synthetic::token_ids(u64::MAX, case.shared);
    let text = |(seed, length): (u64, &usize)| {
        let mut ids = [beginning.clone(), synthetic::token_ids(seed, length - case.shared)].concat();
        if let Some(last) = ids.last_mut() {
            *last = model.info().end_token;
        }
        ids
    };
    (0..).zip(&case.lengths).map(text).collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    texts: Vec<Vec<u32>>,
    #[serde(default)]
    vectors: bool,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Answer {
    Ready {
        ready: bool,
        dtype: Precision,
        path: ComputePath,
        threads: usize,
        load_seconds: f64,
        end_token: u32,
    },
    Turn {
        texts: usize,
        tokens: usize,
        seconds: f64,
        #[serde(skip_serializing_if = "Option::is_none")]
        vectors: Option<Vec<Vec<f32>>>,
    },
    Failed {
        error: String,
    },
}

/// Answers each line of `input` by a line on `out`, after a first one that says that the model is loaded.
fn interactive(model: &Model, loaded: Duration, input: impl BufRead, mut out: impl Write) -> anyhow::Result<()> {
    let mut answer = |answer: &Answer| -> anyhow::Result<()> {
        writeln!(out, "{}", serde_json::to_string(answer)?)?;
        Ok(out.flush()?)
    };
    answer(&Answer::Ready {
        ready: true,
        dtype: model.info().precision,
        path: model.info().path,
        threads: rayon::current_num_threads(),
        load_seconds: loaded.as_secs_f64(),
        end_token: model.info().end_token,
    })?;
    for line in input.lines() {
        let asked = serde_json::from_str::<Asked>(&line?).map_err(anyhow::Error::from);
        let turned = asked.and_then(|asked| turn(model, &asked.texts).map(|turned| (asked, turned)));
        answer(&match turned {
            Ok((asked, (took, vectors))) => Answer::Turn {
                texts: asked.texts.len(),
                tokens: asked.texts.iter().map(Vec::len).sum(),
                seconds: took.as_secs_f64(),
                vectors: asked.vectors.then_some(vectors),
            },
            Err(error) => Answer::Failed { error: format!("{error:#}") },
        })?;
    }
    Ok(())
}

/// Makes the next [`peak_memory_bytes`] count from now. Where the system has no such thing the peak is the process's.
fn forget_peak_memory() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Most memory this process had resident.
fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}
