//! Where a model's tensors lie, and how numbers get there and back.

#[cfg(feature = "cuda")]
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use super::EngineError;
#[cfg(feature = "cuda")]
use super::compute::CudaAttention;
#[cfg(feature = "cuda")]
use super::cuda::{self, Gpu};
use super::packing::Sharing;

/// Where tensors lie.
#[derive(Clone)]
pub(super) enum Place {
    /// In memory, f32.
    Cpu,
    /// On the GPU, bf16; what is small (norms, positions) f32.
    #[cfg(feature = "cuda")]
    Cuda(Arc<Gpu>),
}

impl Place {
    pub(super) fn device(&self) -> &Device {
        match self {
            Self::Cpu => &Device::Cpu,
            #[cfg(feature = "cuda")]
            Self::Cuda(gpu) => gpu.device(),
        }
    }

    /// Type of weights and activations.
    pub(super) fn dtype(&self) -> DType {
        match self {
            Self::Cpu => DType::F32,
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => DType::BF16,
        }
    }

    /// When rows of a beginning are shared there.
    pub(super) fn sharing(&self) -> Sharing {
        match self {
            Self::Cpu => Sharing::Always,
            #[cfg(feature = "cuda")]
            Self::Cuda(gpu) => gpu.sharing(),
        }
    }

    /// Which attention rows go through there, if it is a GPU.
    #[cfg(feature = "cuda")]
    pub(super) fn attention(&self) -> CudaAttention {
        match self {
            Self::Cpu => CudaAttention::default(),
            Self::Cuda(gpu) => gpu.attention(),
        }
    }

    /// The GPU that this is.
    #[cfg(feature = "cuda")]
    pub(super) fn gpu(&self) -> Result<&Gpu> {
        match self {
            Self::Cpu => candle_core::bail!("a GPU's product on a CPU"),
            Self::Cuda(gpu) => Ok(gpu),
        }
    }

    /// Whether most products are in FP8 there.
    #[cfg(feature = "cuda")]
    pub(super) fn is_fp8(&self) -> bool {
        match self {
            Self::Cpu => false,
            Self::Cuda(gpu) => gpu.is_fp8(),
        }
    }

    /// On a GPU, the bytes that are allocated now; [`Self::peak_memory`] counts from here.
    pub(super) fn forget_peak_memory(&self) -> Result<u64> {
        match self {
            Self::Cpu => Ok(0),
            #[cfg(feature = "cuda")]
            Self::Cuda(gpu) => gpu.forget_peak_memory(),
        }
    }

    /// On a GPU, the most bytes that were allocated at once.
    pub(super) fn peak_memory(&self) -> Result<Option<u64>> {
        match self {
            Self::Cpu => Ok(None),
            #[cfg(feature = "cuda")]
            Self::Cuda(gpu) => gpu.peak_memory().map(Some),
        }
    }

    /// What a batch failed with. Where nothing can be computed any more, ends the process.
    pub(super) fn failure(&self, error: candle_core::Error) -> EngineError {
        #[cfg(feature = "cuda")]
        if let Self::Cuda(gpu) = self
            && gpu.is_lost()
        {
            cuda::end_process(format_args!("the GPU is lost: {error}"));
        }
        EngineError::Candle(error)
    }

    /// Begins a batch.
    pub(super) fn batch(&self) -> Result<Batch> {
        Ok(match self {
            Self::Cpu => Batch::Cpu,
            #[cfg(feature = "cuda")]
            Self::Cuda(gpu) => Batch::Cuda(cuda::Batch::new(gpu)?),
        })
    }
}

/// A batch on its way to its place.
pub(super) enum Batch {
    Cpu,
    #[cfg(feature = "cuda")]
    Cuda(cuda::Batch),
}

impl Batch {
    /// One tensor for each of `parts`, u32.
    pub(super) fn upload(&mut self, parts: &[Vec<u32>]) -> Result<Vec<Tensor>> {
        match self {
            Self::Cpu => parts.iter().map(|part| Tensor::new(part.as_slice(), &Device::Cpu)).collect(),
            #[cfg(feature = "cuda")]
            Self::Cuda(batch) => batch.upload(parts),
        }
    }

    /// The batch's output, `[rows, width]` f32, as soon as it is computed.
    pub(super) fn finish(self, output: &Tensor) -> Result<Rows> {
        Ok(match self {
            Self::Cpu => Rows::Here(output.to_vec2()?),
            #[cfg(feature = "cuda")]
            Self::Cuda(batch) => Rows::Coming(batch.finish(output)?),
        })
    }
}

/// Rows of a batch that is computed, or will be.
pub(super) enum Rows {
    Here(Vec<Vec<f32>>),
    #[cfg(feature = "cuda")]
    Coming(cuda::Pending),
}

impl Rows {
    /// Whether [`Self::get`] has nothing to wait for.
    pub(super) fn are_here(&self) -> bool {
        match self {
            Self::Here(_) => true,
            #[cfg(feature = "cuda")]
            Self::Coming(pending) => pending.is_done(),
        }
    }

    /// Waits for them.
    pub(super) fn get(self) -> Result<Vec<Vec<f32>>> {
        match self {
            Self::Here(rows) => Ok(rows),
            #[cfg(feature = "cuda")]
            Self::Coming(pending) => pending.rows(),
        }
    }
}
