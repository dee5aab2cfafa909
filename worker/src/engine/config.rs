//! `config.json`: parsed with candle's own type, and refused where it asks for what the forward pass does not do.

use std::path::Path;

use candle_nn::Activation;
use candle_transformers::models::qwen3;
use serde_json::{Map, Value};

use super::LoadError;

/// A checked configuration. Whoever holds one may rely on everything [`Config::load`] asserts.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    inner: qwen3::Config,
}

impl std::ops::Deref for Config {
    type Target = qwen3::Config;

    fn deref(&self) -> &qwen3::Config {
        &self.inner
    }
}

impl Config {
    /// Reads and checks a `config.json`.
    pub(crate) fn load(path: &Path) -> Result<Self, LoadError> {
        let bytes = std::fs::read(path).map_err(LoadError::read(path))?;
        let mut raw: Map<String, Value> = serde_json::from_slice(&bytes).map_err(LoadError::json(path))?;
        check_raw(&raw)?;
        unify_dialects(&mut raw);
        let inner: qwen3::Config = serde_json::from_value(Value::Object(raw)).map_err(LoadError::json(path))?;
        check_parsed(&inner)?;
        Ok(Self { inner })
    }

    /// Positions the model was trained for.
    pub(crate) fn tokens_max(&self) -> usize {
        self.max_position_embeddings
    }

    /// Width of all query heads side by side. For the 4B model this is not `hidden_size`.
    pub(crate) fn query_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of all key (or value) heads side by side.
    pub(crate) fn key_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }
}

/// Transformers 5 moved `rope_theta` into `rope_parameters` and leaves out fields at their defaults.
fn unify_dialects(raw: &mut Map<String, Value>) {
    if !raw.contains_key("rope_theta")
        && let Some(theta) = raw.get("rope_parameters").and_then(|rope| rope.get("rope_theta")).cloned()
    {
        raw.insert("rope_theta".into(), theta);
    }
    let defaults = [("attention_bias", Value::Bool(false)), ("use_sliding_window", Value::Bool(false))];
    for (field, value) in defaults {
        raw.entry(field).or_insert(value);
    }
    // Says from which layer on a sliding window counts: without one it has no meaning.
    raw.entry("max_window_layers").or_insert(Value::from(0));
}

/// Checks on fields that candle's type does not have, or would read differently.
fn check_raw(raw: &Map<String, Value>) -> Result<(), LoadError> {
    let refuse = |field, expected| {
        let value = raw.get(field).map_or_else(String::new, Value::to_string);
        Err(LoadError::Unsupported { field, value, expected })
    };
    let plain = |rope: &Value| match rope.get("rope_type").or_else(|| rope.get("type")) {
        None => true,
        Some(kind) => kind == "default",
    };
    if raw.get("model_type").is_some_and(|kind| kind != "qwen3") {
        return refuse("model_type", "must be \"qwen3\"");
    }
    if raw.get("rope_scaling").is_some_and(|rope| !rope.is_null()) {
        return refuse("rope_scaling", "must be null; positions are not scaled");
    }
    if raw.get("rope_parameters").is_some_and(|rope| !plain(rope)) {
        return refuse("rope_parameters", "rope_type must be \"default\"; positions are not scaled");
    }
    let all_full = |kinds: &Value| kinds.as_array().is_some_and(|all| all.iter().all(|kind| kind == "full_attention"));
    if raw.get("layer_types").is_some_and(|kinds| !kinds.is_null() && !all_full(kinds)) {
        return refuse("layer_types", "every layer must be \"full_attention\"");
    }
    // Some checkpoints keep a number in `sliding_window` with the switch off: then it means nothing.
    let window = raw.get("sliding_window").is_some_and(|window| !window.is_null());
    let switch = raw.get("use_sliding_window").and_then(Value::as_bool);
    if window && switch != Some(false) {
        return refuse("sliding_window", "must be null, or use_sliding_window false; every token sees all before it");
    }
    Ok(())
}

/// Checks on what candle's type does have.
fn check_parsed(config: &qwen3::Config) -> Result<(), LoadError> {
    let refuse = |field, value: String, expected| Err(LoadError::Unsupported { field, value, expected });
    if config.use_sliding_window {
        return refuse("use_sliding_window", "true".into(), "must be false; every token sees all before it");
    }
    if config.attention_bias {
        return refuse("attention_bias", "true".into(), "must be false");
    }
    if !matches!(config.hidden_act, Activation::Silu | Activation::Swish) {
        return refuse("hidden_act", format!("{:?}", config.hidden_act), "must be \"silu\"");
    }
    let sizes = [
        ("vocab_size", config.vocab_size),
        ("hidden_size", config.hidden_size),
        ("intermediate_size", config.intermediate_size),
        ("num_hidden_layers", config.num_hidden_layers),
        ("num_attention_heads", config.num_attention_heads),
        ("num_key_value_heads", config.num_key_value_heads),
        ("head_dim", config.head_dim),
        ("max_position_embeddings", config.max_position_embeddings),
    ];
    if let Some((field, _)) = sizes.into_iter().find(|(_, size)| *size == 0) {
        return refuse(field, "0".into(), "must be above 0");
    }
    if !config.num_attention_heads.is_multiple_of(config.num_key_value_heads) {
        let expected = "must divide num_attention_heads";
        return refuse("num_key_value_heads", config.num_key_value_heads.to_string(), expected);
    }
    if !config.head_dim.is_multiple_of(2) {
        return refuse("head_dim", config.head_dim.to_string(), "must be even; positions turn pairs of values");
    }
    for (field, value) in [("rope_theta", config.rope_theta), ("rms_norm_eps", config.rms_norm_eps)] {
        if !(value.is_finite() && value > 0.0) {
            return refuse(field, value.to_string(), "must be above 0");
        }
    }
    Ok(())
}
