//! cuBLASLt, as far as products with weights need it.
//!
//! cuBLASLt picks an algorithm by the sizes of a product, and with it how each sum is cut and in which order it is added
//! up. Here each matrix of weights has one, for all heights, found when the matrix is first used: while a model is loaded,
//! for the trial batches go through every product that there is. See [`algorithms`].

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::ptr::{from_mut, from_ref};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::cublaslt::result::{self, CublasError};
use candle_core::cuda_backend::cudarc::cublaslt::sys;
use candle_core::cuda_backend::cudarc::driver::sys::CUdevice_attribute;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, CudaView, DevicePtr, DevicePtrMut};
use candle_core::{Error, Result, bail};
use half::bf16;
use sys::cublasLtMatmulAlgoConfigAttributes_t as Attribute;
use tracing::info;

use crate::engine::algorithms::{self, Candidate, HEIGHTS, REFERENCE_HEIGHT};
use crate::engine::compute::CudaProducts;

/// Bytes of workspace, as NVIDIA recommends: Hopper and later, and before.
const WORKSPACE: (usize, usize) = (32 << 20, 4 << 20);

/// The first generation that is given the larger one.
const HOPPER: i32 = 9;

/// Algorithms that cuBLASLt is asked for, fastest first.
const CANDIDATES: usize = 32;

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
    library: Library,
    /// By rows and columns of the weights. Whether a product is added to what is there is not in it: cuBLASLt is not told
    /// before it computes, and so can't choose by it.
    plans: HashMap<(usize, usize), Plan>,
}

// SAFETY: the pointers lead to memory on the host that cuBLASLt allocated for this value alone, and that belongs to no
// thread; nobody reaches them but by the mutex around it.
#[allow(unsafe_code, reason = "cuBLASLt's descriptors are pointers")]
unsafe impl Send for State {}

