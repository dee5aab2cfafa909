//! `bench --times`: how a batch's time divides among its operations.

use std::io::Write;

use anyhow::bail;
use serde::Serialize;

use super::{Args, case::Case, cost::Cost, texts_of, turn, turns};
use crate::engine::{ComputePath, Model, Operations};

/// One case's figures, as `--json` prints them.
#[derive(Debug, Serialize)]
struct Figures<'a> {
    case: &'a str,
    tokens: usize,
    /// Tokens, but those of shared beginnings once.
    rows: usize,
    layers: u64,
    path: ComputePath,
    turns: usize,
    /// Of a batch, with nothing measured inside.
    seconds_median: f64,
    /// Of all operations together.
    operations_seconds: f64,
    operations: Vec<Figure>,
    memory: Option<Memory>,
}

/// An operation, in all the layers that have it. Each call's time is its median over the turns.
#[derive(Debug, Serialize)]
struct Figure {
    operation: String,
    calls: usize,
    seconds: f64,
    flop: u64,
    bytes: u64,
}

/// A GPU's.
#[derive(Debug, Serialize)]
struct Memory {
    high_bytes: u64,
    predicted_bytes: u64,
}

/// Measures a case and prints it.
pub(super) fn run(model: &Model, cost: &Cost, case: &Case, args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let texts = texts_of(model, case);
    turn(model, &texts)?;
    let whole = turns(args, || Ok(turn(model, &texts)?.0.as_secs_f64()))?;
    let ids: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    let mut measured: Vec<Operations> = Vec::new();
    for _ in 0..whole.len().min(TURNS_MAX) {
        let Some(operations) = model.operations(&ids)? else {
            bail!(
                "--times: the path {} is not measured operation by operation; on a CPU take --cpu-path candle-f32",
                model.info().path
            )
        };
        measured.push(operations);
    }
    let Some(first) = measured.first() else { bail!("--times: no turns") };
    let operations = summed(&measured);
    let figures = Figures {
        case: &case.name,
        tokens: case.tokens(),
        rows: first.rows,
        layers: cost.layers(),
        path: model.info().path,
        turns: whole.len(),
        seconds_median: whole[whole.len() / 2],
        operations_seconds: operations.iter().map(|figure| figure.seconds).sum(),
        operations,
        memory: first.memory.map(|(high_bytes, predicted_bytes)| Memory { high_bytes, predicted_bytes }),
    };
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&figures)?)?;
    } else {
        say(out, &figures)?;
    }
    Ok(out.flush()?)
}

/// Turns that are taken apart: enough for a median.
const TURNS_MAX: usize = 9;

/// By operation, in the order in which they first appear.
fn summed(measured: &[Operations]) -> Vec<Figure> {
    let mut figures: Vec<Figure> = Vec::new();
    for (place, call) in measured[0].operations.iter().enumerate() {
        let mut seconds: Vec<f64> = measured.iter().map(|turn| turn.operations[place].seconds).collect();
        seconds.sort_by(f64::total_cmp);
        let operation = if call.last_layer { format!("last layer: {}", call.name) } else { call.name.to_owned() };
        let known = figures.iter().position(|figure| figure.operation == operation);
        let place = known.unwrap_or_else(|| {
            figures.push(Figure { operation, calls: 0, seconds: 0.0, flop: 0, bytes: 0 });
            figures.len() - 1
        });
        let figure = &mut figures[place];
        figure.calls += 1;
        figure.seconds += seconds[seconds.len() / 2];
        figure.flop += call.flop;
        figure.bytes += call.bytes;
    }
    figures
}

fn say(out: &mut impl Write, figures: &Figures<'_>) -> std::io::Result<()> {
    let Figures { case, tokens, rows, turns, seconds_median, operations_seconds, .. } = figures;
    writeln!(
        out,
        "{case}: {tokens} tokens, {rows} rows, {:.2} ms (median of {turns}), {:.2} ms in operations",
        seconds_median * 1e3,
        operations_seconds * 1e3
    )?;
    writeln!(out, "  {:32} {:>6} {:>10} {:>7} {:>9} {:>8}", "operation", "calls", "ms", "share", "TFLOP/s", "GB/s")?;
    for Figure { operation, calls, seconds, flop, bytes } in &figures.operations {
        writeln!(
            out,
            "  {operation:32} {calls:>6} {:>10.3} {:>6.1}% {:>9.2} {:>8.0}",
            seconds * 1e3,
            100.0 * seconds / operations_seconds,
            *flop as f64 / seconds / 1e12,
            *bytes as f64 / seconds / 1e9
        )?;
    }
    if let Some(Memory { high_bytes, predicted_bytes }) = &figures.memory {
        writeln!(out, "  at most {} MiB at once, predicted {} MiB", high_bytes >> 20, predicted_bytes >> 20)?;
    }
    Ok(())
}
