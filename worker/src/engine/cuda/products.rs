//! Matrix products with weights, by cuBLASLt.

use candle_core::cuda_backend::CudaDType;
use candle_core::cuda_backend::cudarc::driver::{CudaView, DevicePtrMut, DeviceRepr};
use candle_core::{CpuStorage, CudaStorage, InplaceOp1, Layout, Result, Storage, Tensor, bail};
use half::bf16;

use super::Gpu;
use super::cublas_lt::Operands;
use super::fp8::Fp8Rows;
use super::kernels::wrap;

/// cuBLASLt picks its kernels for operands at multiples of this many bytes.
pub(super) const ALIGNMENT: usize = 256;

/// One side of a product: rows, or weights, `[rows, in]`. Both sides of one are of one kind.
#[derive(Clone, Copy)]
pub(in crate::engine) enum Factor<'a> {
    Bf16(&'a Tensor),
    Fp8(&'a Fp8Rows),
}

impl Factor<'_> {
    fn values(&self) -> &Tensor {
        match self {
            Self::Bf16(tensor) => tensor,
            Self::Fp8(rows) => &rows.values,
        }
    }
}

/// `[rows, in]` times the transpose of `weights`, `[out, in]`: `[rows, out]`, bf16. Sums are f32.
#[allow(unsafe_code, reason = "memory is allocated without clearing it")]
pub(in crate::engine) fn product(gpu: &Gpu, rows: Factor<'_>, weights: Factor<'_>) -> Result<Tensor> {
    let shape = (rows.values().dim(0)?, weights.values().dim(0)?);
    let cuda = gpu.cuda()?;
    // SAFETY: the product writes all of it.
    let mut output = unsafe { cuda.alloc::<bf16>(shape.0 * shape.1)? };
    multiply(gpu, rows, weights, &mut output, 0.0)?;
    Ok(wrap(CudaStorage::wrap_cuda_slice(output, cuda.clone()), shape))
}

/// Adds `rows` times the transpose of `weights` to a tensor, bf16, in place.
pub(in crate::engine) struct AddProduct<'a> {
    pub(in crate::engine) gpu: &'a Gpu,
    pub(in crate::engine) rows: Factor<'a>,
    pub(in crate::engine) weights: Factor<'a>,
}

impl InplaceOp1 for AddProduct<'_> {
    fn name(&self) -> &'static str {
        "add-product"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> Result<()> {
        bail!("sums on the CPU are candle's")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        let shape = (self.rows.values().dim(0)?, self.weights.values().dim(0)?);
        if layout.shape().dims2()? != shape {
            bail!("a product of {shape:?} can't be added to {:?}", layout.dims());
        }
        let mut sum = storage.as_cuda_slice_mut::<bf16>()?.slice_mut(range::<bf16>(layout)?);
        multiply(self.gpu, self.rows, self.weights, &mut sum, 1.0)
    }
}

/// `output` becomes `keep * output` and the product.
fn multiply(
    gpu: &Gpu,
    rows: Factor<'_>,
    weights: Factor<'_>,
    output: &mut impl DevicePtrMut<bf16>,
    keep: f32,
) -> Result<()> {
    let ((height, inner), (outer, weights_inner)) = (rows.values().dims2()?, weights.values().dims2()?);
    if inner != weights_inner {
        bail!("{:?} can't be multiplied by {:?}", rows.values().dims(), weights.values().dims());
    }
    let sizes = (outer, inner, height);
    match (rows, weights) {
        (Factor::Bf16(rows), Factor::Bf16(weights)) => {
            let ((rows, rows_at), (weights, weights_at)) = (rows.storage_and_layout(), weights.storage_and_layout());
            let operands = Operands::Bf16 { weights: view(&weights, weights_at)?, rows: view(&rows, rows_at)? };
            gpu.blas.multiply(&operands, sizes, output, keep)
        }
        (Factor::Fp8(rows), Factor::Fp8(weights)) => {
            let parts = [&weights.values, &weights.scales, &rows.values, &rows.scales].map(Tensor::storage_and_layout);
            let [weights, weight_scales, rows, row_scales] = &parts;
            let operands = Operands::Fp8 {
                weights: (view(&weights.0, weights.1)?, view(&weight_scales.0, weight_scales.1)?),
                rows: (view(&rows.0, rows.1)?, view(&row_scales.0, row_scales.1)?),
            };
            gpu.blas.multiply(&operands, sizes, output, keep)
        }
        _ => bail!("rows and weights of two kinds can't be multiplied"),
    }
}

fn view<'a, T: CudaDType + DeviceRepr>(storage: &'a Storage, layout: &Layout) -> Result<CudaView<'a, T>> {
    let Storage::Cuda(storage) = storage else { bail!("an operand is not on the GPU") };
    Ok(storage.as_cuda_slice::<T>()?.slice(range::<T>(layout)?))
}

fn range<T>(layout: &Layout) -> Result<std::ops::Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) if (start * size_of::<T>()).is_multiple_of(ALIGNMENT) => Ok(start..end),
        _ => bail!("products take contiguous, aligned tensors, not {layout:?}"),
    }
}
