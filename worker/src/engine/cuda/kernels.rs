//! Launches the kernels of `kernels.cu`.
//!
//! How a kernel is laid out follows from a row's width, and never from the number of rows: see there.

use std::borrow::Cow;
use std::env;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::OnceLock;

use candle_core::cuda_backend::cudarc::driver::{CudaView, DeviceRepr, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::{CudaDType, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, DType, Layout, Result, Storage, Tensor, bail};
use half::bf16;
use tracing::warn;

use crate::engine::tensor::{Angles, NormAndTurn};

/// Compiled by `build.rs`; the driver makes machine code of it when it is loaded.
const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));

/// For measuring: a file to take the kernels from instead, so that they can be changed where there is a GPU and no Rust.
/// They are launched as the built-in ones are: the constants below have to be the same there.
const PTX_VARIABLE: &str = "VECMILL_CUDA_PTX";

/// The name that candle keeps it by.
pub(super) const MODULE: &str = "vecmill";

/// The only size of a head that `norm_and_turn` takes.
pub(super) const HEAD_DIM: usize = 128;

/// Values that a thread moves at once: widths are multiples of it.
pub(super) const VECTOR: usize = 8;

/// The same in bytes.
const VECTOR_BYTES: usize = 16;

const WARP: usize = 32;

/// Most threads of a block.
pub(super) const THREADS_MAX: usize = 1024;

/// As in `kernels.cu`: rows of a block of `rms_norm`; heads of a warp of `norm_and_turn`; and how many times eight values a
/// thread of `gated_silu` has under way at once.
const NORM_ROWS: usize = 2;
const WARP_HEADS: usize = 8;
const SILU_EIGHTS: usize = 1;

/// What the driver is given.
pub(super) fn ptx() -> Result<&'static str> {
    static CHOSEN: OnceLock<std::result::Result<Cow<'static, str>, String>> = OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| {
        let Some(path) = env::var_os(PTX_VARIABLE).filter(|path| !path.is_empty()) else { return Ok(PTX.into()) };
        let path = Path::new(&path);
        warn!(path = %path.display(), "{PTX_VARIABLE} is set: these kernels are used instead of the built-in ones");
        match std::fs::read_to_string(path) {
            Ok(text) => Ok(text.into()),
            Err(error) => Err(format!("{PTX_VARIABLE} names {}, which can't be read: {error}", path.display())),
        }
    });
    match chosen {
        Ok(ptx) => Ok(ptx),
        Err(why) => bail!("{why}"),
    }
}

/// `x` and `y`: how many blocks.
pub(super) fn blocks(x: usize, y: usize, threads: usize) -> Result<LaunchConfig> {
    if x == 0 || y == 0 || x > i32::MAX as usize || y > u16::MAX as usize || threads > THREADS_MAX {
        bail!("a GPU takes no {x} by {y} blocks of {threads} threads");
    }
    Ok(LaunchConfig { grid_dim: (x as u32, y as u32, 1), block_dim: (threads as u32, 1, 1), shared_mem_bytes: 0 })
}

/// A number as kernels take it: what they compute from it, within a row, fits as well.
pub(super) fn count(number: usize) -> Result<i32> {
    match i32::try_from(number) {
        Ok(number) if number < i32::MAX / 64 => Ok(number),
        _ => bail!("kernels count up to {}, not {number}", i32::MAX / 64),
    }
}

/// Threads for so many tasks: warps are whole.
pub(super) fn threads(tasks: usize) -> usize {
    tasks.next_multiple_of(WARP)
}

/// First and last element, which must lie without gaps and at a multiple of 16 bytes, whatever their type.
fn range(layout: &Layout) -> Result<Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) if start.is_multiple_of(VECTOR) => Ok(start..end),
        _ => bail!("kernels take contiguous, aligned tensors, not {layout:?}"),
    }
}

/// What a kernel reads of a tensor.
pub(super) fn view<'a, T: CudaDType>(
    (storage, layout): &'a (impl Deref<Target = Storage>, &Layout),
) -> Result<CudaView<'a, T>> {
    match &**storage {
        Storage::Cuda(storage) => Ok(storage.as_cuda_slice::<T>()?.slice(range(layout)?)),
        _ => bail!("an operand of a kernel is not on the GPU"),
    }
}

