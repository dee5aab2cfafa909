//! The forward pass on CPUs, in f32 or with bf16 products, by microkernels over weights that are packed once.
//!
//! A text's row has the same bits in every batch: what is done to a row is one sequence of operations, whichever rows lie
//! beside it, and no thread takes a part of a sum.

#[cfg(target_arch = "x86_64")]
mod amx_bf16;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_bf16;
mod layer;
mod math;
mod multiply;
mod panels;
mod path;
mod portable;
mod rows;
mod threads;

use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};

use self::layer::{Layer, Places, Stream};
use self::path::{F32, Path};
use self::portable::Portable;
use super::compute::ComputePath;
use super::config::Config;
use super::packing::Packed;
use super::rope::Rope;
use super::weights::{EMBEDDINGS, Weights};
use super::{EngineError, LoadError};

/// A model in memory, ready for batches.
pub(super) trait Pass: Send {
    /// One row of `hidden` values a text, after the final norm.
    fn forward(&self, packed: &Packed) -> Result<Vec<Vec<f32>>, EngineError>;
}

/// Why this CPU can't take a path; `None` where it can.
pub(super) fn lacks(path: ComputePath) -> Option<&'static str> {
    match path {
        #[cfg(target_arch = "x86_64")]
        ComputePath::AmxBf16 => amx_bf16::AmxBf16::detect().err(),
        #[cfg(target_arch = "x86_64")]
        ComputePath::Avx512Bf16 => avx512_bf16::Avx512Bf16::detect().err(),
        #[cfg(target_arch = "x86_64")]
        ComputePath::Avx512F32 => F32::<avx512::Avx512>::detect().err(),
        #[cfg(target_arch = "x86_64")]
        ComputePath::Avx2F32 => F32::<avx2::Avx2>::detect().err(),
        #[cfg(not(target_arch = "x86_64"))]
        ComputePath::AmxBf16 | ComputePath::Avx512Bf16 | ComputePath::Avx512F32 | ComputePath::Avx2F32 => {
            Some("this CPU is no x86-64")
        }
        ComputePath::PortableF32 | ComputePath::CandleF32 => None,
        ComputePath::CudaBf16
        | ComputePath::CudaBf16Fastest
        | ComputePath::HopperBf16
        | ComputePath::HopperBf16Fastest
        | ComputePath::HopperFp8 => Some("this is a GPU's"),
    }
}

/// Whether Intel made this CPU.
pub(super) fn is_intel() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        let maker = std::arch::x86_64::__cpuid(0);
        [maker.ebx, maker.edx, maker.ecx].map(u32::to_le_bytes).as_flattened() == b"GenuineIntel"
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Loads a model for a path that this CPU does not lack.
///
/// # Errors
/// A tensor does not fit the configuration, or there is no memory for it.
pub(super) fn load(path: ComputePath, weights: &Weights, config: &Config) -> Result<Box<dyn Pass>, LoadError> {
    match path {
        #[cfg(target_arch = "x86_64")]
        ComputePath::AmxBf16 => load_as::<amx_bf16::AmxBf16>(path, weights, config),
        #[cfg(target_arch = "x86_64")]
        ComputePath::Avx512Bf16 => load_as::<avx512_bf16::Avx512Bf16>(path, weights, config),
        #[cfg(target_arch = "x86_64")]
        ComputePath::Avx512F32 => load_as::<F32<avx512::Avx512>>(path, weights, config),
        #[cfg(target_arch = "x86_64")]
        ComputePath::Avx2F32 => load_as::<F32<avx2::Avx2>>(path, weights, config),
        _ => load_as::<F32<Portable>>(path, weights, config),
    }
}

fn load_as<P: Path>(path: ComputePath, weights: &Weights, config: &Config) -> Result<Box<dyn Pass>, LoadError> {
    let token = P::detect().map_err(|reason| LoadError::NoPath { path, reason: reason.to_owned() })?;
    Ok(Box::new(Forward::load(token, weights, config)?))
}

/// A model's weights, packed for a path.
struct Forward<P: Path> {
    path: P,
    /// `[vocab, hidden]`, in the type it has on disk.
    embeddings: Tensor,
    layers: Vec<Layer<P>>,
    final_norm: Vec<f32>,
    eps: f32,
    rope: Rope,
    work: Mutex<Work<P>>,
}

/// Buffers of the batch that is being computed.
struct Work<P: Path> {
    places: Places<P>,
    stream: Stream<P>,
}

/// How attention is cut into heads.
#[derive(Debug, Clone, Copy)]
struct Heads {
    query: usize,
    kv: usize,
    dim: usize,
}

impl Heads {
    fn of(config: &Config) -> Self {
        Self { query: config.num_attention_heads, kv: config.num_key_value_heads, dim: config.head_dim }
    }

    /// Query heads that share a key head.
    fn group(self) -> usize {
        self.query / self.kv
    }
}

impl<P: Path> Forward<P> {
    /// Packs the weights, one matrix after the other out of the mapped files: there are never two copies of them.
    fn load(path: P, weights: &Weights, config: &Config) -> Result<Self, LoadError> {
        let widths = [("hidden_size", config.hidden_size), ("intermediate_size", config.intermediate_size)];
        if let Some((field, width)) = widths.into_iter().find(|(_, width)| !width.is_multiple_of(P::LAYOUT.group)) {
            let expected = "must be even for bf16 on a CPU; --dtype f32 takes any";
            return Err(LoadError::Unsupported { field, value: width.to_string(), expected });
        }
        Ok(Self {
            path,
            embeddings: weights.stored(EMBEDDINGS, &[config.vocab_size, config.hidden_size])?,
            layers: (0..config.num_hidden_layers)
                .map(|number| Layer::load(path, weights, config, number))
                .collect::<Result<_, _>>()?,
            final_norm: weights.vector("norm.weight", config.hidden_size)?,
            eps: config.rms_norm_eps as f32,
            rope: Rope::new(config),
            work: Mutex::new(Work { places: Places::new(config, rayon::current_num_threads()), stream: Stream::new() }),
        })
    }

    fn run(&self, packed: &Packed, work: &mut Work<P>) {
        let Some((last, layers)) = self.layers.split_last() else { return };
        let Work { places, stream } = work;
        for layer in layers {
            layer.forward(places, stream, &packed.spans, &self.rope, &packed.positions);
        }
        last.forward_pooled(places, stream, &packed.spans, &packed.pooled, &self.rope, &packed.positions);
        let (path, weight) = (self.path, &self.final_norm);
        path.enter(rows::NormInPlace { path, rows: &mut stream.hidden, weight, eps: self.eps });
    }
}

impl<P: Path> Pass for Forward<P> {
    fn forward(&self, packed: &Packed) -> Result<Vec<Vec<f32>>, EngineError> {
        let ids = Tensor::new(packed.ids.as_slice(), &Device::Cpu)?;
        let hidden = self.embeddings.index_select(&ids, 0)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        // A panic leaves numbers that the next batch overwrites.
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        work.stream.hidden = hidden;
        self.run(packed, &mut work);
        Ok(work.stream.hidden.chunks_exact(self.final_norm.len()).map(<[f32]>::to_vec).collect())
    }
}
