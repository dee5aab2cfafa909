//! What each of cuBLASLt's algorithms does at one shape of weights and one height: for measuring, never in a pass.

use std::sync::PoisonError;

use candle_core::cuda_backend::cudarc::cublaslt::sys;
use candle_core::{Error, Result};
use sys::cublasLtMatmulAlgoConfigAttributes_t as Config;

use super::CublasLt;
use super::descriptors::Preference;
use super::library::{Library, configured};
use super::tried::Tried;
use crate::engine::algorithms::Trial;
use crate::engine::products::{Algorithm, Factors, ProductFigures, Weights};

impl CublasLt {
    /// Times the algorithms that cuBLASLt proposes for `height` rows of random values, and the one in use where it is
    /// another. Fastest first.
    pub(in crate::engine) fn sweep(&self, weights: Weights, factors: Factors, height: usize) -> Result<ProductFigures> {
        self.stream.context().bind_to_thread().map_err(Error::wrap)?;
        let Weights { name, outer, inner } = weights;
        let library = Library::new(factors, self.workspace.len())?;
        let mut tried = Tried::new(&self.stream, &self.workspace, &library, factors, (outer, inner, height))?;
        let any = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_MASK;
        let mut proposed = library.proposals(&tried.sizes, &Preference::new(library.workspace, any)?)?;
        let used = match factors {
            Factors::Bf16 | Factors::Fp8Rows => Some(self.in_use(factors, (outer, inner), height)?),
            Factors::Fp8 => None,
        };
        let is_used = |algorithm: &sys::cublasLtMatmulAlgo_t| used.is_some_and(|used| used.data == algorithm.data);
        if let Some(used) = used
            && !proposed.iter().any(is_used)
        {
            proposed.push(used);
        }
        let candidates = library.candidates(&mut tried.sizes, &proposed)?;
        let mut algorithms = Vec::new();
        for (rank, (algorithm, candidate)) in proposed.iter().zip(&candidates).enumerate() {
            // One that fails is left out: others are there.
            let Ok(Trial { digest, seconds }) = tried.run(height, algorithm) else { continue };
            let of = |attribute| configured(algorithm, attribute).map_or(-1, i64::from);
            algorithms.push(Algorithm {
                milliseconds: seconds * 1e3,
                tflops: 2.0 * (outer * inner * height) as f64 / seconds / 1e12,
                rank,
                id: of(Config::CUBLASLT_ALGO_CONFIG_ID),
                tile: of(Config::CUBLASLT_ALGO_CONFIG_TILE_ID),
                stages: of(Config::CUBLASLT_ALGO_CONFIG_STAGES_ID),
                option: of(Config::CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION),
                cluster: of(Config::CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID),
                pieces: i64::from(candidate.pieces),
                reduction: i64::from(candidate.reduction),
                workspace: library.workspace_needed(&tried.sizes, algorithm),
                in_one_piece: candidate.sums_in_one_piece(),
                all_heights: candidate.takes_all(),
                used: is_used(algorithm),
                bits: format!("{digest:016x}"),
            });
        }
        algorithms.sort_by(|left, right| left.milliseconds.total_cmp(&right.milliseconds));
        let note = algorithms.is_empty().then(|| format!("of {} algorithms proposed none computes", proposed.len()));
        Ok(ProductFigures { weights: name, outer, inner, height, precision: factors.name(), note, algorithms })
    }

    fn in_use(&self, factors: Factors, shape: (usize, usize), height: usize) -> Result<sys::cublasLtMatmulAlgo_t> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.plan(&mut state, factors, shape, height).map(|(_, plan)| plan.algorithm())
    }
}
