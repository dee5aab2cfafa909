//! The norm of a row.

use candle_core::{Result, Tensor};

/// RMS norm of `[rows, width]` with `weight`, `[width]` f32.
pub(super) fn rms_norm(rows: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if rows.device().is_cuda() {
        return crate::engine::cuda::rms_norm(rows, weight, eps);
    }
    candle_nn::ops::rms_norm(rows, weight, eps)
}
