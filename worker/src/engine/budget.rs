//! How many tokens fit into a GPU's memory.

use super::config::Config;

/// Most tokens a batch gets however much memory there is: the longest text, and about half a second of an H100's time
/// with the 4B model. A larger batch computes no faster, and delays whoever comes next.
pub(super) const TOKENS_MAX: usize = 32_768;

/// Of the free memory, the part that activations may take. The rest is for what is allocated besides: kernels as they are
/// loaded, gaps between buffers of different sizes, other programs.
const SHARE: f64 = 0.8;

/// Bytes of a bf16 value.
const VALUE: usize = 2;

/// Most tokens for a batch with `free` bytes of memory, at least one.
pub(super) fn tokens(config: &Config, free: usize) -> usize {
    let fit = (free as f64 * SHARE) as usize / bytes_per_token(config);
    fit.clamp(1, TOKENS_MAX)
}

/// What is alive of a token where a layer needs most. Memory freed by one step is there for the next: they are queued in
/// one order.
pub(super) fn bytes_per_token(config: &Config) -> usize {
    let hidden = config.hidden_size;
    let (query, key) = (config.query_width(), config.key_width());
    // Residual stream, its norm, and projected heads; keys and values once more, twice, if texts share a prefix; then
    // attention's output and the logarithm of each head's sum (f32).
    let attention = 2 * hidden + (query + 2 * key) + 2 * (2 * key) + query + 2 * config.num_attention_heads;
    // Residual stream, its norm, gate and up, their product; a copy of the stream if it is put together from parts.
    let mlp = 3 * hidden + 3 * config.intermediate_size;
    // Ids, positions and places (u32), cosines and sines (f32), for all layers.
    let batch = size_of::<[u32; 8]>() + config.head_dim * size_of::<f32>();
    VALUE * attention.max(mlp) + batch
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config_4b() -> Config {
        let json = serde_json::json!({
            "model_type": "qwen3", "vocab_size": 151_665, "hidden_size": 2560, "intermediate_size": 9728,
            "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
            "max_position_embeddings": 40_960, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "hidden_act": "silu",
            "tie_word_embeddings": true, "attention_bias": false, "sliding_window": null,
        });
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("config.json");
        std::fs::write(&path, json.to_string()).expect("a file");
        Config::load(&path).expect("a configuration")
    }

    #[test]
    fn a_token_of_the_4b_model() {
        assert_eq!(bytes_per_token(&config_4b()), 2 * (3 * 2560 + 3 * 9728) + 32 + 512);
    }

    #[test]
    fn more_memory_means_more_tokens_up_to_a_bound() {
        let config = config_4b();
        let gib = |number: usize| number << 30;
        assert_eq!(tokens(&config, gib(70)), TOKENS_MAX);
        assert_eq!(tokens(&config, gib(1)), (gib(1) as f64 * SHARE) as usize / bytes_per_token(&config));
        assert!(tokens(&config, gib(1)) < tokens(&config, gib(2)));
        assert_eq!(tokens(&config, 0), 1);
    }
}
