//! Where, in which precision and by which instructions a model computes.

use tracing::warn;
pub use vecmill_producer::contract::Precision;

#[cfg(feature = "cuda")]
use super::cuda::Gpu;
pub use super::packing::Sharing;
use super::place::Place;
use super::{LoadError, cpu};

/// What to compute on, as given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::Args)]
pub struct Compute {
    /// Precision of matrix products. auto: bf16 on a GPU, with AMX and on AMD's CPUs with AVX512-BF16, else f32. fp8, on Hopper GPUs,
    /// is for those who have looked at what it does to their vectors
    #[arg(long, env = "VECMILL_COMPUTE_DTYPE", value_enum, default_value_t)]
    pub dtype: ComputeDtype,
    /// What computes: by default what the program was built for, and nothing else. auto: the GPU, or, with a warning, the
    /// CPU where there is none
    #[arg(long, env = "VECMILL_DEVICE", value_enum, default_value_t)]
    pub device: ComputeDevice,
    /// Which of the CPU's instructions to compute with: by default the fastest that it has
    #[arg(long, env = "VECMILL_CPU_PATH", value_enum, value_name = "PATH")]
    pub cpu_path: Option<ComputePath>,
    /// How a GPU computes.
    #[command(flatten)]
    pub cuda: CudaOptions,
}

/// How a GPU computes. Without effect on a CPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::Args)]
pub struct CudaOptions {
    /// How a GPU multiplies by weights: the same for every batch, or the fastest for each. Without effect on a CPU
    #[arg(id = "cuda-products", long, env = "VECMILL_CUDA_PRODUCTS", value_enum, default_value_t)]
    #[arg(hide = cfg!(not(feature = "cuda")))]
    pub products: CudaProducts,
    /// When a GPU computes what texts of a batch begin with once for all of them. Without effect on a CPU, and on vectors
    #[arg(id = "cuda-sharing", long, env = "VECMILL_CUDA_SHARING", value_enum, default_value_t)]
    #[arg(hide = cfg!(not(feature = "cuda")))]
    pub sharing: Sharing,
    /// Which FlashAttention a GPU computes with. Without effect on a CPU
    #[arg(id = "cuda-attention", long, env = "VECMILL_CUDA_ATTENTION", value_enum, default_value_t)]
    #[arg(hide = cfg!(not(feature = "cuda")))]
    pub attention: CudaAttention,
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
    /// Inputs of most products in e4m3 with a scale a row, sums in f32: on Hopper, and never by itself.
    Fp8,
}

impl ComputeDtype {
    fn allows(self, precision: Precision) -> bool {
        match self {
            Self::Auto => true,
            Self::F32 => precision == Precision::F32,
            Self::Bf16 => precision == Precision::Bf16,
            Self::Fp8 => precision == Precision::Fp8,
        }
    }
}

impl std::fmt::Display for ComputeDtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
        })
    }
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

/// How a GPU multiplies by weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum CudaProducts {
    /// By one algorithm for each matrix, at every number of rows: a text has the same bits in every batch.
    #[default]
    Invariant,
    /// By whichever algorithm is fastest for the rows of a batch: a text's last bits depend on what it shares a batch with.
    Fastest,
}

/// Which FlashAttention a GPU computes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum CudaAttention {
    /// For GPUs since Ampere.
    #[value(name = "2")]
    Two,
    /// With Hopper's own instructions, where the program was built with them.
    #[value(name = "3")]
    Three,
}

impl Default for CudaAttention {
    /// What the program was built for.
    fn default() -> Self {
        if cfg!(feature = "flash-attention-3") { Self::Three } else { Self::Two }
    }
}

