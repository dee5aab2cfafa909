//! Sizes of a synthetic model, and the tensors and `config.json` that follow from them.

use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::tokenizer_json::{END_ID, VOCAB};

/// Sizes of a model. Fields are named as people speak of them; `config.json` has Qwen3's names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Decoder layers.
    pub layers: usize,
    /// Values of a token's hidden state.
    pub hidden: usize,
    /// Inner width of the MLP.
    pub intermediate: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Values of a head; even. `heads * head_dim` need not be `hidden`.
    pub head_dim: usize,
    /// Rows of the embedding table; 257 or more (256 bytes and the end token).
    pub vocab: usize,
    /// The most tokens a text may have.
    pub tokens_max: usize,
    /// Whether there is no separate output head. (An embedding never uses one; an untied checkpoint still carries it.)
    pub tied: bool,
    /// Weight files; above 1 there is an index.
    pub shards: usize,
    /// Whether tensor names begin with `model.`
    pub model_prefix: bool,
    /// Type of the weights on disk.
    pub stored: Stored,
}

/// Type of the weights on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stored {
    /// 4 bytes.
    F32,
    /// 2 bytes, as Qwen3's checkpoints.
    Bf16,
    /// 2 bytes.
    F16,
}

impl Stored {
    pub(super) fn bytes(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    pub(super) fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::Bf16 => Dtype::BF16,
            Self::F16 => Dtype::F16,
        }
    }
}

/// One tensor of a checkpoint.
pub(super) struct TensorPlan {
    /// With its prefix.
    pub(super) name: String,
    pub(super) dims: Vec<usize>,
    /// Values are `center` plus or minus up to `amplitude`.
    pub(super) center: f32,
    pub(super) amplitude: f32,
}

impl TensorPlan {
    pub(super) fn len(&self) -> usize {
        self.dims.iter().product()
    }
}

impl Shape {
    /// For unit tests: runs in a millisecond.
    pub fn tiny() -> Self {
        Self {
            layers: 2,
            hidden: 64,
            intermediate: 128,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            vocab: VOCAB,
            tokens_max: 4096,
            tied: true,
            shards: 1,
            model_prefix: false,
            stored: Stored::F32,
        }
    }

    /// For a first look on a laptop: 13 MB, thousands of tokens a second on two cores.
    pub fn small() -> Self {
        Self { layers: 4, hidden: 256, intermediate: 768, heads: 4, head_dim: 64, tokens_max: 8192, ..Self::tiny() }
    }

    /// For benchmarks: layers of Qwen3-Embedding-0.6B's shape. A token costs `layers / 28` of what it costs there:
    /// only the embedding table is small, and that is looked up, never multiplied. 31 MB a layer on disk.
    pub fn realistic(layers: usize) -> Self {
        Self {
            layers,
            hidden: 1024,
            intermediate: 3072,
            heads: 16,
            kv_heads: 8,
            head_dim: 128,
            vocab: VOCAB,
            tokens_max: 32_768,
            tied: true,
            // About what a published checkpoint's shards hold, in layers.
            shards: layers.div_ceil(8).max(1),
            model_prefix: false,
            stored: Stored::Bf16,
        }
    }

    pub(super) fn check(&self) -> Result<(), &'static str> {
        let sizes =
            [self.layers, self.hidden, self.intermediate, self.heads, self.kv_heads, self.head_dim, self.shards];
        if sizes.contains(&0) || self.tokens_max == 0 {
            return Err("every size must be above 0");
        }
        if self.vocab < VOCAB {
            return Err("vocab must be 257 or more");
        }
        if !self.heads.is_multiple_of(self.kv_heads) || !self.head_dim.is_multiple_of(2) {
            return Err("kv_heads must divide heads, and head_dim must be even");
        }
        if self.tensors().chunks(self.tensors().len().div_ceil(self.shards)).len() != self.shards {
            return Err("tensors don't spread over so many shards");
        }
        Ok(())
    }

    pub(super) fn config_json(&self) -> Value {
        json!({
            "architectures": [if self.model_prefix { "Qwen3ForCausalLM" } else { "Qwen3Model" }],
            "attention_bias": false,
            "attention_dropout": 0.0,
            "bos_token_id": END_ID,
            "eos_token_id": END_ID,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": self.tokens_max,
            "max_window_layers": self.layers,
            "model_type": "qwen3",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-6,
            "rope_scaling": null,
            "rope_theta": 1_000_000,
            "sliding_window": null,
            "tie_word_embeddings": self.tied,
            "use_cache": true,
            "use_sliding_window": false,
            "vocab_size": self.vocab,
        })
    }

    /// Every tensor, in the order of the shards.
    pub(super) fn tensors(&self) -> Vec<TensorPlan> {
        let prefix = if self.model_prefix { "model." } else { "" };
        let named = |name: String, dims: Vec<usize>, center, amplitude| TensorPlan { name, dims, center, amplitude };
        // Near 1, yet different enough that a norm left out shows.
        let norm = |name: String, width| named(name, vec![width], 1.0, 0.25);
        // Uniform values of this amplitude have a variance of 1 / inputs: activations keep their size. With `gain` they
        // grow by it.
        let product = |name: String, rows, inputs: usize, gain: f32| {
            named(name, vec![rows, inputs], 0.0, gain * (3.0 / inputs as f64).sqrt() as f32)
        };
        let (query, key) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);

        let mut tensors = vec![named(format!("{prefix}embed_tokens.weight"), vec![self.vocab, self.hidden], 0.0, 1.0)];
        for number in 0..self.layers {
            let part = |part: &str| format!("{prefix}layers.{number}.{part}.weight");
            tensors.extend([
                norm(part("input_layernorm"), self.hidden),
                product(part("self_attn.q_proj"), query, self.hidden, 1.0),
                product(part("self_attn.k_proj"), key, self.hidden, 1.0),
                product(part("self_attn.v_proj"), key, self.hidden, 1.0),
                norm(part("self_attn.q_norm"), self.head_dim),
                norm(part("self_attn.k_norm"), self.head_dim),
                // Every text ends in the same token. Random attention averages what is different away; this brings it
                // back, so that different texts get clearly different vectors.
                product(part("self_attn.o_proj"), self.hidden, query, 4.0),
                norm(part("post_attention_layernorm"), self.hidden),
                product(part("mlp.gate_proj"), self.intermediate, self.hidden, 1.0),
                product(part("mlp.up_proj"), self.intermediate, self.hidden, 1.0),
                product(part("mlp.down_proj"), self.hidden, self.intermediate, 1.0),
            ]);
        }
        tensors.push(norm(format!("{prefix}norm.weight"), self.hidden));
        if !self.tied {
            tensors.push(product("lm_head.weight".to_owned(), self.vocab, self.hidden, 1.0));
        }
        tensors
    }
}
