//! What a batch costs, counted from `config.json`.

use std::path::Path;

use serde::Deserialize;

/// A model's sizes, by Qwen3's names.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Cost {
    num_hidden_layers: u64,
    hidden_size: u64,
    intermediate_size: u64,
    num_attention_heads: u64,
    num_key_value_heads: u64,
    head_dim: u64,
}

impl Cost {
    /// Reads the sizes of a model folder, which the engine has checked.
    pub(super) fn load(dir: &Path) -> std::io::Result<Self> {
        Ok(serde_json::from_slice(&std::fs::read(dir.join("config.json"))?)?)
    }

    /// Decoder layers.
    pub(super) fn layers(&self) -> u64 {
        self.num_hidden_layers
    }

    /// Multiplications and additions that the layers' matrices (q, k, v, o, gate, up, down) need: in the last layer keys
    /// and values of every token, and all else of each text's pooled token only.
    pub(super) fn matrices(&self, lengths: &[usize]) -> u64 {
        let (query, key) = (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        let keys_values = self.hidden_size * 2 * key;
        let rest = self.hidden_size * (2 * query + 3 * self.intermediate_size);
        let (tokens, texts) = (lengths.iter().sum::<usize>() as u64, lengths.len() as u64);
        2 * ((self.num_hidden_layers - 1) * (keys_values + rest) * tokens + keys_values * tokens + rest * texts)
    }

    /// Those that causal attention needs, scores and weighted values: each query with what it sees, in the last layer
    /// the pooled one alone.
    pub(super) fn attention(&self, lengths: &[usize]) -> u64 {
        let seen = |length: u64| (self.num_hidden_layers - 1) * (length * (length + 1) / 2) + length;
        4 * self.num_attention_heads * self.head_dim * lengths.iter().map(|&length| seen(length as u64)).sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_models() {
        let small = Cost {
            num_hidden_layers: 28,
            hidden_size: 1024,
            intermediate_size: 3072,
            num_attention_heads: 16,
            num_key_value_heads: 8,
            head_dim: 128,
        };
        // A text of one token is its pooled token.
        assert_eq!(small.matrices(&[1]), 880_803_840);
        let last_layer_left_out = 2 * 1024 * (2 * 2048 + 3 * 3072);
        assert_eq!(small.matrices(&[3, 1]), 4 * 880_803_840 - 2 * last_layer_left_out);
        assert_eq!(small.attention(&[3, 1]), 4 * 2048 * (27 * (6 + 1) + 3 + 1));
        let large = Cost {
            num_hidden_layers: 36,
            hidden_size: 2560,
            intermediate_size: 9728,
            num_attention_heads: 32,
            num_key_value_heads: 8,
            head_dim: 128,
        };
        assert_eq!(large.matrices(&[1]) / 10_000_000, 726);
    }
}
