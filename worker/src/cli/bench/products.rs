//! `bench --products`: the products of a model's shapes, each alone.

use std::io::Write;

use crate::{
    engine::{Algorithm, ProductFigures, measure_products},
    model_source::ModelSource,
};

/// Measures and prints as it goes.
pub(super) fn run(source: &ModelSource, json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if !json {
        writeln!(
            out,
            "{:8} {:9} {:>14} {:>7} {:>9} {:>9} {:>5}  algorithm",
            "weights", "precision", "outer x inner", "rows", "ms", "TFLOP/s", "rank"
        )?;
    }
    measure_products(&source.dir()?, &source.compute, |figures| -> anyhow::Result<()> {
        if json {
            writeln!(out, "{}", serde_json::to_string(&figures)?)?;
        } else {
            say(&mut out, &figures)?;
        }
        Ok(out.flush()?)
    })
}

/// The fastest, the fastest of those that a text's bits do not depend on the batch with, and the one in use.
fn say(out: &mut impl Write, figures: &ProductFigures) -> std::io::Result<()> {
    let ProductFigures { weights, outer, inner, height, precision, note, algorithms } = figures;
    let product = format!("{weights:8} {precision:9} {:>14} {height:>7}", format!("{outer} x {inner}"));
    if let Some(note) = note {
        writeln!(out, "{product} {note}")?;
    }
    let invariant = algorithms.iter().position(|algorithm| algorithm.in_one_piece && algorithm.all_heights);
    for (place, algorithm) in algorithms.iter().enumerate() {
        let roles =
            [(place == 0, "fastest"), (Some(place) == invariant, "fastest for all heights"), (algorithm.used, "used")];
        let roles: Vec<&str> = roles.iter().filter(|(is, _)| *is).map(|(_, role)| *role).collect();
        if !roles.is_empty() {
            let Algorithm { milliseconds, tflops, rank, id, tile, stages, option, cluster, .. } = algorithm;
            writeln!(
                out,
                "{product} {milliseconds:>9.4} {tflops:>9.1} {rank:>5}  {id}, tile {tile}, stages {stages}, option {option}, \
                 cluster {cluster}, {} pieces, bits {}: {}",
                algorithm.pieces,
                algorithm.bits,
                roles.join(", ")
            )?;
        }
    }
    Ok(())
}
