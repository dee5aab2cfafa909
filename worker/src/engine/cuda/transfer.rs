//! Copies to and from the GPU, which nothing has to wait for: they use page-locked memory, and go through the stream's queue.

use std::sync::{Arc, PoisonError};

use candle_core::cuda_backend::cudarc::driver::{CudaEvent, DeviceRepr, PinnedHostSlice, ValidAsZeroBits, sys};
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, Error, Result, Storage, Tensor, bail};

use super::Gpu;

/// Values that a buffer has room for at first. It grows to what the largest batch needs.
const FIRST_LEN: usize = 1 << 16;

/// Page-locked memory of one batch.
pub(super) struct Staging {
    to_gpu: PinnedHostSlice<u32>,
    from_gpu: PinnedHostSlice<f32>,
}

/// A batch that is being queued. Dropped before [`Batch::finish`], it waits for the GPU: a copy may still read its memory.
pub(in crate::engine) struct Batch {
    gpu: Arc<Gpu>,
    /// Taken only by `drop`.
    staging: Option<Staging>,
}

impl Batch {
    pub(in crate::engine) fn new(gpu: &Arc<Gpu>) -> Result<Self> {
        let idle = gpu.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let staging = match idle {
            Some(staging) => staging,
            None => Staging { to_gpu: page_locked(gpu, FIRST_LEN)?, from_gpu: page_locked(gpu, FIRST_LEN)? },
        };
        Ok(Self { gpu: gpu.clone(), staging: Some(staging) })
    }

    /// Copies all parts at once; gives one tensor for each. Called once for a batch.
    #[allow(unsafe_code, reason = "memory is allocated without clearing it")]
    pub(in crate::engine) fn upload(&mut self, parts: &[Vec<u32>]) -> Result<Vec<Tensor>> {
        let len = parts.iter().map(Vec::len).sum();
        let Some(staging) = &mut self.staging else { bail!("this batch is finished") };
        grow(&self.gpu, &mut staging.to_gpu, len)?;
        let host = &mut staging.to_gpu.as_mut_slice().map_err(Error::wrap)?[..len];
        let mut rest = &mut *host;
        for part in parts {
            let (to, after) = rest.split_at_mut(part.len());
            to.copy_from_slice(part);
            rest = after;
        }
        let cuda = self.gpu.cuda()?;
        // SAFETY: the copy writes all of it.
        let mut values = unsafe { cuda.alloc::<u32>(len)? };
        self.gpu.stream().memcpy_htod(&*host, &mut values).map_err(Error::wrap)?;
        let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(values, cuda.clone()));
        let all = Tensor::from_storage(storage, len, BackpropOp::none(), false);
        let mut start = 0;
        parts
            .iter()
            .map(|part| {
                start += part.len();
                all.narrow(0, start - part.len(), part.len())
            })
            .collect()
    }

    /// Queues the copy of the batch's output, `[rows, width]` f32, behind everything that makes it.
    pub(in crate::engine) fn finish(mut self, output: &Tensor) -> Result<Pending> {
        let (rows, width) = output.dims2()?;
        let Some(staging) = &mut self.staging else { bail!("this batch is finished") };
        grow(&self.gpu, &mut staging.from_gpu, rows * width)?;
        {
            let (storage, layout) = output.storage_and_layout();
            let (Storage::Cuda(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
                bail!("the output is not on the GPU, or has gaps");
            };
            let values = storage.as_cuda_slice::<f32>()?.slice(start..end);
            let host = &mut staging.from_gpu.as_mut_slice().map_err(Error::wrap)?[..rows * width];
            self.gpu.stream().memcpy_dtoh(&values, host).map_err(Error::wrap)?;
        }
        let copied = self.gpu.event(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?;
        Ok(Pending { batch: self, copied, rows, width })
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        if let Some(staging) = self.staging.take()
            // An error means that the GPU is lost: then the memory is not used again.
            && self.gpu.synchronize().is_ok()
        {
            self.gpu.idle.lock().unwrap_or_else(PoisonError::into_inner).push(staging);
        }
    }
}

/// A batch that the GPU has yet to finish.
pub(in crate::engine) struct Pending {
    batch: Batch,
    copied: CudaEvent,
    rows: usize,
    width: usize,
}

impl Pending {
    /// Whether [`Self::rows`] has nothing to wait for: the rows, or an error.
    pub(in crate::engine) fn is_done(&self) -> bool {
        !matches!(self.copied.try_is_complete(), Ok(false))
    }

    /// Waits for the batch, and for none that was queued after it.
    pub(in crate::engine) fn rows(mut self) -> Result<Vec<Vec<f32>>> {
        self.batch.gpu.wait(&self.copied)?;
        let Some(staging) = self.batch.staging.take() else { bail!("this batch is finished") };
        let values = &staging.from_gpu.as_slice().map_err(Error::wrap)?[..self.rows * self.width];
        let rows = values.chunks_exact(self.width).map(<[f32]>::to_vec).collect();
        self.batch.gpu.idle.lock().unwrap_or_else(PoisonError::into_inner).push(staging);
        Ok(rows)
    }
}

/// Makes room for `len` values. What the buffer held is lost.
fn grow<T: DeviceRepr + ValidAsZeroBits>(gpu: &Gpu, buffer: &mut PinnedHostSlice<T>, len: usize) -> Result<()> {
    if buffer.len() < len {
        *buffer = page_locked(gpu, len.next_power_of_two())?;
    }
    Ok(())
}

#[allow(unsafe_code, reason = "page-locked memory comes uncleared")]
fn page_locked<T: DeviceRepr + ValidAsZeroBits>(gpu: &Gpu, len: usize) -> Result<PinnedHostSlice<T>> {
    let context = gpu.stream().context();
    // SAFETY: the types have no invalid values, and what is read was copied there before.
    unsafe { context.alloc_pinned_with_flags(len, 0) }.map_err(Error::wrap)
}
