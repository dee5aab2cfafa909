//! The norm of a row.

use candle_core::{Result, Tensor};

use crate::engine::config::Config;

/// RMS norm with weights.
pub(super) struct Norm {
    /// `[width]`, f32.
    pub(super) weight: Tensor,
    pub(super) eps: f32,
}

impl Norm {
    pub(super) fn new(weight: Tensor, config: &Config) -> Self {
        Self { weight, eps: config.rms_norm_eps as f32 }
    }

    /// `[rows, width]` to the same.
    pub(super) fn of(&self, rows: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if rows.device().is_cuda() {
            return crate::engine::cuda::rms_norm(rows, &self.weight, self.eps);
        }
        candle_nn::ops::rms_norm(rows, &self.weight, self.eps)
    }
}
