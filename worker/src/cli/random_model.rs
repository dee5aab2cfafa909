//! `vecmill-worker random-model`: a seeded random model in Qwen3's files.

use std::{path::PathBuf, process::ExitCode};

use clap::ValueEnum;

use crate::engine::synthetic::{self, Shape};

/// Flags of `random-model`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder to write
    dir: PathBuf,
    /// Its size
    #[arg(long, env = "VECMILL_RANDOM_SHAPE", value_enum, default_value = "small")]
    shape: RandomShape,
    /// Layers, where the shape's own number won't do; 28 of `realistic` weigh what the 0.6B model's do
    #[arg(long, env = "VECMILL_RANDOM_LAYERS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    layers: Option<u16>,
    /// Another seed gives other weights
    #[arg(long, env = "VECMILL_RANDOM_SEED", default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RandomShape {
    /// 2 layers, 64 wide: the pipeline's own cost shows
    Tiny,
    /// 4 layers, 256 wide: as `vecmill/mini`
    Small,
    /// 4 layers of the 0.6B model's shape: a realistic cost
    Realistic,
}

impl Args {
    fn shape(&self) -> Shape {
        let layers = self.layers.map(usize::from);
        let shape = match self.shape {
            RandomShape::Tiny => Shape::tiny(),
            RandomShape::Small => Shape::small(),
            // Its shards grow with its layers.
            RandomShape::Realistic => Shape::realistic(layers.unwrap_or(4)),
        };
        Shape { layers: layers.unwrap_or(shape.layers), ..shape }
    }
}

/// Writes the model.
pub(super) fn run(args: &Args) -> ExitCode {
    match synthetic::write(&args.dir, &args.shape(), args.seed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            super::complain(error);
            ExitCode::FAILURE
        }
    }
}