/// What computes, and in which precision: where two machines have the same path, a text has the same vector on both, to
/// the bit. On a GPU only if they also have the same GPU, driver and cuBLASLt. Named in every part, record and audit record.
///
/// The paths in f32 on CPUs, candle's apart, agree to the bit among each other as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ComputePath {
    /// bf16 products on an NVIDIA GPU, the same in every batch, and FlashAttention 2.
    #[value(skip)]
    CudaBf16,
    /// The same, but by the fastest algorithm for each batch: no two batches need to give a text the same bits.
    #[value(skip)]
    CudaBf16Fastest,
    /// As [`Self::CudaBf16`], with FlashAttention 3: Hopper's own instructions.
    #[value(skip)]
    HopperBf16,
    /// As [`Self::CudaBf16Fastest`], with FlashAttention 3.
    #[value(skip)]
    HopperBf16Fastest,
    /// e4m3 products with a scale a row, but for attention and its output, which are as in [`Self::HopperBf16`].
    #[value(skip)]
    HopperFp8,
    /// bf16 products on a CPU with AMX: Intel's servers since Sapphire Rapids
    AmxBf16,
    /// bf16 products on a CPU with AVX512-BF16
    Avx512Bf16,
    /// f32 products on a CPU with AVX-512
    Avx512F32,
    /// f32 products on a CPU with AVX2 and FMA
    Avx2F32,
    /// f32 products in plain Rust, on any CPU: slow
    PortableF32,
    /// f32 products by candle, on any CPU: what the others are checked against. A text's bits depend on its batch
    CandleF32,
}

impl ComputePath {
    /// The paths that are chosen by themselves on this machine's CPU, the fastest first, whether it has them or not.
    ///
    /// Intel's CPUs make half as many bf16 products a cycle with AVX512-BF16 as f32 products (measured on Emerald Rapids:
    /// 87 GFLOP/s a core and 175); their instructions for bf16 are AMX. AMD's make twice as many.
    pub fn fastest_first() -> [Self; 5] {
        if cpu::is_intel() {
            [Self::AmxBf16, Self::Avx512F32, Self::Avx512Bf16, Self::Avx2F32, Self::PortableF32]
        } else {
            [Self::AmxBf16, Self::Avx512Bf16, Self::Avx512F32, Self::Avx2F32, Self::PortableF32]
        }
    }

    /// Every path on CPUs.
    pub const ON_CPUS: [Self; 6] =
        [Self::AmxBf16, Self::Avx512Bf16, Self::Avx512F32, Self::Avx2F32, Self::PortableF32, Self::CandleF32];

    /// Its name, as everywhere.
    pub fn name(self) -> &'static str {
        match self {
            Self::CudaBf16 => "cuda-bf16",
            Self::CudaBf16Fastest => "cuda-bf16-fastest",
            Self::HopperBf16 => "hopper-bf16",
            Self::HopperBf16Fastest => "hopper-bf16-fastest",
            Self::HopperFp8 => "hopper-fp8",
            Self::AmxBf16 => "amx-bf16",
            Self::Avx512Bf16 => "avx512-bf16",
            Self::Avx512F32 => "avx512-f32",
            Self::Avx2F32 => "avx2-f32",
            Self::PortableF32 => "portable-f32",
            Self::CandleF32 => "candle-f32",
        }
    }

    /// Precision of its products.
    pub fn precision(self) -> Precision {
        match self {
            Self::CudaBf16
            | Self::CudaBf16Fastest
            | Self::HopperBf16
            | Self::HopperBf16Fastest
            | Self::AmxBf16
            | Self::Avx512Bf16 => Precision::Bf16,
            Self::HopperFp8 => Precision::Fp8,
            Self::Avx512F32 | Self::Avx2F32 | Self::PortableF32 | Self::CandleF32 => Precision::F32,
        }
    }

    /// Why this machine's CPU can't take it; `None` where it can.
    pub fn lacking(self) -> Option<&'static str> {
        cpu::lacks(self)
    }
}

impl std::fmt::Display for ComputePath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A path that is faster than the one that was taken, and why it was not taken.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct PassedOver {
    /// The path.
    pub path: ComputePath,
    /// Why not.
    pub reason: String,
}

impl std::fmt::Display for PassedOver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "not {}: {}", self.path, self.reason)
    }
}

/// What a model is to compute with.
pub(super) struct Chosen {
    pub(super) place: Place,
    pub(super) path: ComputePath,
    pub(super) passed_over: Vec<PassedOver>,
}

impl Compute {
    /// On the CPU, in a given precision.
    pub fn cpu(dtype: ComputeDtype) -> Self {
        Self { dtype, device: ComputeDevice::Cpu, ..Self::default() }
    }

    /// On the CPU, by a given path.
    pub fn by(path: ComputePath) -> Self {
        Self { device: ComputeDevice::Cpu, cpu_path: Some(path), ..Self::default() }
    }

