//! Where and in which precision a model computes.

use tracing::warn;
pub use vecmill_producer::contract::Precision;

use super::LoadError;
#[cfg(feature = "cuda")]
use super::cuda::Gpu;
use super::place::Place;

/// What to compute on, as given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::Args)]
pub struct Compute {
    /// Precision of matrix products. auto: bf16 on a GPU and on CPUs with AVX512-BF16, else f32
    #[arg(long, env = "VECMILL_COMPUTE_DTYPE", value_enum, default_value_t)]
    pub dtype: ComputeDtype,
    /// What computes: by default what the program was built for, and nothing else. auto: the GPU, or, with a warning, the
    /// CPU where there is none
    #[arg(long, env = "VECMILL_DEVICE", value_enum, default_value_t)]
    pub device: ComputeDevice,
}

/// Precision of matrix products. Everything else is f32 on a CPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ComputeDtype {
    /// The fastest that the device is made for.
    #[default]
    Auto,
    /// Exact to the rounding of f32.
    F32,
    /// Inputs of products rounded to bf16, sums in f32.
    Bf16,
}

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ComputeDevice {
    /// The GPU if there is one, else the CPU.
    Auto,
    /// The CPU, whatever else there is.
    Cpu,
    /// The first CUDA device that is visible; none is an error.
    Cuda,
}

impl Default for ComputeDevice {
    /// What the program was built for: nobody builds for CUDA to compute on a CPU, and a silent fallback would cost money.
    fn default() -> Self {
        if cfg!(feature = "cuda") { Self::Cuda } else { Self::Cpu }
    }
}

/// What computes, and in which precision: where two machines have the same path, a text has the same vector on both, to
/// the bit. Named in every part, record and audit record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ComputePath {
    /// bf16 products on an NVIDIA GPU.
    CudaBf16,
    /// bf16 products on a CPU with AVX512-BF16.
    Avx512Bf16,
    /// f32 products by candle, on any CPU.
    CandleF32,
}

impl ComputePath {
    /// Its name, as everywhere.
    pub fn name(self) -> &'static str {
        match self {
            Self::CudaBf16 => "cuda-bf16",
            Self::Avx512Bf16 => "avx512-bf16",
            Self::CandleF32 => "candle-f32",
        }
    }
}

impl std::fmt::Display for ComputePath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Compute {
    /// On the CPU, in a given precision.
    pub fn cpu(dtype: ComputeDtype) -> Self {
        Self { dtype, device: ComputeDevice::Cpu }
    }

    /// Finds the device, and the precision it computes in.
    pub(super) fn resolve(self) -> Result<(Place, Precision), LoadError> {
        let place = match self.device {
            ComputeDevice::Cpu => Place::Cpu,
            ComputeDevice::Cuda => cuda()?,
            ComputeDevice::Auto if !cfg!(feature = "cuda") || self.dtype == ComputeDtype::F32 => Place::Cpu,
            ComputeDevice::Auto => cuda().unwrap_or_else(|error| {
                warn!(%error, "computing on the CPU");
                Place::Cpu
            }),
        };
        let precision = match self.dtype {
            #[cfg(feature = "cuda")]
            dtype if matches!(place, Place::Cuda(_)) => match dtype {
                ComputeDtype::F32 => return Err(LoadError::NoF32),
                ComputeDtype::Auto | ComputeDtype::Bf16 => Precision::Bf16,
            },
            ComputeDtype::F32 => Precision::F32,
            ComputeDtype::Bf16 if super::cpu_has_bf16() => Precision::Bf16,
            ComputeDtype::Bf16 => return Err(LoadError::NoBf16),
            ComputeDtype::Auto if super::cpu_has_bf16() => Precision::Bf16,
            ComputeDtype::Auto => Precision::F32,
        };
        Ok((place, precision))
    }
}

#[cfg(feature = "cuda")]
fn cuda() -> Result<Place, LoadError> {
    Gpu::open().map(Place::Cuda)
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> Result<Place, LoadError> {
    Err(LoadError::NoCuda("this program was built without CUDA (cargo build --features cuda)".to_owned()))
}
