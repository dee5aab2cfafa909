//! Attention on a small case against plain sums, at the place where a model is to compute.

use candle_core::{DType, Device, Result, Tensor, bail};

use super::attention::attend;
use super::pick::pick;
use super::{Forward, Marks};
use crate::engine::config::Config;
use crate::engine::packing::{Packed, Sharing};
use crate::engine::trial;

/// Tokens that trial texts are cut to: two blocks of queries and some of keys, and little to add up.
const TOKENS_MAX: usize = 150;

/// One-token texts beside a longer one: as many as have attention cut in two on a GPU.
const SHORT_TEXTS: usize = 2100;

/// What rounding may do to a value, as a part of the sum of the magnitudes that it is made of: scores and weights are
/// rounded to bf16 where values are. Another key more or less is far more at a text's beginning.
const ALLOWED: (f64, f64) = (1.0 / 64.0, 1e-4);

impl Forward {
    /// Computes attention over a few texts, some of which share a beginning, and over a long one among many short ones.
    ///
    /// # Errors
    /// A value is not what plain sums give.
    pub(super) fn prove_attention(&self, config: &Config) -> Result<()> {
        let texts = trial::texts(config.vocab_size, config.tokens_max().min(TOKENS_MAX));
        let shared = Packed::new(&texts.iter().map(Vec::as_slice).collect::<Vec<_>>());
        self.prove_attention_to(&shared, config)?;
        let longest = texts.iter().max_by_key(|text| text.len()).map_or(&[][..], Vec::as_slice);
        let uneven: Vec<&[u32]> = std::iter::repeat_n(&longest[..1], SHORT_TEXTS).chain([longest]).collect();
        self.prove_attention_to(&Packed::with(&uneven, Sharing::Never), config)
    }

    /// For all rows and for the pooled ones.
    fn prove_attention_to(&self, packed: &Packed, config: &Config) -> Result<()> {
        let (heads, kv_heads, dim) = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
        let (rows, all_heads) = (packed.ids.len(), heads + 2 * kv_heads);
        let mut batch = self.place.batch()?;
        let layout = self.lay_out(packed, &mut batch, Marks::none())?;
        // Queries four times as large as keys and values: scores then differ as a model's do.
        let scale_of = |head: usize| if head < heads { 4.0 } else { 1.0 };
        let values: Vec<f32> = trial::values(2)
            .take(rows * all_heads * dim)
            .enumerate()
            .map(|(place, value)| scale_of(place / dim % all_heads) * value)
            .collect();
        let rounded = Tensor::from_vec(values, (rows, all_heads, dim), &Device::Cpu)?.to_dtype(self.place.dtype())?;
        let plain = Plain { values: floats(&rounded)?, heads, kv_heads, dim };
        let qkv = rounded.to_device(self.place.device())?;
        let both = qkv.narrow(1, heads, 2 * kv_heads)?;
        let both = match &layout.rows.key_rows {
            Some(key_rows) => pick(&both, key_rows)?,
            None => both,
        };
        let (q, k, v) = (qkv.narrow(1, 0, heads)?, both.narrow(1, 0, kv_heads)?, both.narrow(1, kv_heads, kv_heads)?);
        let found = attend(&q, &k, &v, &layout.rows.reach)?;
        let pooled = attend(&pick(&q, &layout.pooled.index)?, &k, &v, &layout.pooled.reach)?;
        let (found, pooled) = (floats(&found)?, floats(&pooled)?);
        let allowed = if self.place.dtype() == DType::F32 { ALLOWED.1 } else { ALLOWED.0 };
        let width = heads * dim;
        for span in &packed.spans {
            let keys: Vec<usize> = (0..span.keys()).map(|position| span.row(position)).collect();
            for row in span.own.clone() {
                let seen = &keys[..=span.shared.len() + row - span.own.start];
                plain.compare(row, seen, &found[row * width..][..width], allowed)?;
            }
        }
        // Pooled rows lie in the order of the spans.
        let mut ends: Vec<usize> = packed.pooled.clone();
        ends.sort_unstable();
        for (place, span) in ends.into_iter().map(|span| &packed.spans[span]).enumerate() {
            let keys: Vec<usize> = (0..span.keys()).map(|position| span.row(position)).collect();
            plain.compare(span.own.end - 1, &keys, &pooled[place * width..][..width], allowed)?;
        }
        Ok(())
    }
}

