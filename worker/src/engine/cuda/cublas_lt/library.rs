//! What cuBLASLt is asked: which algorithms there are for a product, and what each is.

use std::ffi::c_void;
use std::ptr::{from_mut, from_ref};

use candle_core::cuda_backend::cudarc::cublaslt::result::{self, CublasError};
use candle_core::cuda_backend::cudarc::cublaslt::sys;
use candle_core::cuda_backend::cudarc::driver::CudaStream;
use candle_core::cuda_backend::cudarc::driver::sys::CUdeviceptr;
use candle_core::{Error, Result, bail};
use sys::cublasLtMatmulAlgoConfigAttributes_t as Attribute;
use tracing::info;

use super::REMEDY;
use super::descriptors::{Handle, Operation, Preference, Sizes};
use super::tried::Tried;
use crate::engine::algorithms::{self, BANDS, Candidate, HEIGHTS, REFERENCE_HEIGHT, Trial};
use crate::engine::products::Factors;

/// Algorithms that cuBLASLt is asked for, fastest first.
const CANDIDATES: usize = 32;

/// Of those that may be used at a height, how many are tried.
const TRIED_MAX: usize = 12;

/// cuBLASLt, asked for products of rows with transposed weights.
pub(super) struct Library {
    pub(super) operation: Operation,
    pub(super) handle: Handle,
    /// Bytes that there are.
    pub(super) workspace: usize,
}

/// Where a product's parts lie on the GPU.
pub(super) struct Buffers {
    pub(super) weights: CUdeviceptr,
    pub(super) rows: CUdeviceptr,
    pub(super) output: CUdeviceptr,
    pub(super) workspace: CUdeviceptr,
}

impl Library {
    /// For products of factors of this type.
    pub(super) fn new(factors: Factors, workspace: usize) -> Result<Self> {
        Ok(Self { operation: Operation::of(factors)?, handle: Handle::new()?, workspace })
    }

    /// Algorithms for each of [`BANDS`], which give the same bits.
    pub(super) fn invariant(&self, mut tried: Tried<'_>) -> Result<[sys::cublasLtMatmulAlgo_t; BANDS.len()]> {
        let (outer, inner) = (tried.sizes.outer, tried.sizes.inner);
        let (_, full) = BANDS[BANDS.len() - 1];
        let reference = self.eligible(&mut tried.sizes, REFERENCE_HEIGHT)?[0];
        let digest = tried.run(full, &reference)?.digest;
        let mut chosen = [reference; BANDS.len()];
        for (place, (most, height)) in BANDS.into_iter().enumerate() {
            let mut proposed = vec![reference];
            proposed.extend(self.eligible(&mut tried.sizes, height)?.into_iter().take(TRIED_MAX));
            let trials: Vec<Option<Trial>> =
                proposed.iter().map(|algorithm| tried.run(height, algorithm).ok()).collect();
            // The reference is among them: if it has other bits at this height, there are none alike.
            let fastest = algorithms::fastest_alike(&trials, digest).ok_or_else(|| {
                Error::Msg(format!(
                    "no algorithm gives {height} rows the same bits as {full} rows, with weights of {outer} x {inner}; {REMEDY}"
                ))
            })?;
            chosen[place] = proposed[fastest];
            // For whoever compares two machines. Not all algorithms have all of these.
            let shown = |attribute| configured(&proposed[fastest], attribute).map_or(-1, i64::from);
            let seconds = |place: usize| trials[place].map(|trial| trial.seconds * 1e6);
            info!(
                outer,
                inner,
                rows_up_to = most,
                alike = trials.iter().flatten().filter(|trial| trial.digest == digest).count(),
                of = proposed.len(),
                microseconds = seconds(fastest),
                reference_microseconds = seconds(0),
                id = shown(Attribute::CUBLASLT_ALGO_CONFIG_ID),
                tile = shown(Attribute::CUBLASLT_ALGO_CONFIG_TILE_ID),
                stages = shown(Attribute::CUBLASLT_ALGO_CONFIG_STAGES_ID),
                option = shown(Attribute::CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION),
                cluster = shown(Attribute::CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID),
                "an algorithm for weights"
            );
        }
        Ok(chosen)
    }