/// How to multiply by weights of one shape.
struct Plan {
    sizes: Sizes,
    /// For all heights, or for that of the sizes.
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl CublasLt {
    pub(super) fn new(stream: Arc<CudaStream>, products: CudaProducts) -> Result<Self> {
        let context = stream.context();
        context.bind_to_thread().map_err(Error::wrap)?;
        let generation = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
        let generation = context.attribute(generation).map_err(Error::wrap)?;
        let bytes = if generation >= HOPPER { WORKSPACE.0 } else { WORKSPACE.1 };
        let workspace = stream.alloc_zeros(bytes).map_err(Error::wrap)?;
        let library = Library { operation: Operation::new()?, handle: Handle::new()?, workspace: bytes };
        Ok(Self { products, stream, workspace, state: Mutex::new(State { library, plans: HashMap::new() }) })
    }

    pub(super) fn products(&self) -> CudaProducts {
        self.products
    }

    /// `output`, `[height, outer]`, becomes `keep` times itself and the product of `rows`, `[height, inner]`, with the
    /// transpose of `weights`, `[outer, inner]`. All lie row by row, from multiples of 256 bytes on.
    #[allow(unsafe_code, reason = "cuBLASLt is given sizes that it can't check")]
    pub(super) fn multiply(
        &self,
        (weights, outer, inner): (&CudaView<bf16>, usize, usize),
        (rows, height): (&CudaView<bf16>, usize),
        output: &mut impl DevicePtrMut<bf16>,
        keep: f32,
    ) -> Result<()> {
        if weights.len() != outer * inner || rows.len() != height * inner || output.len() != height * outer {
            bail!("{height} rows of {inner} values can't be multiplied by weights of {outer} x {inner}");
        }
        self.stream.context().bind_to_thread().map_err(Error::wrap)?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { library, plans } = &mut *state;
        let plan = match plans.entry((outer, inner)) {
            Entry::Occupied(plan) => plan.into_mut(),
            Entry::Vacant(free) => free.insert(Plan::new(library, self.products, Sizes::new(outer, inner, height)?)?),
        };
        plan.take_height(library, self.products, height)?;
        let (weights, _used) = weights.device_ptr(&self.stream);
        let (rows, _used) = rows.device_ptr(&self.stream);
        let (workspace, _used) = self.workspace.device_ptr(&self.stream);
        let (output, _used) = output.device_ptr_mut(&self.stream);
        let add = 1.0f32;
        // SAFETY: the three buffers are contiguous and have the lengths that the plan's sizes call for, as checked above;
        // the workspace has the length given; descriptors live as long as the plan, and cuBLASLt reads them and the two
        // factors before it returns. What is queued uses the buffers in the stream's order, as all that frees them does.
        let queued = unsafe {
            result::matmul(
                library.handle.0,
                library.operation.0,
                from_ref(&add).cast(),
                from_ref(&keep).cast(),
                weights as *const c_void,
                plan.sizes.weights.0,
                rows as *const c_void,
                plan.sizes.rows.0,
                output as *const c_void,
                plan.sizes.output.0,
                output as *mut c_void,
                plan.sizes.output.0,
                from_ref(&plan.algorithm),
                workspace as *mut c_void,
                library.workspace,
                self.stream.cu_stream().cast(),
            )
        };
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
}

impl Plan {
    fn new(library: &Library, products: CudaProducts, mut sizes: Sizes) -> Result<Self> {
        let algorithm = match products {
            CudaProducts::Invariant => library.invariant(&mut sizes)?,
            CudaProducts::Fastest => library.fastest(&sizes)?,
        };
        Ok(Self { sizes, algorithm })
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
            self.algorithm = library.fastest(&self.sizes)?;
            self.sizes.height = Some(height);
        }
        Ok(())
    }
}

/// cuBLASLt, asked for products of rows with transposed weights.
struct Library {
    operation: Operation,
    handle: Handle,
    /// Bytes that there are.
    workspace: usize,
}

impl Library {
    /// The one algorithm for all heights. Leaves another height in `sizes`.
    fn invariant(&self, sizes: &mut Sizes) -> Result<sys::cublasLtMatmulAlgo_t> {
        sizes.set_height(REFERENCE_HEIGHT)?;
        let in_one_piece = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_NONE;
        let proposed = self.proposals(sizes, &Preference::new(self.workspace, in_one_piece)?)?;
        let mut candidates = Vec::with_capacity(proposed.len());
        for algorithm in &proposed {
            candidates.push(Candidate {
                pieces: configured(algorithm, Attribute::CUBLASLT_ALGO_CONFIG_SPLITK_NUM)?,
                reduction: configured(algorithm, Attribute::CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME)?,
                workspaces: [None; HEIGHTS.len()],
            });
        }
        for (place, height) in HEIGHTS.into_iter().enumerate() {
            sizes.set_height(height)?;
            for (candidate, algorithm) in candidates.iter_mut().zip(&proposed) {
                let needed = self.workspace_needed(sizes, algorithm);
                candidate.workspaces[place] = needed.filter(|&bytes| bytes <= self.workspace);
            }
        }
        let Sizes { outer, inner, .. } = sizes;
        let chosen = algorithms::choose(&candidates).map_err(|why| {
            Error::Msg(format!(
                "no algorithm multiplies any number of rows by weights of {outer} x {inner}: {why}; {REMEDY}"
            ))
        })?;
        // For whoever compares two machines. Not all algorithms have all of these.
        let shown = |attribute| configured(&proposed[chosen], attribute).map_or(-1, i64::from);
        info!(
            outer,
            inner,
            chosen,
            of = candidates.len(),
            id = shown(Attribute::CUBLASLT_ALGO_CONFIG_ID),
            tile = shown(Attribute::CUBLASLT_ALGO_CONFIG_TILE_ID),
            stages = shown(Attribute::CUBLASLT_ALGO_CONFIG_STAGES_ID),
            option = shown(Attribute::CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION),
            cluster = shown(Attribute::CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID),
            workspace = candidates[chosen].workspaces.iter().flatten().max(),
            "an algorithm for weights"
        );
        Ok(proposed[chosen])
    }