/// How many rows a norm has, and how many eights a row: each has a thread.
pub(super) fn norm_size(input: &Tensor, weight: &Tensor) -> Result<(usize, usize)> {
    let (rows, width) = input.dims2()?;
    if !width.is_multiple_of(VECTOR) || weight.dims() != [width] {
        bail!("the norm of {:?} can't be taken with {:?} weights", input.dims(), weight.dims());
    }
    if width > THREADS_MAX * VECTOR {
        bail!("the norm is taken of up to {} values, not of {width}", THREADS_MAX * VECTOR);
    }
    Ok((rows, width / VECTOR))
}

/// `[rows, width]` to the same, bf16. `weight` is `[width]`, f32. A row has at most 8,192 values.
#[allow(unsafe_code, reason = "a kernel is launched")]
pub(in crate::engine) fn rms_norm(input: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let (rows, eights) = norm_size(input, weight)?;
    let width = eights * VECTOR;
    let cuda = input.device().as_cuda_device()?;
    let (input, weight) = (input.storage_and_layout(), weight.storage_and_layout());
    let (input, weight) = (view::<bf16>(&input)?, view::<f32>(&weight)?);
    let function = cuda.get_or_load_custom_func("rms_norm", MODULE, ptx()?)?;
    // SAFETY: all of it is written below.
    let output = unsafe { cuda.alloc::<bf16>(rows * width)? };
    let (rows_arg, eights_arg) = (count(rows)?, count(eights)?);
    let mut launch = function.builder();
    launch.arg(&input).arg(&weight).arg(&output).arg(&rows_arg).arg(&eights_arg).arg(&eps);
    // SAFETY: a block reads and writes up to NORM_ROWS rows of `rows`, a thread for each eight values of them, and reads the
    // weights; all have the lengths checked above.
    unsafe { launch.launch(blocks(rows.div_ceil(NORM_ROWS), 1, threads(eights))?) }.w()?;
    Ok(wrap(CudaStorage::wrap_cuda_slice(output, cuda.clone()), (rows, width)))
}

/// See [`NormAndTurn`]. `layout` is `[rows, heads, HEAD_DIM]`, bf16; weights, cosines and sines are f32. At most 256 heads
/// are turned.
#[allow(unsafe_code, reason = "a kernel is launched")]
pub(in crate::engine) fn norm_and_turn(op: &NormAndTurn, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
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
    let warps = first.0.div_ceil(WARP_HEADS) + second.0.div_ceil(WARP_HEADS);
    if warps * WARP > THREADS_MAX {
        bail!("{} and {} heads are more than a block turns", first.0, second.0);
    }
    let cuda = storage.device.clone();
    let tensors = [first.1, second.1, cos, sin].map(Tensor::storage_and_layout);
    let views = tensors.iter().map(view::<f32>).collect::<Result<Vec<_>>>()?;
    let [first_weight, second_weight, cos, sin] = views.as_slice() else { bail!("four tensors make four views") };
    let function = cuda.get_or_load_custom_func("norm_and_turn", MODULE, ptx()?)?;
    let mut values = storage.as_cuda_slice_mut::<bf16>()?.slice_mut(range(layout)?);
    let (heads, first, second) = (count(heads)?, count(first.0)?, count(second.0)?);
    let mut launch = function.builder();
    launch.arg(&mut values).arg(&heads).arg(&first).arg(first_weight).arg(&second).arg(second_weight);
    launch.arg(cos).arg(sin).arg(&op.eps);
    // SAFETY: a block reads and writes the first `first + second` heads of one of `rows`, and reads the weights and the row's
    // angles; all have the lengths checked above, and each warp that is started has a head.
    unsafe { launch.launch(blocks(rows, 1, warps * WARP)?) }.w()?;
    Ok(())
}

/// `[rows, 2 * inner]` of gate and up to `silu(gate) * up`, `[rows, inner]`, bf16.
#[allow(unsafe_code, reason = "a kernel is launched")]
pub(in crate::engine) fn gated_silu(storage: &CudaStorage, layout: &Layout) -> Result<CudaStorage> {
    /// More blocks of fewer threads keep a multiprocessor busier than few large ones.
    const THREADS: usize = 256;
    let (rows, width) = layout.shape().dims2()?;
    let inner = width / 2;
    if inner == 0 || !width.is_multiple_of(2 * VECTOR) {
        bail!("an inner width of {inner} is no multiple of {VECTOR}");
    }
    let cuda = &storage.device;
    let gate_up = storage.as_cuda_slice::<bf16>()?.slice(range(layout)?);
    let function = cuda.get_or_load_custom_func("gated_silu", MODULE, ptx()?)?;
    // SAFETY: all of it is written below.
    let output = unsafe { cuda.alloc::<bf16>(rows * inner)? };
    let eights = inner / VECTOR;
    let eights_arg = count(eights)?;
    // As few parts of a row as there can be, all of one size.
    let parts = eights.div_ceil(THREADS * SILU_EIGHTS);
    let part_threads = threads(eights.div_ceil(parts * SILU_EIGHTS));
    let mut launch = function.builder();
    launch.arg(&gate_up).arg(&output).arg(&eights_arg);
    // SAFETY: a block reads gates and ups and writes outputs of a part of one of `rows`, the parts together all of them; the
    // lengths are checked above.
    unsafe { launch.launch(blocks(parts, rows, part_threads)?) }.w()?;
    Ok(CudaStorage::wrap_cuda_slice(output, cuda.clone()))
}

