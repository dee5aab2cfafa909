//! A matrix product with weights.

use candle_core::{Result, Tensor};

/// Weights `[out, in]`, as stored; products take their transposed view.
pub(super) struct Linear(Tensor);

impl Linear {
    pub(super) fn new(weights: Tensor) -> Self {
        Self(weights)
    }

    /// `[rows, in]` to `[rows, out]`.
    pub(super) fn forward(&self, rows: &Tensor) -> Result<Tensor> {
        rows.matmul(&self.0.t()?)
    }

    /// `[rows, in]` to `[rows, out]`, added to `residual`.
    pub(super) fn add_to(&self, residual: &Tensor, rows: &Tensor) -> Result<Tensor> {
        residual + self.forward(rows)?
    }

    /// Only `len` of the outputs, from `start` on.
    pub(super) fn part(&self, start: usize, len: usize) -> Result<Self> {
        Ok(Self(self.0.narrow(0, start, len)?))
    }
}
