//! The GPU itself.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use candle_core::cuda_backend::cudarc::driver::result::{device, mem_pool};
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaStream, profiler_start, sys};
use candle_core::{CudaDevice, Device, Error, Result, bail};
use tracing::error;

use super::cublas_lt::{CublasLt, HOPPER};
use super::transfer::Staging;
use crate::engine::LoadError;
use crate::engine::budget;
use crate::engine::compute::{CudaAttention, CudaOptions, CudaProducts};
use crate::engine::config::Config;
use crate::engine::packing::Sharing;
use crate::engine::products::{Factors, ProductFigures, Weights};

/// The driver's library. It comes with the driver, not with the toolkit.
const DRIVER: &str = "libcuda.so.1";

/// Longest that a batch may take: a hundred times what the longest text takes an H100 with the largest model.
const BATCH_MAX: Duration = Duration::from_secs(300);

/// Between two looks whether a batch is done: a part of the time waited so far, from the first to the second of these on.
const LOOKS: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(1));

/// The first visible GPU, and the one stream of it that everything is queued on.
pub(in crate::engine) struct Gpu {
    device: Device,
    stream: Arc<CudaStream>,
    sharing: Sharing,
    attention: CudaAttention,
    fp8: bool,
    pub(super) blas: CublasLt,
    /// Page-locked memory of batches that are done. Locking pages is slow, and waits for the GPU.
    pub(super) idle: Mutex<Vec<Staging>>,
}

impl Gpu {
    /// Opens the first visible GPU.
    ///
    /// # Errors
    /// There is no driver, no GPU, or a library is missing.
    pub(in crate::engine) fn open(options: CudaOptions, fp8: bool) -> std::result::Result<Arc<Self>, LoadError> {
        if options.attention == CudaAttention::Three && !cfg!(feature = "flash-attention-3") {
            return Err(LoadError::NoCuda(
                "--cuda-attention 3 (VECMILL_CUDA_ATTENTION): this program was built without FlashAttention 3; leave it out"
                    .to_owned(),
            ));
        }
        if !driver_is_there() {
            return Err(LoadError::NoCuda(format!("no NVIDIA driver found ({DRIVER})")));
        }
        // A library that is not there (cuBLAS, cuBLASLt, cuRAND) is a panic in the crate that looks for it.
        match catch_unwind(AssertUnwindSafe(|| Self::new(options, fp8))) {
            Ok(Ok(gpu)) => Ok(Arc::new(gpu)),
            Ok(Err(error)) => Err(LoadError::NoCuda(format!("the GPU can't be used: {error}"))),
            Err(panic) => Err(LoadError::NoCuda(match panic.downcast_ref::<String>() {
                Some(reason) => format!("a CUDA library can't be loaded: {reason}"),
                None => "a CUDA library can't be loaded".to_owned(),
            })),
        }
    }

    #[allow(unsafe_code, reason = "only the caller can know that there is one stream")]
    fn new(options: CudaOptions, fp8: bool) -> Result<Self> {
        // Not candle's usual stream, which is another one on each thread: a model is loaded on one and used on another.
        let cuda = CudaDevice::new_with_stream(0)?;
        // SAFETY: this stream is the only one of the process, so the order of the queue is the order of all accesses.
        // Host memory that copies use is kept by `transfer`. Tracking would cost two events for each tensor.
        unsafe { cuda.disable_event_tracking() };
        let stream = cuda.cuda_stream();
        // By default the driver takes freed memory back whenever the host waits, and maps it anew for the next batch.
        let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        set_pool_attribute(&stream, threshold, u64::MAX)?;
        let CudaOptions { products, sharing, attention } = options;
        let generation = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
        let generation = stream.context().attribute(generation).map_err(Error::wrap)?;
        let blas = CublasLt::new(stream.clone(), products, generation)?;
        if attention == CudaAttention::Three && generation != HOPPER {
            bail!("FlashAttention 3 is for Hopper: take --cuda-attention 2 (VECMILL_CUDA_ATTENTION)");
        }
        Ok(Self { device: Device::Cuda(cuda), stream, sharing, attention, fp8, blas, idle: Mutex::default() })
    }

    pub(in crate::engine) fn device(&self) -> &Device {
        &self.device
    }

    pub(super) fn cuda(&self) -> Result<&CudaDevice> {
        self.device.as_cuda_device()
    }

    pub(super) fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Whether a text is to have the same bits in every batch.
    pub(in crate::engine) fn is_invariant(&self) -> bool {
        self.blas.products() == CudaProducts::Invariant
    }

    /// When rows of a beginning are shared.
    pub(in crate::engine) fn sharing(&self) -> Sharing {
        self.sharing
    }

    /// Whether most products are in FP8.
    pub(in crate::engine) fn is_fp8(&self) -> bool {
        self.fp8
    }

    /// Which attention all rows of a layer go through.
    pub(in crate::engine) fn attention(&self) -> CudaAttention {
        self.attention
    }

