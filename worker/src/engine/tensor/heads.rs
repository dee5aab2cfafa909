//! What queries and keys go through before attention: a norm a head, and the turn to their position.

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Storage, Tensor, bail};
use rayon::prelude::*;

/// Cosines and sines of the rows of one packed batch, `[rows, head_dim / 2]` each.
pub(in crate::engine) struct Angles {
    pub(in crate::engine) cos: Tensor,
    pub(in crate::engine) sin: Tensor,
}

/// In place on `[rows, heads, head_dim]`: RMS-norms and turns the first heads with one weight, the next with another, and
/// leaves the rest (values) alone. Pairs are `(i, i + head_dim / 2)`, as in Qwen3.
pub(in crate::engine) struct NormAndTurn<'a> {
    /// How many heads, and their norm's weight `[head_dim]`.
    pub(in crate::engine) norms: &'a [(usize, &'a Tensor)],
    pub(in crate::engine) eps: f32,
    pub(in crate::engine) angles: &'a Angles,
}

impl InplaceOp1 for NormAndTurn<'_> {
    fn name(&self) -> &'static str {
        "norm-and-turn"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(values), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
            bail!("heads are turned as contiguous f32 values");
        };
        let (_, heads, dim) = layout.shape().dims3()?;
        let half = dim / 2;
        let weights =
            self.norms.iter().map(|(count, weight)| Ok((*count, f32s(weight)?))).collect::<Result<Vec<_>>>()?;
        let (cos, sin) = (f32s(&self.angles.cos)?, f32s(&self.angles.sin)?);
        let angles = cos.par_chunks_exact(half).zip(sin.par_chunks_exact(half));
        values[start..end].par_chunks_exact_mut(heads * dim).zip(angles).for_each(|(row, (cos, sin))| {
            let mut heads = row.chunks_exact_mut(dim);
            for (count, weight) in &weights {
                for head in heads.by_ref().take(*count) {
                    let squares: f32 = head.iter().map(|value| value * value).sum();
                    let scale = 1.0 / (squares / dim as f32 + self.eps).sqrt();
                    let (left, right) = head.split_at_mut(half);
                    let (left_weight, right_weight) = weight.split_at(half);
                    for i in 0..half {
                        let (a, b) = (left[i] * scale * left_weight[i], right[i] * scale * right_weight[i]);
                        left[i] = a * cos[i] - b * sin[i];
                        right[i] = b * cos[i] + a * sin[i];
                    }
                }
            }
        });
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        crate::engine::cuda::norm_and_turn(self, storage, layout)
    }
}

/// A contiguous CPU tensor's values.
fn f32s(tensor: &Tensor) -> Result<Vec<f32>> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => Ok(values[start..end].to_vec()),
        _ => bail!("norms and angles are contiguous f32 values"),
    }
}