    /// Finds the device, and how it computes.
    pub(super) fn choose(self) -> Result<Chosen, LoadError> {
        // What can't be is told before a GPU is looked for.
        if self.device == ComputeDevice::Cuda {
            self.on_gpu()?;
        }
        let (place, not_cuda) = self.place()?;
        if let Some(reason) = not_cuda {
            let (path, mut passed_over) = self.on_cpu()?;
            let on_gpu = match self.cuda.attention {
                CudaAttention::Two => ComputePath::CudaBf16,
                CudaAttention::Three => ComputePath::HopperBf16,
            };
            passed_over.insert(0, PassedOver { path: on_gpu, reason });
            return Ok(Chosen { place, path, passed_over });
        }
        Ok(Chosen { place, path: self.on_gpu()?, passed_over: Vec::new() })
    }

    fn on_gpu(self) -> Result<ComputePath, LoadError> {
        let CudaOptions { products, attention, .. } = self.cuda;
        Ok(match (self.dtype, products, attention) {
            (ComputeDtype::F32, ..) => return Err(LoadError::NoF32),
            (ComputeDtype::Fp8, CudaProducts::Invariant, CudaAttention::Three) => ComputePath::HopperFp8,
            (ComputeDtype::Fp8, ..) => return Err(LoadError::Fp8Alone),
            (_, CudaProducts::Invariant, CudaAttention::Two) => ComputePath::CudaBf16,
            (_, CudaProducts::Fastest, CudaAttention::Two) => ComputePath::CudaBf16Fastest,
            (_, CudaProducts::Invariant, CudaAttention::Three) => ComputePath::HopperBf16,
            (_, CudaProducts::Fastest, CudaAttention::Three) => ComputePath::HopperBf16Fastest,
        })
    }

    /// Where to compute, and, if that is the CPU, why not on a GPU.
    fn place(self) -> Result<(Place, Option<String>), LoadError> {
        const NOT_BUILT: &str = "this program was built without CUDA";
        Ok(match self.device {
            ComputeDevice::Cuda => (self.cuda()?, None),
            _ if !cfg!(feature = "cuda") => (Place::Cpu, Some(NOT_BUILT.to_owned())),
            ComputeDevice::Cpu => (Place::Cpu, Some("--device cpu asks for the CPU".to_owned())),
            ComputeDevice::Auto => match (self.dtype, self.cpu_path) {
                (ComputeDtype::F32, _) => (Place::Cpu, Some("--dtype f32 asks for f32".to_owned())),
                (_, Some(path)) => (Place::Cpu, Some(format!("--cpu-path asks for {path}"))),
                _ => match self.cuda() {
                    Ok(gpu) => (gpu, None),
                    Err(error) => {
                        warn!(%error, "computing on the CPU");
                        (Place::Cpu, Some(error.to_string()))
                    }
                },
            },
        })
    }

    /// The path that is asked for, else the fastest that this CPU has and the precision allows; and those before it.
    fn on_cpu(self) -> Result<(ComputePath, Vec<PassedOver>), LoadError> {
        let mut passed_over = Vec::new();
        if self.dtype == ComputeDtype::Fp8 {
            return Err(LoadError::NoFp8);
        }
        if let Some(path) = self.cpu_path {
            if let Some(reason) = path.lacking() {
                return Err(LoadError::NoPath { path, reason: reason.to_owned() });
            }
            if !self.dtype.allows(path.precision()) {
                return Err(LoadError::PathDtype { path, dtype: self.dtype });
            }
        }
        for path in ComputePath::fastest_first() {
            let reason = match path.lacking() {
                Some(lacking) => lacking.to_owned(),
                None if !self.dtype.allows(path.precision()) => format!("--dtype {0} asks for {0}", self.dtype),
                None => match self.cpu_path {
                    Some(asked) if asked != path => format!("--cpu-path asks for {asked}"),
                    _ => return Ok((path, passed_over)),
                },
            };
            passed_over.push(PassedOver { path, reason });
        }
        match self.cpu_path {
            Some(path) => Ok((path, passed_over)),
            None => Err(LoadError::NoBf16),
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda(self) -> Result<Place, LoadError> {
        Gpu::open(self.cuda, self.dtype == ComputeDtype::Fp8).map(Place::Cuda)
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda(self) -> Result<Place, LoadError> {
        Err(LoadError::NoCuda("this program was built without CUDA (cargo build --features cuda)".to_owned()))
    }
}
