//! SwiGLU's way from gate and up to what goes into the down product.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::exp::exp;
#[cfg(feature = "cuda")]
use crate::engine::cuda;

/// `[rows, 2 * inner]` of gate and up to `silu(gate) * up`, `[rows, inner]`.
pub(super) fn gated_silu(gate_up: &Tensor) -> Result<Tensor> {
    gate_up.apply_op1_no_bwd(&GatedSilu)
}

/// In one pass over memory.
struct GatedSilu;

impl CustomOp1 for GatedSilu {
    fn name(&self) -> &'static str {
        "gated-silu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (CpuStorage::F32(values), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
            bail!("gated silu takes contiguous f32 values");
        };
        let (rows, width) = layout.shape().dims2()?;
        let inner = width / 2;
        let mut output = vec![0f32; rows * inner];
        output.par_chunks_exact_mut(inner).zip(values[start..end].par_chunks_exact(width)).for_each(|(output, row)| {
            let (gate, up) = row.split_at(inner);
            pulp::Arch::new().dispatch(|| {
                for ((output, gate), up) in output.iter_mut().zip(gate).zip(up) {
                    *output = gate / (1.0 + exp(-gate)) * up;
                }
            });
        });
        Ok((CpuStorage::F32(output), (rows, inner).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        Ok((cuda::gated_silu(storage, layout)?, (rows, width / 2).into()))
    }
}
