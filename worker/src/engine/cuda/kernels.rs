//! Launches the kernels of `kernels.cu`.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{LaunchConfig, PushKernelArg};
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, DType, Layout, Result, Storage, Tensor, bail};
use half::bf16;

use crate::engine::tensor::{Angles, NormAndTurn};

/// Compiled by `build.rs`; the driver makes machine code of it when it is loaded.
const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));

/// The name that candle keeps it by.
const MODULE: &str = "vecmill";

/// The only size of a head that `norm_and_turn` takes.
pub(super) const HEAD_DIM: usize = 128;

/// Values that a thread reads at once: widths are multiples of it.
pub(super) const VECTOR: usize = 8;

const WARP: usize = 32;

fn blocks(number: usize, threads: usize) -> Result<LaunchConfig> {
    let Ok(number) = u32::try_from(number) else { bail!("a batch needs {number} blocks of threads") };
    Ok(LaunchConfig { grid_dim: (number, 1, 1), block_dim: (threads as u32, 1, 1), shared_mem_bytes: 0 })
}

/// First and last element, which must lie without gaps and at a multiple of 16 bytes.
fn range(layout: &Layout) -> Result<std::ops::Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) if start.is_multiple_of(VECTOR) => Ok(start..end),
        _ => bail!("kernels take contiguous, aligned tensors, not {layout:?}"),
    }
}

/// `[rows, width]` to the same, bf16. `weight` is `[width]`, f32.
#[allow(unsafe_code, reason = "a kernel is launched")]
pub(in crate::engine) fn rms_norm(input: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    const THREADS: usize = 128;
    let (rows, width) = input.dims2()?;
    if !width.is_multiple_of(VECTOR) || weight.dims() != [width] {
        bail!("the norm of {:?} can't be taken with {:?} weights", input.dims(), weight.dims());
    }
    let ((input, input_layout), (weight, weight_layout)) = (input.storage_and_layout(), weight.storage_and_layout());
    let (Storage::Cuda(input), Storage::Cuda(weight)) = (&*input, &*weight) else {
        bail!("the norm is not on the GPU")
    };
    let cuda = &input.device;
    let input = input.as_cuda_slice::<bf16>()?.slice(range(input_layout)?);
    let weight = weight.as_cuda_slice::<f32>()?.slice(range(weight_layout)?);
    let function = cuda.get_or_load_custom_func("rms_norm", MODULE, PTX)?;
    // SAFETY: all of it is written below.
    let output = unsafe { cuda.alloc::<bf16>(rows * width)? };
    let width_arg = width as i32;
    let mut launch = function.builder();
    launch.arg(&input).arg(&weight).arg(&output).arg(&width_arg).arg(&eps);
    // SAFETY: a block reads and writes its row of `rows`, and the weights; all have the lengths checked above.
    unsafe { launch.launch(blocks(rows, THREADS)?) }.w()?;
    Ok(wrap(CudaStorage::wrap_cuda_slice(output, cuda.clone()), (rows, width)))
}

/// See [`NormAndTurn`]. `layout` is `[rows, heads, HEAD_DIM]`, bf16; weights, cosines and sines are f32.
#[allow(unsafe_code, reason = "a kernel is launched")]
pub(in crate::engine) fn norm_and_turn(op: &NormAndTurn, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
    const THREADS: usize = 256;
    let (rows, heads, dim) = layout.shape().dims3()?;
    let (first, second) = match op.norms {
        [first] => (*first, (0, first.1)),
        [first, second] => (*first, *second),
        _ => bail!("heads are normed with one weight or two"),
    };
    let Angles { cos, sin } = op.angles;
    let half = [rows, HEAD_DIM / 2];
    let fits = dim == HEAD_DIM
        && first.0 > 0
        && first.0 + second.0 <= heads
        && [first.1, second.1].iter().all(|weight| weight.dims() == [HEAD_DIM])
        && cos.dims() == half
        && sin.dims() == half;
    if !fits {
        bail!("heads of {:?} can't be normed and turned with angles of {:?}", layout.dims(), cos.dims());
    }
    let cuda = storage.device.clone();
    let tensors = [first.1, second.1, cos, sin].map(Tensor::storage_and_layout);
    let views = tensors
        .iter()
        .map(|(storage, layout)| match &**storage {
            Storage::Cuda(storage) => Ok(storage.as_cuda_slice::<f32>()?.slice(range(layout)?)),
            _ => bail!("norms and angles are not on the GPU"),
        })
        .collect::<Result<Vec<_>>>()?;
    let [first_weight, second_weight, cos, sin] = views.as_slice() else { bail!("four tensors make four views") };
    let function = cuda.get_or_load_custom_func("norm_and_turn", MODULE, PTX)?;
    let mut values = storage.as_cuda_slice_mut::<bf16>()?.slice_mut(range(layout)?);
    let (heads, first, second) = (heads as i32, first.0 as i32, second.0 as i32);
    let tasks = rows * (first + second) as usize;
    let mut launch = function.builder();
    launch.arg(&mut values).arg(&rows).arg(&heads).arg(&first).arg(first_weight).arg(&second).arg(second_weight);
    launch.arg(cos).arg(sin).arg(&op.eps);
    // SAFETY: a warp reads and writes one of the first `first + second` heads of one of `rows`, and reads the weights and
    // the row's angles; all have the lengths checked above.
    unsafe { launch.launch(blocks(tasks.div_ceil(THREADS / WARP), THREADS)?) }.w()?;
    Ok(())
}

/// `[rows, 2 * inner]` of gate and up to `silu(gate) * up`, `[rows, inner]`, bf16.
#[allow(unsafe_code, reason = "a kernel is launched")]
pub(in crate::engine) fn gated_silu(storage: &CudaStorage, layout: &Layout) -> Result<CudaStorage> {
    const THREADS: usize = 256;
    let (rows, width) = layout.shape().dims2()?;
    let inner = width / 2;
    if !width.is_multiple_of(2 * VECTOR) {
        bail!("an inner width of {inner} is no multiple of {VECTOR}");
    }
    let cuda = &storage.device;
    let gate_up = storage.as_cuda_slice::<bf16>()?.slice(range(layout)?);
    let function = cuda.get_or_load_custom_func("gated_silu", MODULE, PTX)?;
    // SAFETY: all of it is written below.
    let output = unsafe { cuda.alloc::<bf16>(rows * inner)? };
    let inner_arg = inner as i32;
    let mut launch = function.builder();
    launch.arg(&gate_up).arg(&output).arg(&rows).arg(&inner_arg);
    // SAFETY: a thread reads eight gates and ups and writes eight outputs of one of `rows`; the lengths are checked above.
    unsafe { launch.launch(blocks((rows * inner / VECTOR).div_ceil(THREADS), THREADS)?) }.w()?;
    Ok(CudaStorage::wrap_cuda_slice(output, cuda.clone()))
}

/// A tensor of what was just computed.
pub(super) fn wrap(storage: CudaStorage, (rows, width): (usize, usize)) -> Tensor {
    Tensor::from_storage(Storage::Cuda(storage), (rows, width), BackpropOp::none(), false)
}

/// Refuses what is not bf16.
pub(super) fn check_bf16(tensor: &Tensor) -> Result<()> {
    match tensor.dtype() {
        DType::BF16 => Ok(()),
        other => bail!("the GPU computes in bf16, not {other:?}"),
    }
}
