//! A matrix product with weights.

use candle_core::{Result, Tensor};

#[cfg(feature = "cuda")]
use crate::engine::cuda;
use crate::engine::place::Place;

/// Weights `[out, in]`, as stored: products take them transposed.
pub(super) struct Linear {
    weights: Tensor,
    place: Place,
}

impl Linear {
    /// `weights` lie at `place`.
    pub(super) fn new(weights: Tensor, place: Place) -> Self {
        Self { weights, place }
    }

    /// `[rows, in]` to `[rows, out]`.
    pub(super) fn forward(&self, rows: &Tensor) -> Result<Tensor> {
        match &self.place {
            Place::Cpu => rows.matmul(&self.weights.t()?),
            #[cfg(feature = "cuda")]
            Place::Cuda(gpu) => cuda::product(gpu, rows, &self.weights),
        }
    }

    /// `[rows, in]` to `[rows, out]`, added to `residual`. That may be done in its memory, also where other tensors share it.
    pub(super) fn add_to(&self, residual: Tensor, rows: &Tensor) -> Result<Tensor> {
        match &self.place {
            Place::Cpu => residual + self.forward(rows)?,
            #[cfg(feature = "cuda")]
            Place::Cuda(gpu) => {
                residual.inplace_op1(&cuda::AddProduct { gpu, rows, weights: &self.weights })?;
                Ok(residual)
            }
        }
    }

    /// Only `len` of the outputs, from `start` on.
    pub(super) fn part(&self, start: usize, len: usize) -> Result<Self> {
        Ok(Self { weights: self.weights.narrow(0, start, len)?, place: self.place.clone() })
    }
}
