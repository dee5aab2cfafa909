//! Matrix products with weights, by cuBLASLt.

use candle_core::cuda_backend::cudarc::driver::{CudaView, DevicePtrMut};
use candle_core::{CpuStorage, CudaStorage, InplaceOp1, Layout, Result, Storage, Tensor, bail};
use half::bf16;

use super::Gpu;
use super::kernels::wrap;

/// cuBLASLt picks its kernels for operands at multiples of this many bytes.
pub(super) const ALIGNMENT: usize = 256;

/// `[rows, in]` times the transpose of `weights`, `[out, in]`: `[rows, out]`. All bf16, sums in f32.
#[allow(unsafe_code, reason = "memory is allocated without clearing it")]
pub(in crate::engine) fn product(gpu: &Gpu, rows: &Tensor, weights: &Tensor) -> Result<Tensor> {
    let shape = (rows.dim(0)?, weights.dim(0)?);
    let cuda = gpu.cuda()?;
    // SAFETY: the product writes all of it.
    let mut output = unsafe { cuda.alloc::<bf16>(shape.0 * shape.1)? };
    multiply(gpu, rows, weights, &mut output, 0.0)?;
    Ok(wrap(CudaStorage::wrap_cuda_slice(output, cuda.clone()), shape))
}

/// Adds `rows` times the transpose of `weights` to a tensor, in place.
pub(in crate::engine) struct AddProduct<'a> {
    pub(in crate::engine) gpu: &'a Gpu,
    pub(in crate::engine) rows: &'a Tensor,
    pub(in crate::engine) weights: &'a Tensor,
}

impl InplaceOp1 for AddProduct<'_> {
    fn name(&self) -> &'static str {
        "add-product"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> Result<()> {
        bail!("sums on the CPU are candle's")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        let shape = (self.rows.dim(0)?, self.weights.dim(0)?);
        if layout.shape().dims2()? != shape {
            bail!("a product of {shape:?} can't be added to {:?}", layout.dims());
        }
        let mut sum = storage.as_cuda_slice_mut::<bf16>()?.slice_mut(range(layout)?);
        multiply(self.gpu, self.rows, self.weights, &mut sum, 1.0)
    }
}

/// `output` becomes `keep * output` and the product.
fn multiply(gpu: &Gpu, rows: &Tensor, weights: &Tensor, output: &mut impl DevicePtrMut<bf16>, keep: f32) -> Result<()> {
    let ((height, inner), (outer, weights_inner)) = (rows.dims2()?, weights.dims2()?);
    if inner != weights_inner {
        bail!("{:?} can't be multiplied by {:?}", rows.dims(), weights.dims());
    }
    let ((rows, rows_layout), (weights, weights_layout)) = (rows.storage_and_layout(), weights.storage_and_layout());
    let (rows, weights) = (view(&rows, rows_layout)?, view(&weights, weights_layout)?);
    gpu.blas.multiply((&weights, outer, inner), (&rows, height), output, keep)
}

fn view<'a>(storage: &'a Storage, layout: &Layout) -> Result<CudaView<'a, bf16>> {
    let Storage::Cuda(storage) = storage else { bail!("an operand is not on the GPU") };
    Ok(storage.as_cuda_slice::<bf16>()?.slice(range(layout)?))
}

fn range(layout: &Layout) -> Result<std::ops::Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) if (start * size_of::<bf16>()).is_multiple_of(ALIGNMENT) => Ok(start..end),
        _ => bail!("products take contiguous, aligned tensors, not {layout:?}"),
    }
}