/// `[rows, heads + 2 * kv_heads, dim]`, as the place has them.
struct Plain {
    values: Vec<f32>,
    heads: usize,
    kv_heads: usize,
    dim: usize,
}

impl Plain {
    fn head(&self, row: usize, head: usize) -> &[f32] {
        let start = (row * (self.heads + 2 * self.kv_heads) + head) * self.dim;
        &self.values[start..start + self.dim]
    }

    /// Compares a row's attention, `[heads * dim]`, for the first and the last head of each group.
    fn compare(&self, row: usize, seen: &[usize], found: &[f32], allowed: f64) -> Result<()> {
        let group = self.heads / self.kv_heads;
        for head in (0..self.heads).filter(|head| head % group == 0 || head % group == group - 1) {
            let key_head = self.heads + head / group;
            let dot = |key: usize| -> f64 {
                let pairs = self.head(row, head).iter().zip(self.head(key, key_head));
                pairs.map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>() / (self.dim as f64).sqrt()
            };
            let scores: Vec<f64> = seen.iter().map(|&key| dot(key)).collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            for place in 0..self.dim {
                let (mut expected, mut magnitude) = (0.0, 0.0);
                for (&key, weight) in seen.iter().zip(&weights) {
                    let value = f64::from(self.head(key, key_head + self.kv_heads)[place]) * weight / total;
                    expected += value;
                    magnitude += value.abs();
                }
                let found = f64::from(found[head * self.dim + place]);
                let difference = (found - expected).abs();
                if difference.is_nan() || difference > allowed * magnitude {
                    bail!(
                        "attention of head {head} to {} keys gives {found} where plain sums give {expected}",
                        seen.len()
                    );
                }
            }
        }
        Ok(())
    }
}

fn floats(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::place::Place;
    use crate::engine::synthetic::{self, Shape};
    use crate::engine::weights::Weights;

    #[test]
    fn attention_is_what_plain_sums_give() {
        let guard = tempfile::tempdir().expect("a folder");
        let dir = guard.path().join("model");
        synthetic::write(&dir, &Shape::tiny(), 1).expect("a model");
        let config = Config::load(&dir.join("config.json")).expect("a configuration");
        let files = Weights::file_names(&dir).expect("weights");
        let weights = Weights::open(&dir, &files).expect("weights");
        let forward = Forward::load(&weights, &config, Place::Cpu).expect("a pass");
        forward.prove_attention(&config).expect("attention");
    }

    #[test]
    fn the_uneven_texts_are_cut() {
        let (long, short) = (vec![1; TOKENS_MAX], [1]);
        let texts: Vec<&[u32]> = std::iter::repeat_n(&short[..], SHORT_TEXTS).chain([long.as_slice()]).collect();
        assert_eq!(Packed::with(&texts, Sharing::Never).long_spans(), Some(1));
    }

    #[test]
    fn a_key_too_many_is_found() {
        // One head, a query row of which the second key is the better.
        let rows = [[1.0, 0.0, /* key */ 0.5, 0.0, /* value */ 1.0, 2.0], [0.0, 1.0, 1.0, 0.0, -1.0, 3.0]];
        let plain = Plain { values: rows.concat(), heads: 1, kv_heads: 1, dim: 2 };
        assert!(plain.compare(0, &[0], &[1.0, 2.0], ALLOWED.1).is_ok());
        let error = plain.compare(0, &[0, 1], &[1.0, 2.0], ALLOWED.0).expect_err("it attends to two keys");
        assert!(error.to_string().contains("2 keys"), "{error}");
        assert!(plain.compare(0, &[0], &[f32::NAN, 2.0], ALLOWED.0).is_err());
    }
}