/// The rows of a tensor, bf16 or f32, that `rows` (u32, `[n]`) tells: `[n, ..]`, without gaps. A row is what lies along all
/// dimensions but the first, without gaps and in multiples of 16 bytes; it may be a part of a wider one. A row that is not
/// there is filled with NaN.
pub(in crate::engine) fn gather(source: &Tensor, rows: &Tensor) -> Result<Tensor> {
    match source.dtype() {
        DType::BF16 => gather_as::<bf16>(source, rows),
        DType::F32 => gather_as::<f32>(source, rows),
        other => bail!("rows of bf16 or f32 are gathered, not of {other:?}"),
    }
}

#[allow(unsafe_code, reason = "a kernel is launched")]
fn gather_as<T: CudaDType + DeviceRepr>(source: &Tensor, rows: &Tensor) -> Result<Tensor> {
    const THREADS: usize = 256;
    let n = rows.dims1()?;
    let ((source, layout), (rows, rows_layout)) = (source.storage_and_layout(), rows.storage_and_layout());
    let (Storage::Cuda(source), Storage::Cuda(rows)) = (&*source, &*rows) else {
        bail!("what is to be gathered is not on the GPU")
    };
    let (&[source_rows, ref dims @ ..], &[stride, ref inner_strides @ ..]) = (layout.dims(), layout.stride()) else {
        bail!("there are no rows in a single value")
    };
    let mut width = 1;
    for (&dim, &inner_stride) in dims.iter().zip(inner_strides).rev() {
        if dim != 1 && inner_stride != width {
            bail!("rows with gaps can't be gathered: {layout:?}");
        }
        width *= dim;
    }
    let per_unit = VECTOR_BYTES / size_of::<T>();
    let (start, end) = (layout.start_offset(), layout.start_offset() + source_rows.saturating_sub(1) * stride + width);
    if source_rows == 0 || [start, stride, width].iter().any(|values| !values.is_multiple_of(per_unit)) {
        bail!("rows to gather are multiples of {VECTOR_BYTES} bytes, and begin at one; these are not: {layout:?}");
    }
    let Some((rows_start, rows_end)) = rows_layout.contiguous_offsets() else { bail!("row numbers lie without gaps") };
    let Ok(source_rows) = u32::try_from(source_rows) else { bail!("{source_rows} rows can't be told by 32 bits") };
    let cuda = &source.device;
    let rows = rows.as_cuda_slice::<u32>()?.slice(rows_start..rows_end);
    let source = source.as_cuda_slice::<T>()?.slice(start..end);
    let function = cuda.get_or_load_custom_func("gather", MODULE, ptx()?)?;
    // SAFETY: all of it is written below.
    let output = unsafe { cuda.alloc::<T>(n * width)? };
    let (n_arg, units, stride_units) = (count(n)?, count(width / per_unit)?, stride / per_unit);
    let mut launch = function.builder();
    launch.arg(&source).arg(&stride_units).arg(&source_rows).arg(&rows).arg(&output).arg(&n_arg).arg(&units);
    // SAFETY: a warp reads one of `n` row numbers and writes the row of the output; it reads the row of the source only if
    // its number is below `source_rows`, all of which lie within the view.
    unsafe { launch.launch(blocks(n.div_ceil(THREADS / WARP), 1, THREADS)?) }.w()?;
    let output = Storage::Cuda(CudaStorage::wrap_cuda_slice(output, cuda.clone()));
    let shape: Vec<usize> = std::iter::once(n).chain(dims.iter().copied()).collect();
    Ok(Tensor::from_storage(output, shape, BackpropOp::none(), false))
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
