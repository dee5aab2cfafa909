//! Rows by their numbers.

use candle_core::{Result, Tensor};

/// The rows of `from` that `numbers`, u32, name, in that order. On a GPU rows may be parts of wider ones.
pub(super) fn pick(from: &Tensor, numbers: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if from.device().is_cuda() {
        return crate::engine::cuda::gather(from, numbers);
    }
    from.contiguous()?.index_select(numbers, 0)
}
