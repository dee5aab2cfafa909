//! The forward pass on candle's tensors: f32 on any CPU, bf16 on a GPU.

mod attention;
mod exp;
mod gated;
mod heads;
mod layer;
mod linear;
mod load;
mod norm;
mod pick;
#[cfg(any(feature = "cuda", test))]
mod proof;

use candle_core::{DType, Tensor, bail};

#[cfg(feature = "cuda")]
use super::budget;
use super::config::Config;
#[cfg(feature = "cuda")]
use super::cuda;
use super::marks::{Marks, Operations};
use super::packing::Packed;
use super::place::{Batch, Place};
use super::rope::Rope;
#[cfg(feature = "cuda")]
use super::trial::{self, Flaw};
use super::weights::{EMBEDDINGS, Weights};
use super::{EngineError, LoadError, place};
use attention::{Reach, Span};
#[cfg(not(feature = "cuda"))]
use heads::Angles;
#[cfg(feature = "cuda")]
pub(super) use heads::{Angles, NormAndTurn};
use layer::{Layer, Pooled, Rows};
use load::Loader;
use norm::Norm;
use pick::pick;

/// A model's weights, as tensors.
pub(super) struct Forward {
    /// `[vocab, hidden]`; on the CPU in the type it has on disk: only looked up, so widening all of it would buy nothing.
    embeddings: Tensor,
    layers: Vec<Layer>,
    final_norm: Norm,
    /// `[tokens_max, head_dim / 2]`, cosines and sines, f32.
    rope: (Tensor, Tensor),
    place: Place,
    batch_tokens: Option<usize>,
    /// What a row of a batch is predicted to take of a GPU's memory.
    row_bytes: u64,
}

impl Forward {
    pub(super) fn load(weights: &Weights, config: &Config, place: Place) -> Result<Self, LoadError> {
        #[cfg(feature = "cuda")]
        if let Place::Cuda(_) = &place {
            cuda::check(config)?;
        }
        let rope = Rope::new(config);
        let (cos, sin, half) = rope.table();
        let table = |values: &[f32]| Tensor::from_slice(values, (values.len() / half, half), place.device());
        let loader = Loader { weights, place: &place };
        let embeddings = match &place {
            Place::Cpu => weights.stored(EMBEDDINGS, &[config.vocab_size, config.hidden_size])?,
            #[cfg(feature = "cuda")]
            Place::Cuda(_) => loader.tensor(EMBEDDINGS, &[config.vocab_size, config.hidden_size])?,
        };
        let forward = Self {
            embeddings,
            layers: (0..config.num_hidden_layers)
                .map(|number| Layer::load(&loader, config, number))
                .collect::<Result<_, _>>()?,
            final_norm: Norm::new(loader.norm("norm.weight", config.hidden_size)?, config),
            rope: (table(cos)?, table(sin)?),
            place: place.clone(),
            batch_tokens: None,
            row_bytes: 0,
        };
        #[cfg(feature = "cuda")]
        let forward = forward.warmed_up(config)?;
        Ok(forward)
    }

    /// On a GPU, has the pass prove itself: kernels are loaded and products planned at their first use, and what does not
    /// work, or gives other values than it should, shows here and not in the first chunk. What memory is left then is for
    /// batches.
    #[cfg(feature = "cuda")]
    fn warmed_up(mut self, config: &Config) -> Result<Self, LoadError> {
        let Place::Cuda(gpu) = &self.place else { return Ok(self) };
        let fails = |why: String| LoadError::NoCuda(format!("the GPU can't compute: {why}"));
        self.prove_attention(config).map_err(|error| fails(error.to_string()))?;
        let texts = trial::texts(config.vocab_size, config.tokens_max());
        let rows = |texts: &[&[u32]]| self.launch(&Packed::new(texts)).and_then(Launched::rows);
        trial::prove(&texts, gpu.is_invariant(), rows).map_err(|flaw| match flaw {
            Flaw::Fails(error) => fails(error.to_string()),
            Flaw::NotFinite => fails("values are not finite".to_owned()),
            Flaw::Differs(tokens) => LoadError::NotInvariant { tokens },
        })?;
        self.batch_tokens = Some(gpu.batch_tokens(config)?);
        self.row_bytes = budget::bytes_per_token(config) as u64;
        Ok(self)
    }

    /// Packs a batch as it is fastest at this place.
    pub(super) fn pack(&self, texts: &[&[u32]]) -> Packed {
        Packed::with(texts, self.place.sharing())
    }

    pub(super) fn begin_profile(&self) {
        #[cfg(feature = "cuda")]
        if let Place::Cuda(gpu) = &self.place {
            gpu.begin_profile();
        }
    }

    /// Most tokens for a batch, on a GPU.
    pub(super) fn batch_tokens(&self) -> Option<usize> {
        self.batch_tokens
    }

    /// Computes one row of `hidden` values a text, or, on a GPU, queues all that it takes.
    pub(super) fn launch(&self, packed: &Packed) -> Result<Launched, EngineError> {
        self.try_launch(packed, Marks::none()).map(|(launched, _)| launched).map_err(|error| self.place.failure(error))
    }

    /// Computes a batch and gives the time of each of its operations, in order.
    pub(super) fn operations(&self, packed: &Packed) -> Result<Operations, EngineError> {
        self.try_operations(packed).map_err(|error| self.place.failure(error))
    }

