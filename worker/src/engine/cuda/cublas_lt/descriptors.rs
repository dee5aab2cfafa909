//! cuBLASLt's descriptors: what a product is, how its matrices lie, what an algorithm may use.

use std::ptr::from_ref;

use candle_core::cuda_backend::cudarc::cublaslt::result;
use candle_core::cuda_backend::cudarc::cublaslt::sys;
use candle_core::cuda_backend::cudarc::driver::sys::CUdeviceptr;
use candle_core::{Error, Result};
use sys::cublasLtMatmulDescAttributes_t as Attribute;

use crate::engine::products::Factors;

/// The type of activations and weights.
pub(super) const BF16: sys::cudaDataType_t = sys::cudaDataType_t::CUDA_R_16BF;

/// What of a product depends on its sizes.
pub(super) struct Sizes {
    pub(super) outer: usize,
    pub(super) inner: usize,
    /// None when what lies in the descriptors is not to be relied on.
    pub(super) height: Option<usize>,
    pub(super) weights: Matrix,
    pub(super) rows: Matrix,
    pub(super) output: Matrix,
}

impl Sizes {
    /// cuBLASLt counts by columns, and what lies row by row is its own transpose there: the transpose of the output, outer
    /// by height, is the weights (transposed back) times the transpose of the rows.
    ///
    /// `factors` is the type of weights and rows; the output is bf16.
    pub(super) fn new(factors: sys::cudaDataType_t, outer: usize, inner: usize, height: usize) -> Result<Self> {
        let (weights, rows) = (Matrix::new(factors, inner, outer)?, Matrix::new(factors, inner, height)?);
        let output = Matrix::new(BF16, outer, height)?;
        Ok(Self { outer, inner, height: Some(height), weights, rows, output })
    }

    pub(super) fn set_height(&mut self, height: usize) -> Result<()> {
        self.height = None;
        self.rows.set_columns(height)?;
        self.output.set_columns(height)?;
        self.height = Some(height);
        Ok(())
    }
}

/// How a matrix lies, column by column without gaps.
pub(super) struct Matrix(pub(super) sys::cublasLtMatrixLayout_t);

impl Matrix {
    fn new(values: sys::cudaDataType_t, rows: usize, columns: usize) -> Result<Self> {
        result::create_matrix_layout(values, rows as u64, columns as u64, rows as i64).map(Self).map_err(Error::wrap)
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

/// Values of e4m3.
pub(super) const E4M3: sys::cudaDataType_t = sys::cudaDataType_t::CUDA_R_8F_E4M3;

/// The product itself: the first operand transposed, sums in f32.
pub(super) struct Operation(pub(super) sys::cublasLtMatmulDesc_t);

impl Operation {
    fn new() -> Result<Self> {
        let (sums, factors) = (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType_t::CUDA_R_32F);
        let operation = Self(result::create_matmul_desc(sums, factors).map_err(Error::wrap)?);
        operation.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, 1i32)?;
        Ok(operation)
    }

    /// Of factors of this type. For e4m3, scales are yet to be told: see [`Self::scale_by`].
    pub(super) fn of(factors: Factors) -> Result<Self> {
        let operation = Self::new()?;
        if factors != Factors::Bf16 {
            // Sums of fewer bits than f32 for some terms at a time: e4m3 itself is far coarser.
            operation.set(Attribute::CUBLASLT_MATMUL_DESC_FAST_ACCUM, 1i8)?;
        }
        if factors == Factors::Fp8Rows {
            let mode = sys::cublasLtMatmulMatrixScale_t::CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F as i32;
            operation.set(Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_MODE, mode)?;
            operation.set(Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_MODE, mode)?;
        }
        Ok(operation)
    }

    /// Where on the GPU the scales of weights and rows lie, f32.
    pub(super) fn scale_by(&self, [weights, rows]: [CUdeviceptr; 2]) -> Result<()> {
        self.set(Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, weights)?;
        self.set(Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, rows)
    }

    /// `value` must have the type that the attribute is documented with: a mismatch of sizes is an error.
    #[allow(unsafe_code, reason = "cuBLASLt reads a value")]
    fn set<T: Copy>(&self, attribute: Attribute, value: T) -> Result<()> {
        // SAFETY: the descriptor is alive, and as many bytes are read as the value has.
        unsafe { result::set_matmul_desc_attribute(self.0, attribute, from_ref(&value).cast(), size_of::<T>()) }
            .map_err(Error::wrap)
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
pub(super) struct Preference(pub(super) sys::cublasLtMatmulPreference_t);

impl Preference {
    /// `workspace` in bytes; `reduction`, the ways that are allowed to add up pieces of a sum.
    #[allow(unsafe_code, reason = "cuBLASLt reads numbers")]
    pub(super) fn new(workspace: usize, reduction: sys::cublasLtReductionScheme_t) -> Result<Self> {
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
pub(super) struct Handle(pub(super) sys::cublasLtHandle_t);

impl Handle {
    pub(super) fn new() -> Result<Self> {
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
