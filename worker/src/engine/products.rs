//! How fast the products of a model's shapes are on this machine, each alone: what a pass could gain by other algorithms.

use std::path::Path;
use std::time::Instant;

use candle_core::{Device, Tensor};

use super::compute::Compute;
use super::config::Config;
use super::place::Place;
use super::{EngineError, LoadError};

/// Rows of products that are measured on a GPU: full batches, and what a single text makes.
#[cfg(feature = "cuda")]
const HEIGHTS: [usize; 5] = [32_768, 8192, 2048, 512, 32];

/// The same on a CPU.
const HEIGHTS_CPU: [usize; 2] = [256, 32];

/// Timed turns of a product on a CPU.
const TURNS: usize = 3;

/// One matrix of weights, `[outer, inner]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Weights {
    /// What it is for.
    pub(super) name: &'static str,
    /// Values of a row of the output.
    pub(super) outer: usize,
    /// Values that are summed.
    pub(super) inner: usize,
}

/// The type of what is multiplied on a GPU. Sums are f32, and outputs bf16.
#[cfg(feature = "cuda")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Factors {
    /// What the engine computes with.
    Bf16,
    /// e4m3, each matrix with one scale.
    Fp8,
    /// e4m3, with a scale for each of the output's values of a row, and one for each row.
    Fp8Rows,
}

#[cfg(feature = "cuda")]
impl Factors {
    /// Its name, in figures.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
            Self::Fp8Rows => "fp8-rows",
        }
    }

    /// Bytes of a value.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::Fp8 | Self::Fp8Rows => 1,
        }
    }
}

/// What was measured for one matrix, one type and one height.
#[derive(Debug, Clone, serde::Serialize)]
pub struct ProductFigures {
    /// What the matrix is for.
    pub weights: &'static str,
    /// Values of a row of the output.
    pub outer: usize,
    /// Values that are summed.
    pub inner: usize,
    /// Rows that are multiplied.
    pub height: usize,
    /// The type of what is multiplied: `bf16`, `fp8` (e4m3, one scale a matrix), `fp8-rows` (one scale a row), or `f32`.
    pub precision: &'static str,
    /// Why there is no algorithm.
    pub note: Option<String>,
    /// Fastest first.
    pub algorithms: Vec<Algorithm>,
}

/// One way to compute a product. Numbers are cuBLASLt's own, -1 where an algorithm has none.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Algorithm {
    /// A product's time, the median.
    pub milliseconds: f64,
    /// 10^12 multiplications and additions a second.
    pub tflops: f64,
    /// Its place among cuBLASLt's proposals, which begin with what it takes for the fastest.
    pub rank: usize,
    /// The kind of kernel.
    pub id: i64,
    /// The output's tile.
    pub tile: i64,
    /// Buffers between memory and the multipliers.
    pub stages: i64,
    /// A choice within the kind.
    pub option: i64,
    /// Blocks that share what they read.
    pub cluster: i64,
    /// Pieces that a sum is cut into.
    pub pieces: i64,
    /// How pieces are added up.
    pub reduction: i64,
    /// Bytes of workspace.
    pub workspace: Option<usize>,
    /// Whether each sum is added up from its first term to its last.
    pub in_one_piece: bool,
    /// Whether it takes every number of rows.
    pub all_heights: bool,
    /// Whether the engine computes with it.
    pub used: bool,
    /// A digest of the output's first rows. Rows are the same at each height.
    pub bits: String,
}

/// Measures the products of the model in `dir`, of which `config.json` is read, and hands each figure over when it is there.
///
/// # Errors
/// There is no such model, no such device, or it fails.
pub fn measure_products<E: From<EngineError> + From<LoadError>>(
    dir: &Path,
    compute: &Compute,
    mut show: impl FnMut(ProductFigures) -> Result<(), E>,
) -> Result<(), E> {
    let place = compute.choose()?.place;
    let config = Config::load(&dir.join("config.json"))?;
    for weights in weights_of(&config) {
        match &place {
            Place::Cpu => {
                for height in HEIGHTS_CPU {
                    show(on_cpu(weights, height).map_err(EngineError::Candle)?)?;
                }
            }
            #[cfg(feature = "cuda")]
            Place::Cuda(gpu) => {
                for factors in [Factors::Bf16, Factors::Fp8, Factors::Fp8Rows] {
                    for height in HEIGHTS {
                        show(gpu.sweep(weights, factors, height))?;
                    }
                }
            }
        }
    }
    Ok(())
}

/// The matrices of a layer.
fn weights_of(config: &Config) -> [Weights; 4] {
    let (hidden, query, inner) = (config.hidden_size, config.query_width(), config.intermediate_size);
    [
        Weights { name: "q/k/v", outer: query + 2 * config.key_width(), inner: hidden },
        Weights { name: "output", outer: hidden, inner: query },
        Weights { name: "gate/up", outer: 2 * inner, inner: hidden },
        Weights { name: "down", outer: hidden, inner },
    ]
}

/// By candle, in f32: there is nothing to choose from, but the same figures come of it.
fn on_cpu(Weights { name, outer, inner }: Weights, height: usize) -> candle_core::Result<ProductFigures> {
    let random = |rows, columns| Tensor::rand(-1f32, 1f32, (rows, columns), &Device::Cpu);
    let (weights, rows) = (random(outer, inner)?, random(height, inner)?);
    let mut took = Vec::new();
    for _ in 0..=TURNS {
        let begun = Instant::now();
        rows.matmul(&weights.t()?)?;
        took.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    // The first warms up.
    took[1..].sort_by(f64::total_cmp);
    let milliseconds = took[1 + TURNS / 2];
    let algorithm = Algorithm {
        milliseconds,
        tflops: 2.0 * (outer * inner * height) as f64 / milliseconds / 1e9,
        rank: 0,
        id: -1,
        tile: -1,
        stages: -1,
        option: -1,
        cluster: -1,
        pieces: -1,
        reduction: -1,
        workspace: None,
        in_one_piece: false,
        all_heights: true,
        used: true,
        bits: String::new(),
    };
    let algorithms = vec![algorithm];
    Ok(ProductFigures { weights: name, outer, inner, height, precision: "f32", note: None, algorithms })
}
