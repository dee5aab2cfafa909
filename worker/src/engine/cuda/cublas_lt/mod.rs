//! cuBLASLt, as far as products with weights need it.
//!
//! cuBLASLt picks an algorithm by the sizes of a product, and with it how each sum is cut and in which order it is added
//! up. Here each shape of weights has its own, one for each band of heights and all of the same bits, found when the shape
//! is first used: while a model is loaded, for the trial batches go through every product that there is. See [`algorithms`].

mod descriptors;
mod library;
mod sweep;
mod tried;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::cublaslt::result::CublasError;
use candle_core::cuda_backend::cudarc::cublaslt::sys;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, CudaView, DevicePtr, DevicePtrMut};
use candle_core::{Error, Result, bail};
use half::bf16;

#[cfg(doc)]
use crate::engine::algorithms;
use crate::engine::algorithms::BANDS;
use crate::engine::compute::CudaProducts;
use crate::engine::products::Factors;
use descriptors::{BF16, E4M3, Sizes};
use library::{Buffers, Library};
use tried::Tried;

/// Bytes of workspace, as NVIDIA recommends: Hopper and later, and before.
const WORKSPACE: (usize, usize) = (32 << 20, 4 << 20);

/// The first generation that is given the larger one.
pub(super) const HOPPER: i32 = 9;

/// How to say what to do about it.
const REMEDY: &str = "--cuda-products fastest (VECMILL_CUDA_PRODUCTS) computes without the promise that batches make no \
                      difference";

/// Multiplies on one stream.
pub(super) struct CublasLt {
    products: CudaProducts,
    stream: Arc<CudaStream>,
    /// Used by one product after the other: all are queued on the stream.
    workspace: CudaSlice<u8>,
    state: Mutex<State>,
}

struct State {
    bf16: Library,
    /// There once it is asked for.
    fp8: Option<Library>,
    /// By type, and rows and columns of the weights. Whether a product is added to what is there is not in it: cuBLASLt is
    /// not told before it computes, and so can't choose by it.
    plans: HashMap<(Factors, usize, usize), Plan>,
}

// SAFETY: the pointers lead to memory on the host that cuBLASLt allocated for this value alone, and that belongs to no
// thread; nobody reaches them but by the mutex around it.
#[allow(unsafe_code, reason = "cuBLASLt's descriptors are pointers")]
unsafe impl Send for State {}

/// How to multiply by weights of one shape.
struct Plan {
    sizes: Sizes,
    /// For each of [`BANDS`]; or all of them the one for the sizes' height.
    algorithms: [sys::cublasLtMatmulAlgo_t; BANDS.len()],
}

/// What is multiplied, weights and rows.
pub(super) enum Operands<'a> {
    Bf16 {
        weights: CudaView<'a, bf16>,
        rows: CudaView<'a, bf16>,
    },
    /// In e4m3, each row of either with a scale.
    Fp8 {
        weights: (CudaView<'a, u8>, CudaView<'a, f32>),
        rows: (CudaView<'a, u8>, CudaView<'a, f32>),
    },
}

impl Operands<'_> {
    fn factors(&self) -> Factors {
        match self {
            Self::Bf16 { .. } => Factors::Bf16,
            Self::Fp8 { .. } => Factors::Fp8Rows,
        }
    }

    fn fit(&self, outer: usize, inner: usize, height: usize) -> bool {
        let (weights, rows) = match self {
            Self::Bf16 { weights, rows } => (weights.len(), rows.len()),
            Self::Fp8 { weights, rows } if weights.1.len() == outer && rows.1.len() == height => {
                (weights.0.len(), rows.0.len())
            }
            Self::Fp8 { .. } => return false,
        };
        weights == outer * inner && rows == height * inner
    }
}

impl CublasLt {
    /// On a GPU of this generation.
    pub(super) fn new(stream: Arc<CudaStream>, products: CudaProducts, generation: i32) -> Result<Self> {
        stream.context().bind_to_thread().map_err(Error::wrap)?;
        let bytes = if generation >= HOPPER { WORKSPACE.0 } else { WORKSPACE.1 };
        let workspace = stream.alloc_zeros(bytes).map_err(Error::wrap)?;
        let state = State { bf16: Library::new(Factors::Bf16, bytes)?, fp8: None, plans: HashMap::new() };
        Ok(Self { products, stream, workspace, state: Mutex::new(state) })
    }

    pub(super) fn products(&self) -> CudaProducts {
        self.products
    }