    /// Queues a product: the output becomes `keep` times itself and the rows by the weights.
    ///
    /// # Safety
    /// The buffers lie without gaps and have the lengths that `sizes` call for, and the workspace the one that this has;
    /// they stay until `stream` is done with them.
    #[allow(unsafe_code, reason = "cuBLASLt is given sizes that it can't check")]
    pub(super) unsafe fn multiply(
        &self,
        sizes: &Sizes,
        algorithm: &sys::cublasLtMatmulAlgo_t,
        &Buffers { weights, rows, output, workspace }: &Buffers,
        keep: f32,
        stream: &CudaStream,
    ) -> std::result::Result<(), CublasError> {
        let add = 1.0f32;
        // SAFETY: see above. Descriptors live as long as what they belong to, and cuBLASLt reads them, the algorithm and the
        // two factors before it returns.
        unsafe {
            result::matmul(
                self.handle.0,
                self.operation.0,
                from_ref(&add).cast(),
                from_ref(&keep).cast(),
                weights as *const c_void,
                sizes.weights.0,
                rows as *const c_void,
                sizes.rows.0,
                output as *const c_void,
                sizes.output.0,
                output as *mut c_void,
                sizes.output.0,
                from_ref(algorithm),
                workspace as *mut c_void,
                self.workspace,
                stream.cu_stream().cast(),
            )
        }
    }

    /// What may be used of what cuBLASLt proposes for a height, best first. Leaves another height in `sizes`.
    fn eligible(&self, sizes: &mut Sizes, height: usize) -> Result<Vec<sys::cublasLtMatmulAlgo_t>> {
        sizes.set_height(height)?;
        let in_one_piece = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_NONE;
        let proposed = self.proposals(sizes, &Preference::new(self.workspace, in_one_piece)?)?;
        let candidates = self.candidates(sizes, &proposed)?;
        let Sizes { outer, inner, .. } = sizes;
        let eligible = algorithms::eligible(&candidates).map_err(|why| {
            Error::Msg(format!(
                "no algorithm multiplies any number of rows by weights of {outer} x {inner}: {why}; {REMEDY}"
            ))
        })?;
        Ok(eligible.into_iter().map(|place| proposed[place]).collect())
    }

    /// What algorithms are, and which heights they take. Leaves another height in `sizes`.
    pub(super) fn candidates(
        &self,
        sizes: &mut Sizes,
        proposed: &[sys::cublasLtMatmulAlgo_t],
    ) -> Result<Vec<Candidate>> {
        let mut candidates = Vec::with_capacity(proposed.len());
        for algorithm in proposed {
            candidates.push(Candidate {
                pieces: configured(algorithm, Attribute::CUBLASLT_ALGO_CONFIG_SPLITK_NUM)?,
                reduction: configured(algorithm, Attribute::CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME)?,
                workspaces: [None; HEIGHTS.len()],
            });
        }
        for (place, height) in HEIGHTS.into_iter().enumerate() {
            sizes.set_height(height)?;
            for (candidate, algorithm) in candidates.iter_mut().zip(proposed) {
                let needed = self.workspace_needed(sizes, algorithm);
                candidate.workspaces[place] = needed.filter(|&bytes| bytes <= self.workspace);
            }
        }
        Ok(candidates)
    }

    /// The one that cuBLASLt takes for the fastest at this height.
    pub(super) fn fastest(&self, sizes: &Sizes) -> Result<sys::cublasLtMatmulAlgo_t> {
        let any = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_MASK;
        let proposed = self.proposals(sizes, &Preference::new(self.workspace, any)?)?;
        match proposed.first() {
            Some(first) => Ok(*first),
            None => bail!("cuBLASLt has no algorithm for weights of {} x {}", sizes.outer, sizes.inner),
        }
    }

    /// What cuBLASLt proposes for these sizes, fastest first.
    #[allow(unsafe_code, reason = "cuBLASLt fills an array")]
    pub(super) fn proposals(&self, sizes: &Sizes, preference: &Preference) -> Result<Vec<sys::cublasLtMatmulAlgo_t>> {
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
    pub(super) fn workspace_needed(&self, sizes: &Sizes, algorithm: &sys::cublasLtMatmulAlgo_t) -> Option<usize> {
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
pub(super) fn configured(algorithm: &sys::cublasLtMatmulAlgo_t, attribute: Attribute) -> Result<u32> {
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
