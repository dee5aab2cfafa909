//! A product of random values, which algorithms are tried on.

use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::cublaslt::sys;
use candle_core::cuda_backend::cudarc::driver::sys::CUevent_flags;
use candle_core::cuda_backend::cudarc::driver::{
    CudaEvent, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr,
};
use candle_core::{Error, Result, bail};
use half::bf16;

use super::descriptors::{BF16, E4M3, Sizes};
use super::library::{Buffers, Library};
use crate::engine::algorithms::Trial;
use crate::engine::products::Factors;
use crate::engine::trial;

/// Timed turns of an algorithm, after one that is not.
const TURNS: usize = 5;

/// Rows of the output that algorithms are told apart by.
const DIGESTED_ROWS: usize = 8;

/// Random values that repeat through a matrix: no power of two, so that rows differ.
const PATTERN: usize = (1 << 20) + 7;

/// A product and all that it needs on the GPU.
pub(super) struct Tried<'a> {
    stream: &'a Arc<CudaStream>,
    workspace: &'a CudaSlice<u8>,
    library: &'a Library,
    pub(super) sizes: Sizes,
    height_max: usize,
    weights: CudaSlice<u8>,
    rows: CudaSlice<u8>,
    output: CudaSlice<bf16>,
    /// Read by pointers that the operation has.
    _scales: Option<[CudaSlice<f32>; 2]>,
}

impl<'a> Tried<'a> {
    /// With up to `height` rows. Values are the same ones for the same sizes; rows are the same at each height.
    pub(super) fn new(
        stream: &'a Arc<CudaStream>,
        workspace: &'a CudaSlice<u8>,
        library: &'a Library,
        factors: Factors,
        (outer, inner, height): (usize, usize, usize),
    ) -> Result<Self> {
        let (values, scales) = match factors {
            Factors::Bf16 => (BF16, None),
            Factors::Fp8 => (E4M3, Some([1, 1])),
            Factors::Fp8Rows => (E4M3, Some([outer, height])),
        };
        let scales = match scales {
            None => None,
            Some([weights, rows]) => {
                let scales = [upload(stream, &vec![0.5f32; weights])?, upload(stream, &vec![0.5f32; rows])?];
                library.operation.scale_by(scales.each_ref().map(|scales| scales.device_ptr(stream).0))?;
                Some(scales)
            }
        };
        Ok(Self {
            stream,
            workspace,
            library,
            sizes: Sizes::new(values, outer, inner, height)?,
            height_max: height,
            weights: random(stream, factors, outer * inner, 1)?,
            rows: random(stream, factors, height * inner, 2)?,
            output: stream.alloc_zeros(height * outer).map_err(Error::wrap)?,
            _scales: scales,
        })
    }

    /// Multiplies so many of the rows.
    pub(super) fn run(&mut self, height: usize, algorithm: &sys::cublasLtMatmulAlgo_t) -> Result<Trial> {
        self.sizes.set_height(height)?;
        // What another algorithm left there must not pass for this one's.
        self.stream.memset_zeros(&mut self.output).map_err(Error::wrap)?;
        self.multiply(algorithm)?;
        let digested = self.output.slice(..DIGESTED_ROWS.min(height) * self.sizes.outer);
        let values = self.stream.clone_dtoh(&digested).map_err(Error::wrap)?;
        self.stream.synchronize().map_err(Error::wrap)?;
        let mut digest = DefaultHasher::new();
        values.iter().for_each(|value| digest.write_u16(value.to_bits()));
        let mut moments = vec![self.now()?];
        for _ in 0..TURNS {
            self.multiply(algorithm)?;
            moments.push(self.now()?);
        }
        let mut took = Vec::new();
        for pair in moments.windows(2) {
            took.push(f64::from(pair[0].elapsed_ms(&pair[1]).map_err(Error::wrap)?) / 1e3);
        }
        took.sort_by(f64::total_cmp);
        Ok(Trial { digest: digest.finish(), seconds: took[took.len() / 2] })
    }

    fn now(&self) -> Result<CudaEvent> {
        self.stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).map_err(Error::wrap)
    }

    #[allow(unsafe_code, reason = "cuBLASLt is given sizes that it can't check")]
    fn multiply(&mut self, algorithm: &sys::cublasLtMatmulAlgo_t) -> Result<()> {
        if self.sizes.height.is_none_or(|height| height > self.height_max) {
            bail!("a product of {:?} rows is tried with {}", self.sizes.height, self.height_max);
        }
        let (weights, _used) = self.weights.device_ptr(self.stream);
        let (rows, _used) = self.rows.device_ptr(self.stream);
        let (workspace, _used) = self.workspace.device_ptr(self.stream);
        let (output, _used) = self.output.device_ptr_mut(self.stream);
        let buffers = Buffers { weights, rows, output, workspace };
        // SAFETY: as in `CublasLt::multiply`; the buffers are made for these sizes, or for more rows. The pass, whose
        // workspace this is, uses the same stream.
        unsafe { self.library.multiply(&self.sizes, algorithm, &buffers, 0.0, self.stream) }.map_err(Error::wrap)
    }
}

/// Random values between -1 and 1 (bf16) or -2 and 2 (e4m3).
fn random(stream: &Arc<CudaStream>, factors: Factors, len: usize, seed: u64) -> Result<CudaSlice<u8>> {
    let pattern: Vec<u8> = match factors {
        Factors::Bf16 => {
            trial::values(seed).take(PATTERN).flat_map(|value| bf16::from_f32(value).to_bits().to_ne_bytes()).collect()
        }
        // The bit that is left out would give large values, and the one that is no number.
        Factors::Fp8 | Factors::Fp8Rows => {
            trial::numbers(seed).take(PATTERN).map(|number| number as u8 & 0xbf).collect()
        }
    };
    let bytes = len * factors.bytes();
    let mut values = Vec::with_capacity(bytes);
    while values.len() < bytes {
        values.extend_from_slice(&pattern[..pattern.len().min(bytes - values.len())]);
    }
    upload(stream, &values)
}

/// Copies values to the GPU, and waits until they are there.
fn upload<T: DeviceRepr>(stream: &Arc<CudaStream>, values: &[T]) -> Result<CudaSlice<T>> {
    let copied = stream.clone_htod(values).map_err(Error::wrap)?;
    stream.synchronize().map_err(Error::wrap)?;
    Ok(copied)
}