    /// The one that cuBLASLt takes for the fastest at this height.
    fn fastest(&self, sizes: &Sizes) -> Result<sys::cublasLtMatmulAlgo_t> {
        let any = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_MASK;
        let proposed = self.proposals(sizes, &Preference::new(self.workspace, any)?)?;
        match proposed.first() {
            Some(first) => Ok(*first),
            None => bail!("cuBLASLt has no algorithm for weights of {} x {}", sizes.outer, sizes.inner),
        }
    }

    /// What cuBLASLt proposes for these sizes, fastest first.
    #[allow(unsafe_code, reason = "cuBLASLt fills an array")]
    fn proposals(&self, sizes: &Sizes, preference: &Preference) -> Result<Vec<sys::cublasLtMatmulAlgo_t>> {
        let (mut found, mut results) = (0, [no_result(); CANDIDATES]);
        // SAFETY: all descriptors are alive, and the array has room for as many results as it is said to.
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle.0,
                self.operation.0,
                sizes.weights.0,
                sizes.rows.0,
                sizes.output.0,
                sizes.output.0,
                preference.0,
                CANDIDATES as i32,
                results.as_mut_ptr(),
                &mut found,
            )
        };
        match status {
            // That there is none is for the caller to tell.
            sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED => return Ok(Vec::new()),
            status => status.result().map_err(Error::wrap)?,
        }
        let found = usize::try_from(found).unwrap_or(0).min(CANDIDATES);
        Ok(results[..found].iter().filter(|result| result.state.result().is_ok()).map(|result| result.algo).collect())
    }

    /// Bytes of workspace that an algorithm needs for these sizes; none if it does not take them.
    #[allow(unsafe_code, reason = "cuBLASLt fills a structure")]
    fn workspace_needed(&self, sizes: &Sizes, algorithm: &sys::cublasLtMatmulAlgo_t) -> Option<usize> {
        let mut found = no_result();
        // SAFETY: all descriptors are alive, and so is the structure.
        let status = unsafe {
            sys::cublasLtMatmulAlgoCheck(
                self.handle.0,
                self.operation.0,
                sizes.weights.0,
                sizes.rows.0,
                sizes.output.0,
                sizes.output.0,
                from_ref(algorithm),
                &mut found,
            )
        };
        status.result().is_ok().then_some(found.workspaceSize)
    }
}

/// A number out of an algorithm's configuration.
#[allow(unsafe_code, reason = "cuBLASLt fills a number")]
fn configured(algorithm: &sys::cublasLtMatmulAlgo_t, attribute: Attribute) -> Result<u32> {
    let (mut value, mut written) = (0u32, 0);
    // SAFETY: there is room for as many bytes as it is said to be.
    let status = unsafe {
        sys::cublasLtMatmulAlgoConfigGetAttribute(
            from_ref(algorithm),
            attribute,
            from_mut(&mut value).cast(),
            size_of_val(&value),
            &mut written,
        )
    };
    status.result().map_err(Error::wrap)?;
    Ok(value)
}

/// A result to be filled.
fn no_result() -> sys::cublasLtMatmulHeuristicResult_t {
    sys::cublasLtMatmulHeuristicResult_t {
        algo: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
        workspaceSize: 0,
        state: sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED,
        wavesCount: 0.0,
        reserved: [0; 4],
    }
}

/// What of a product depends on its sizes.
struct Sizes {
    outer: usize,
    inner: usize,
    /// None when what lies in the descriptors is not to be relied on.
    height: Option<usize>,
    weights: Matrix,
    rows: Matrix,
    output: Matrix,
}

impl Sizes {
    /// cuBLASLt counts by columns, and what lies row by row is its own transpose there: the transpose of the output, outer
    /// by height, is the weights (transposed back) times the transpose of the rows.
    fn new(outer: usize, inner: usize, height: usize) -> Result<Self> {
        let (weights, rows, output) =
            (Matrix::new(inner, outer)?, Matrix::new(inner, height)?, Matrix::new(outer, height)?);
        Ok(Self { outer, inner, height: Some(height), weights, rows, output })
    }