    fn try_operations(&self, packed: &Packed) -> candle_core::Result<Operations> {
        let (rows, before) = (packed.ids.len(), self.place.forget_peak_memory()?);
        let (launched, marks) = self.try_launch(packed, Marks::recording(&self.place)?)?;
        launched.rows.get()?;
        let operations = marks.operations()?;
        let peak = self.place.peak_memory()?;
        let memory = peak.map(|peak| (peak.saturating_sub(before), self.row_bytes * rows as u64));
        Ok(Operations { rows, operations, memory })
    }

    fn try_launch(&self, packed: &Packed, marks: Marks) -> candle_core::Result<(Launched, Marks)> {
        let mut batch = self.place.batch()?;
        let layout = self.lay_out(packed, &mut batch, marks)?;
        let marks = &layout.rows.marks;
        marks.moved("layout", &[])?;
        let mut hidden = pick(&self.embeddings, &layout.ids)?.to_dtype(self.place.dtype())?;
        marks.moved("embedding", &[&hidden, &hidden])?;
        if let Some((last, layers)) = self.layers.split_last() {
            for layer in layers {
                hidden = layer.forward(hidden, &layout.rows)?;
            }
            hidden = last.forward_pooled(&hidden, &layout.rows, &layout.pooled)?;
        }
        let output = self.final_norm.of(&hidden)?.to_dtype(DType::F32)?;
        let rows = batch.finish(&output)?;
        marks.moved("finish", &[&output])?;
        Ok((Launched { rows, texts: layout.texts, place: self.place.clone() }, layout.rows.marks))
    }

    /// Where each span's rows lie, and which rows are pooled. Copies it to its place, all at once.
    fn lay_out(&self, packed: &Packed, batch: &mut Batch, marks: Marks) -> candle_core::Result<Layout> {
        let mut key_end = 0;
        let spans: Vec<Span> = packed
            .spans
            .iter()
            .map(|span| {
                key_end += span.keys();
                Span {
                    query_start: span.own.start,
                    query_len: span.own.len(),
                    key_start: key_end - span.keys(),
                    key_len: span.keys(),
                }
            })
            .collect();
        // Pooled rows lie in the order of the spans, as keys do.
        let mut texts: Vec<usize> = (0..packed.pooled.len()).collect();
        texts.sort_unstable_by_key(|&text| packed.pooled[text]);
        let pooled_of = texts.iter().map(|&text| spans[packed.pooled[text]]);
        let last_rows = pooled_of.clone().map(|span| (span.query_start + span.query_len - 1) as u32).collect();
        let pooled_spans: Vec<Span> =
            pooled_of.enumerate().map(|(row, span)| Span { query_start: row, query_len: 1, ..span }).collect();

        let shared = packed.spans.iter().any(|span| !span.shared.is_empty());
        let all_keys = || packed.spans.iter().flat_map(|span| (0..span.keys()).map(|at| span.row(at) as u32)).collect();
        let key_rows = if shared { all_keys() } else { Vec::new() };
        let parts = [packed.ids.clone(), packed.positions.clone(), last_rows, key_rows];
        #[cfg(feature = "cuda")]
        let launches = cuda::Launches::of(packed);
        #[cfg(feature = "cuda")]
        let parts: Vec<Vec<u32>> = parts.into_iter().chain(launches.arrays()).collect();
        let tensors = batch.upload(&parts)?;
        let [ids, positions, last_rows, key_rows, ..] = tensors.as_slice() else { bail!("each part gives a tensor") };

        let angles = Angles { cos: pick(&self.rope.0, positions)?, sin: pick(&self.rope.1, positions)? };
        let pooled_angles = Angles { cos: pick(&angles.cos, last_rows)?, sin: pick(&angles.sin, last_rows)? };
        #[cfg(feature = "cuda")]
        let (lengths, pooled_lengths) = cuda::Lengths::of(packed, &launches, &tensors[4..], self.place.attention())?;
        Ok(Layout {
            ids: ids.clone(),
            texts,
            rows: Rows {
                reach: Reach {
                    spans,
                    #[cfg(feature = "cuda")]
                    lengths,
                },
                key_rows: shared.then(|| key_rows.clone()),
                angles,
                marks,
            },
            pooled: Pooled {
                index: last_rows.clone(),
                reach: Reach {
                    spans: pooled_spans,
                    #[cfg(feature = "cuda")]
                    lengths: pooled_lengths,
                },
                angles: pooled_angles,
            },
        })
    }
}

/// A batch at its place.
struct Layout {
    ids: Tensor,
    rows: Rows,
    pooled: Pooled,
    /// The text that each pooled row belongs to.
    texts: Vec<usize>,
}

/// A batch that is computed, or will be.
pub(super) struct Launched {
    rows: place::Rows,
    texts: Vec<usize>,
    place: Place,
}

impl Launched {
    pub(super) fn is_computed(&self) -> bool {
        self.rows.are_here()
    }

    /// Waits for it: one row of `hidden` values a text, in the order the texts were given.
    pub(super) fn rows(self) -> Result<Vec<Vec<f32>>, EngineError> {
        let rows = self.rows.get().map_err(|error| self.place.failure(error))?;
        let mut ordered = vec![Vec::new(); rows.len()];
        for (text, row) in self.texts.into_iter().zip(rows) {
            ordered[text] = row;
        }
        Ok(ordered)
    }
}
