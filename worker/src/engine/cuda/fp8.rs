//! Launches those kernels of `kernels.cu` that make rows for products in FP8.
//!
//! A row has a scale of its own, which depends on that row alone, as its values do: they are the same in every batch.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, PushKernelArg};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, Result, Storage, Tensor, bail};
use half::bf16;

use super::kernels::{MODULE, THREADS_MAX, VECTOR, blocks, count, norm_size, ptx, threads, view, wrap};

/// As in `kernels.cu`: rows of a block of `rms_norm_fp8`.
const NORM_FP8_ROWS: usize = 2;

/// Rows in e4m3, each with the factor that its values are to be multiplied by: its largest magnitude / 448.
pub(in crate::engine) struct Fp8Rows {
    /// u8, `[rows, width]`.
    pub(in crate::engine) values: Tensor,
    /// f32, `[rows]`.
    pub(in crate::engine) scales: Tensor,
}

/// As `rms_norm`.
#[allow(unsafe_code, reason = "a kernel is launched")]
pub(in crate::engine) fn rms_norm_fp8(input: &Tensor, weight: &Tensor, eps: f32) -> Result<Fp8Rows> {
    let (rows, eights) = norm_size(input, weight)?;
    let cuda = input.device().as_cuda_device()?;
    let (input, weight) = (input.storage_and_layout(), weight.storage_and_layout());
    let (input, weight) = (view::<bf16>(&input)?, view::<f32>(&weight)?);
    let function = cuda.get_or_load_custom_func("rms_norm_fp8", MODULE, ptx()?)?;
    let output = Output::alloc(cuda, rows, eights * VECTOR)?;
    let (rows_arg, eights_arg) = (count(rows)?, count(eights)?);
    let mut launch = function.builder();
    launch.arg(&input).arg(&weight).arg(&output.values).arg(&output.scales).arg(&rows_arg).arg(&eights_arg).arg(&eps);
    // SAFETY: a block reads and writes up to NORM_FP8_ROWS rows of `rows`, a thread for each eight values of them, and reads
    // the weights; all have the lengths checked above.
    unsafe { launch.launch(blocks(rows.div_ceil(NORM_FP8_ROWS), 1, threads(eights))?) }.w()?;
    Ok(output.wrap(cuda))
}

/// `[rows, 2 * inner]` of gate and up, bf16, to `silu(gate) * up`, `[rows, inner]`. `inner` is at most 20,480.
pub(in crate::engine) fn gated_silu_fp8(gate_up: &Tensor) -> Result<Fp8Rows> {
    const KERNEL: BlockARow = BlockARow { name: "gated_silu_fp8", reads: 2, eights: 4, threads_max: 640 };
    KERNEL.launch(gate_up)
}

/// `[rows, width]`, bf16, to the same. A row has at most 16,384 values.
pub(in crate::engine) fn quantize_rows(rows: &Tensor) -> Result<Fp8Rows> {
    const KERNEL: BlockARow = BlockARow { name: "quantize_rows", reads: 1, eights: 2, threads_max: THREADS_MAX };
    KERNEL.launch(rows)
}

/// A kernel that has a block for each row.
struct BlockARow {
    name: &'static str,
    /// Values that it reads for each that it writes.
    reads: usize,
    /// As in `kernels.cu`: how many times eight values of a row a thread holds, and most threads of a block.
    eights: usize,
    threads_max: usize,
}

impl BlockARow {
    #[allow(unsafe_code, reason = "a kernel is launched")]
    fn launch(&self, input: &Tensor) -> Result<Fp8Rows> {
        let &Self { name, reads, eights, threads_max } = self;
        let (rows, input_width) = input.dims2()?;
        let (width, width_max) = (input_width / reads, threads_max * eights * VECTOR);
        if width == 0 || width > width_max || !input_width.is_multiple_of(reads * VECTOR) {
            bail!("{name} writes rows of up to {width_max} values, a multiple of {VECTOR}, and reads no {input_width}");
        }
        let (cuda, input) = (input.device().as_cuda_device()?, input.storage_and_layout());
        let input = view::<bf16>(&input)?;
        let function = cuda.get_or_load_custom_func(name, MODULE, ptx()?)?;
        let output = Output::alloc(cuda, rows, width)?;
        let row_eights = width / VECTOR;
        let eights_arg = count(row_eights)?;
        let mut launch = function.builder();
        launch.arg(&input).arg(&output.values).arg(&output.scales).arg(&eights_arg);
        // SAFETY: a block reads and writes one of `rows`, which its threads hold; the lengths are checked above.
        unsafe { launch.launch(blocks(rows, 1, threads(row_eights.div_ceil(eights)))?) }.w()?;
        Ok(output.wrap(cuda))
    }
}

/// What a kernel writes.
struct Output {
    rows: usize,
    width: usize,
    values: CudaSlice<u8>,
    scales: CudaSlice<f32>,
}

impl Output {
    #[allow(unsafe_code, reason = "memory is allocated without clearing it")]
    fn alloc(cuda: &CudaDevice, rows: usize, width: usize) -> Result<Self> {
        // SAFETY: each kernel here writes all of both.
        let (values, scales) = unsafe { (cuda.alloc::<u8>(rows * width)?, cuda.alloc::<f32>(rows)?) };
        Ok(Self { rows, width, values, scales })
    }

    fn wrap(self, cuda: &CudaDevice) -> Fp8Rows {
        let values = wrap(CudaStorage::wrap_cuda_slice(self.values, cuda.clone()), (self.rows, self.width));
        let scales = Storage::Cuda(CudaStorage::wrap_cuda_slice(self.scales, cuda.clone()));
        Fp8Rows { values, scales: Tensor::from_storage(scales, self.rows, BackpropOp::none(), false) }
    }
}
