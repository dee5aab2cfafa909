//! A `tokenizer.json` in Qwen3's form with no merges: one token a byte, so any text can be encoded.

use serde_json::{Map, Value, json};

use crate::engine::END_TOKEN;

/// Byte symbols come first.
pub(super) const END_ID: u32 = 256;

/// Byte symbols and the end token.
pub(super) const VOCAB: usize = 257;

/// How Qwen2 and Qwen3 cut text before merging: contractions, words, single digits, punctuation, line ends, blanks.
const SPLIT: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

pub(super) fn build() -> Value {
    let vocab: Map<String, Value> =
        byte_symbols().into_iter().enumerate().map(|(id, symbol)| (symbol.to_string(), id.into())).collect();
    let byte_level =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false });
    let end_piece = json!({ "SpecialToken": { "id": END_TOKEN, "type_id": 0 } });
    let text_piece = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    let template = json!({
        "type": "TemplateProcessing",
        "single": [text_piece, end_piece],
        "pair": [text_piece, end_piece, { "Sequence": { "id": "B", "type_id": 0 } }, end_piece],
        "special_tokens": { END_TOKEN: { "id": END_TOKEN, "ids": [END_ID], "tokens": [END_TOKEN] } },
    });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [{
            "id": END_ID, "content": END_TOKEN, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }],
        "normalizer": { "type": "NFC" },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                { "type": "Split", "pattern": { "Regex": SPLIT }, "behavior": "Isolated", "invert": false },
                byte_level,
            ],
        },
        "post_processor": { "type": "Sequence", "processors": [byte_level, template] },
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "", "end_of_word_suffix": "",
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": [],
        },
    })
}

/// One visible character a byte, in the vocabulary's order, as GPT-2 laid down: visible Latin-1 bytes stand for
/// themselves and come first; the others follow, moved up to U+0100.
fn byte_symbols() -> Vec<char> {
    let visible = |byte: &u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let themselves = (0..=255u8).filter(visible).map(char::from);
    let moved = (0..=255u8).filter(|byte| !visible(byte)).zip('\u{100}'..).map(|(_, symbol)| symbol);
    themselves.chain(moved).collect()
}