    /// `output`, `[height, outer]`, becomes `keep` times itself and the product of `rows`, `[height, inner]`, with the
    /// transpose of `weights`, `[outer, inner]`. All lie row by row, from multiples of 256 bytes on.
    #[allow(unsafe_code, reason = "cuBLASLt is given sizes that it can't check")]
    pub(super) fn multiply(
        &self,
        operands: &Operands<'_>,
        (outer, inner, height): (usize, usize, usize),
        output: &mut impl DevicePtrMut<bf16>,
        keep: f32,
    ) -> Result<()> {
        if !operands.fit(outer, inner, height) || output.len() != height * outer {
            bail!("{height} rows of {inner} values can't be multiplied by weights of {outer} x {inner}");
        }
        self.stream.context().bind_to_thread().map_err(Error::wrap)?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (library, plan) = self.plan(&mut state, operands.factors(), (outer, inner), height)?;
        // Events are not tracked, so that nothing is recorded when these guards go.
        let (weights, rows) = match operands {
            Operands::Bf16 { weights, rows } => (weights.device_ptr(&self.stream).0, rows.device_ptr(&self.stream).0),
            Operands::Fp8 { weights, rows } => {
                library.operation.scale_by([&weights.1, &rows.1].map(|scales| scales.device_ptr(&self.stream).0))?;
                (weights.0.device_ptr(&self.stream).0, rows.0.device_ptr(&self.stream).0)
            }
        };
        let (workspace, _used) = self.workspace.device_ptr(&self.stream);
        let (output, _used) = output.device_ptr_mut(&self.stream);
        let buffers = Buffers { weights, rows, output, workspace };
        // SAFETY: the buffers, scales among them, are contiguous and have the lengths that the plan's sizes call for, as
        // checked above; the workspace has the length that the library is told. What is queued uses the buffers in the
        // stream's order, as all that frees them does.
        let queued = unsafe { library.multiply(&plan.sizes, &plan.algorithm(), &buffers, keep, &self.stream) };
        queued.map_err(|CublasError(status)| {
            let remedy = match (self.products, status) {
                (CudaProducts::Invariant, sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED) => format!("; {REMEDY}"),
                _ => String::new(),
            };
            Error::Msg(format!(
                "cuBLASLt can't multiply {height} rows by weights of {outer} x {inner}: {status:?}{remedy}"
            ))
        })
    }

    /// How to multiply so many rows by weights of a shape.
    fn plan<'a>(
        &self,
        state: &'a mut State,
        factors: Factors,
        (outer, inner): (usize, usize),
        height: usize,
    ) -> Result<(&'a Library, &'a Plan)> {
        let State { bf16, fp8, plans } = state;
        let (library, values) = match (factors, fp8) {
            (Factors::Bf16, _) => (&*bf16, BF16),
            (_, Some(fp8)) => (&*fp8, E4M3),
            (_, fp8) => (&*fp8.insert(Library::new(Factors::Fp8Rows, self.workspace.len())?), E4M3),
        };
        let plan = match plans.entry((factors, outer, inner)) {
            Entry::Occupied(plan) => plan.into_mut(),
            Entry::Vacant(free) => {
                let sizes = Sizes::new(values, outer, inner, height)?;
                let algorithms = match self.products {
                    CudaProducts::Fastest => [library.fastest(&sizes)?; BANDS.len()],
                    CudaProducts::Invariant => {
                        let most = BANDS.iter().map(|&(_, tried)| tried).max().unwrap_or(1);
                        let sizes = (outer, inner, most);
                        let tried = Tried::new(&self.stream, &self.workspace, library, factors, sizes)?;
                        library.invariant(tried)?
                    }
                };
                free.insert(Plan { sizes, algorithms })
            }
        };
        plan.take_height(library, self.products, height)?;
        Ok((library, plan))
    }
}

impl Plan {
    /// For the sizes' height.
    fn algorithm(&self) -> sys::cublasLtMatmulAlgo_t {
        let height = self.sizes.height.unwrap_or(0);
        let band = BANDS.iter().position(|&(most, _)| height <= most).unwrap_or(BANDS.len() - 1);
        self.algorithms[band]
    }

    /// Makes it fit a number of rows. Through a batch it mostly stays the same.
    fn take_height(&mut self, library: &Library, products: CudaProducts, height: usize) -> Result<()> {
        if self.sizes.height == Some(height) {
            return Ok(());
        }
        self.sizes.set_height(height)?;
        if products == CudaProducts::Fastest {
            // An error must not leave the new height with the old algorithm.
            self.sizes.height = None;
            self.algorithms = [library.fastest(&self.sizes)?; BANDS.len()];
            self.sizes.height = Some(height);
        }
        Ok(())
    }
}