    fn set_height(&mut self, height: usize) -> Result<()> {
        self.height = None;
        self.rows.set_columns(height)?;
        self.output.set_columns(height)?;
        self.height = Some(height);
        Ok(())
    }
}

/// How a bf16 matrix lies, column by column without gaps.
struct Matrix(sys::cublasLtMatrixLayout_t);

impl Matrix {
    fn new(rows: usize, columns: usize) -> Result<Self> {
        let bf16 = sys::cudaDataType_t::CUDA_R_16BF;
        result::create_matrix_layout(bf16, rows as u64, columns as u64, rows as i64).map(Self).map_err(Error::wrap)
    }

    #[allow(unsafe_code, reason = "cuBLASLt reads a number")]
    fn set_columns(&mut self, columns: usize) -> Result<()> {
        let (attribute, columns) = (sys::cublasLtMatrixLayoutAttribute_t::CUBLASLT_MATRIX_LAYOUT_COLS, columns as u64);
        // SAFETY: the layout is alive, and its columns are a u64.
        unsafe {
            result::set_matrix_layout_attribute(self.0, attribute, from_ref(&columns).cast(), size_of_val(&columns))
        }
        .map_err(Error::wrap)
    }
}

impl Drop for Matrix {
    #[allow(unsafe_code, reason = "it is cuBLASLt's memory")]
    fn drop(&mut self) {
        // SAFETY: nothing else knows of it.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// The product itself: the first operand transposed, sums in f32.
struct Operation(sys::cublasLtMatmulDesc_t);

impl Operation {
    #[allow(unsafe_code, reason = "cuBLASLt reads a number")]
    fn new() -> Result<Self> {
        let (sums, factors) = (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType_t::CUDA_R_32F);
        let operation = Self(result::create_matmul_desc(sums, factors).map_err(Error::wrap)?);
        let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
        let transposed = 1i32;
        // SAFETY: the descriptor is alive, and transposition is an i32.
        unsafe {
            result::set_matmul_desc_attribute(
                operation.0,
                attribute,
                from_ref(&transposed).cast(),
                size_of_val(&transposed),
            )
        }
        .map_err(Error::wrap)?;
        Ok(operation)
    }
}

impl Drop for Operation {
    #[allow(unsafe_code, reason = "it is cuBLASLt's memory")]
    fn drop(&mut self) {
        // SAFETY: nothing else knows of it.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// What an algorithm may use.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    /// `workspace` in bytes; `reduction`, the ways that are allowed to add up pieces of a sum.
    #[allow(unsafe_code, reason = "cuBLASLt reads numbers")]
    fn new(workspace: usize, reduction: sys::cublasLtReductionScheme_t) -> Result<Self> {
        use sys::cublasLtMatmulPreferenceAttributes_t::{
            CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        };
        let preference = Self(result::create_matmul_pref().map_err(Error::wrap)?);
        let (bytes, mask) = (workspace as u64, reduction as u32);
        let bytes = (CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, from_ref(&bytes).cast(), size_of_val(&bytes));
        let mask = (CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, from_ref(&mask).cast(), size_of_val(&mask));
        for (attribute, value, size) in [bytes, mask] {
            // SAFETY: the descriptor is alive; bytes are a u64, and the mask is a u32.
            unsafe { result::set_matmul_pref_attribute(preference.0, attribute, value, size) }.map_err(Error::wrap)?;
        }
        Ok(preference)
    }
}

impl Drop for Preference {
    #[allow(unsafe_code, reason = "it is cuBLASLt's memory")]
    fn drop(&mut self) {
        // SAFETY: nothing else knows of it.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

/// The library, ready for the current GPU.
struct Handle(sys::cublasLtHandle_t);

impl Handle {
    fn new() -> Result<Self> {
        result::create_handle().map(Self).map_err(Error::wrap)
    }
}

impl Drop for Handle {
    #[allow(unsafe_code, reason = "it is cuBLASLt's memory")]
    fn drop(&mut self) {
        // SAFETY: nothing else knows of it.
        let _ = unsafe { result::destroy_handle(self.0) };
    }
}
