//! The GPU itself.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use candle_core::backend::BackendDevice;
use candle_core::cuda_backend::cudarc::driver::result::{device, mem_pool};
use candle_core::cuda_backend::cudarc::driver::{CudaStream, sys};
use candle_core::{CudaDevice, Device};

use super::cublas_lt::CublasLt;
use super::transfer::Staging;
use crate::engine::LoadError;
use crate::engine::budget;
use crate::engine::compute::CudaProducts;
use crate::engine::config::Config;

/// The driver's library. It comes with the driver, not with the toolkit.
const DRIVER: &str = "libcuda.so.1";

/// The first visible GPU, and the one stream of it that everything is queued on.
pub(in crate::engine) struct Gpu {
    device: Device,
    stream: Arc<CudaStream>,
    pub(super) blas: CublasLt,
    /// Page-locked memory of batches that are done. Locking pages is slow, and waits for the GPU.
    pub(super) idle: Mutex<Vec<Staging>>,
}

impl Gpu {
    /// Opens the first visible GPU.
    ///
    /// # Errors
    /// There is no driver, no GPU, or a library is missing.
    pub(in crate::engine) fn open(products: CudaProducts) -> Result<Arc<Self>, LoadError> {
        if !driver_is_there() {
            return Err(LoadError::NoCuda(format!("no NVIDIA driver found ({DRIVER})")));
        }
        // A library that is not there (cuBLAS, cuBLASLt, cuRAND) is a panic in the crate that looks for it.
        match catch_unwind(AssertUnwindSafe(|| Self::new(products))) {
            Ok(Ok(gpu)) => Ok(Arc::new(gpu)),
            Ok(Err(error)) => Err(LoadError::NoCuda(format!("the GPU can't be used: {error}"))),
            Err(panic) => Err(LoadError::NoCuda(match panic.downcast_ref::<String>() {
                Some(reason) => format!("a CUDA library can't be loaded: {reason}"),
                None => "a CUDA library can't be loaded".to_owned(),
            })),
        }
    }

    #[allow(unsafe_code, reason = "only the caller can know that there is one stream")]
    fn new(products: CudaProducts) -> candle_core::Result<Self> {
        // Not candle's usual stream, which is another one on each thread: a model is loaded on one and used on another.
        let cuda = CudaDevice::new_with_stream(0)?;
        // SAFETY: this stream is the only one of the process, so the order of the queue is the order of all accesses.
        // Host memory that copies use is kept by `transfer`. Tracking would cost two events for each tensor.
        unsafe { cuda.disable_event_tracking() };
        let stream = cuda.cuda_stream();
        keep_freed_memory(&stream).map_err(candle_core::Error::wrap)?;
        let blas = CublasLt::new(stream.clone(), products)?;
        Ok(Self { device: Device::Cuda(cuda), stream, blas, idle: Mutex::default() })
    }

    pub(in crate::engine) fn device(&self) -> &Device {
        &self.device
    }

    pub(super) fn cuda(&self) -> candle_core::Result<&CudaDevice> {
        self.device.as_cuda_device()
    }

    pub(super) fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Whether a text is to have the same bits in every batch.
    pub(in crate::engine) fn is_invariant(&self) -> bool {
        self.blas.products() == CudaProducts::Invariant
    }

    /// Waits for all that is queued.
    pub(in crate::engine) fn synchronize(&self) -> candle_core::Result<()> {
        self.cuda()?.synchronize()
    }

    /// Most tokens for a batch, from the memory that is free now. To be asked once the weights are loaded.
    pub(in crate::engine) fn batch_tokens(&self, config: &Config) -> candle_core::Result<usize> {
        self.synchronize()?;
        let (free, _) = self.stream.context().mem_get_info().map_err(candle_core::Error::wrap)?;
        Ok(budget::tokens(config, free))
    }
}

#[allow(unsafe_code, reason = "loading a library runs its code")]
fn driver_is_there() -> bool {
    // SAFETY: the driver's initializers ask nothing of the program that loads it, and any program that uses CUDA does.
    unsafe { libloading::Library::new(DRIVER) }.is_ok()
}

/// By default the driver takes freed memory back whenever the host waits, and maps it anew for the next batch.
#[allow(unsafe_code, reason = "the driver's own interface")]
fn keep_freed_memory(stream: &CudaStream) -> Result<(), candle_core::cuda_backend::cudarc::driver::DriverError> {
    let mut all = u64::MAX;
    // SAFETY: the device is the stream's, its default pool lives as long as it does, and the threshold is a u64.
    unsafe {
        let pool = device::get_default_mem_pool(stream.context().cu_device())?;
        let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        mem_pool::set_attribute(pool, threshold, std::ptr::from_mut(&mut all).cast())
    }
}