    /// Waits for all that is queued.
    pub(in crate::engine) fn synchronize(&self) -> Result<()> {
        self.wait(&self.event(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?)
    }

    /// Behind all that is queued.
    pub(super) fn event(&self, flags: sys::CUevent_flags) -> Result<CudaEvent> {
        self.stream.record_event(Some(flags)).map_err(Error::wrap)
    }

    /// The same, for [`CudaEvent::elapsed_ms`].
    pub(in crate::engine) fn timed_event(&self) -> Result<CudaEvent> {
        self.event(sys::CUevent_flags::CU_EVENT_DEFAULT)
    }

    /// Waits for an event. A kernel that hangs can't be ended and does not let go of the GPU: a wait that is longer than
    /// any batch ends the process.
    ///
    /// It looks and sleeps: the driver's own ways of waiting have no end, or take a processor whole.
    pub(super) fn wait(&self, event: &CudaEvent) -> Result<()> {
        let begun = Instant::now();
        while !event.try_is_complete().map_err(Error::wrap)? {
            let waited = begun.elapsed();
            if waited > BATCH_MAX {
                end_process(format_args!("the GPU has not finished a batch in {} s: a kernel hangs", waited.as_secs()));
            }
            std::thread::sleep((waited / 64).clamp(LOOKS.0, LOOKS.1));
        }
        Ok(())
    }

    /// Whether nothing can be computed any more: a kernel's fault spoils a GPU for the rest of the process.
    pub(in crate::engine) fn is_lost(&self) -> bool {
        // Twice: an error that something else left behind is told once.
        self.synchronize().is_err() && self.synchronize().is_err()
    }

    /// Most tokens for a batch, from the memory that is free now. To be asked once the weights are loaded.
    pub(in crate::engine) fn batch_tokens(&self, config: &Config) -> Result<usize> {
        self.give_back_memory()?;
        let (free, _) = self.stream.context().mem_get_info().map_err(Error::wrap)?;
        Ok(budget::tokens(config, free))
    }

    /// Lets go of freed memory that is kept for later: what loading needed.
    #[allow(unsafe_code, reason = "the driver's own interface")]
    fn give_back_memory(&self) -> Result<()> {
        self.synchronize()?;
        // SAFETY: the pool lives as long as the device does.
        unsafe { mem_pool::trim_to(pool(&self.stream)?, 0) }.map_err(Error::wrap)
    }

    /// Bytes that are allocated now. From now on [`Self::peak_memory`] counts.
    pub(in crate::engine) fn forget_peak_memory(&self) -> Result<u64> {
        self.synchronize()?;
        set_pool_attribute(&self.stream, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, 0)?;
        pool_attribute(&self.stream, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)
    }

    /// The most bytes that were allocated at once.
    pub(in crate::engine) fn peak_memory(&self) -> Result<u64> {
        self.synchronize()?;
        pool_attribute(&self.stream, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)
    }

    /// See [`crate::engine::Model::begin_profile`].
    pub(in crate::engine) fn begin_profile(&self) {
        // Nothing is lost without a profiler.
        let _ = self.stream.context().bind_to_thread().and_then(|()| profiler_start());
    }

    /// Measures the ways to multiply by weights of one shape; one that is not supported is said in the figures.
    pub(in crate::engine) fn sweep(&self, weights: Weights, factors: Factors, height: usize) -> ProductFigures {
        self.blas.sweep(weights, factors, height).unwrap_or_else(|error| ProductFigures {
            weights: weights.name,
            outer: weights.outer,
            inner: weights.inner,
            height,
            precision: factors.name(),
            note: Some(error.to_string()),
            algorithms: Vec::new(),
        })
    }
}

/// Ends the process at once. What would run on the way out (destructors, handlers of the driver) waits for the GPU, or
/// calls into what is broken.
#[allow(unsafe_code, reason = "there is no safe way out that runs nothing")]
pub(in crate::engine) fn end_process(why: std::fmt::Arguments<'_>) -> ! {
    error!("{why}; ending this process: the next one finds a GPU that works, or none");
    // SAFETY: it asks nothing of its caller. The log is written without a buffer.
    unsafe { libc::_exit(1) }
}

#[allow(unsafe_code, reason = "loading a library runs its code")]
fn driver_is_there() -> bool {
    // SAFETY: the driver's initializers ask nothing of the program that loads it, and any program that uses CUDA does.
    unsafe { libloading::Library::new(DRIVER) }.is_ok()
}

/// Where the device's memory comes from.
#[allow(unsafe_code, reason = "the driver's own interface")]
fn pool(stream: &CudaStream) -> Result<sys::CUmemoryPool> {
    // SAFETY: the device is the stream's.
    unsafe { device::get_default_mem_pool(stream.context().cu_device()) }.map_err(Error::wrap)
}

/// One of those that are a u64.
#[allow(unsafe_code, reason = "the driver's own interface")]
fn pool_attribute(stream: &CudaStream, attribute: sys::CUmemPool_attribute) -> Result<u64> {
    let mut value = 0u64;
    // SAFETY: the pool lives as long as the device does, and the attribute is a u64.
    unsafe { mem_pool::get_attribute(pool(stream)?, attribute, std::ptr::from_mut(&mut value).cast()) }
        .map_err(Error::wrap)?;
    Ok(value)
}

/// As [`pool_attribute`].
#[allow(unsafe_code, reason = "the driver's own interface")]
fn set_pool_attribute(stream: &CudaStream, attribute: sys::CUmemPool_attribute, mut value: u64) -> Result<()> {
    // SAFETY: as there.
    unsafe { mem_pool::set_attribute(pool(stream)?, attribute, std::ptr::from_mut(&mut value).cast()) }
        .map_err(Error::wrap)
}
