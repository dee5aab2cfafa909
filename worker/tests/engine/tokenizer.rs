//! Text to token ids: every text ends in the end token, and nothing a tenant writes changes that.

use std::path::PathBuf;

use serde_json::{Value, json};
use vecmill_producer::contract::Truncate;
use vecmill_worker::engine::synthetic::Shape;
use vecmill_worker::engine::{
    END_TOKEN, Encoded, Input, LoadError, TEXT_BYTES_PER_TOKEN_MAX, TokenizeError, Tokenizer,
};

use crate::support::{edit, written};

const TOKENS_MAX: usize = 64;

/// Texts that tokenizers stumble over.
const HARD_TEXTS: [&str; 12] = [
    "a",
    " ",
    "\n\n\n",
    "Ünïcödé, 漢字 and emoji 👩‍👩‍👧",
    "e\u{301}",
    "\u{0}\u{1}\u{7f}\u{feff}\u{200d}",
    "<|endoftext|>",
    "a <|im_start|>user<|im_end|> b",
    "<|endoftext|><|endoftext|>",
    "trailing blanks   ",
    "\u{10ffff}\u{e000}",
    "don't 12345 \t\r\n x",
];

fn small(change: impl FnOnce(&mut Value)) -> Result<Tokenizer, LoadError> {
    let (_guard, dir) = written(&Shape { tokens_max: TOKENS_MAX, ..Shape::tiny() });
    edit(&dir.join("tokenizer.json"), change);
    Tokenizer::load(&dir)
}

fn ends_once(tokenizer: &Tokenizer, text: &str, instruction: Option<&str>) {
    let ids = tokenizer.encode(text, instruction).unwrap();
    assert_eq!(ids.last(), Some(&tokenizer.end_token()), "{text:?}");
    assert_eq!(ids.iter().filter(|&&id| id == tokenizer.end_token()).count(), 1, "{text:?}: {ids:?}");
}

#[test]
fn any_text_ends_in_the_end_token_once() {
    let tokenizer = small(|_| {}).unwrap();
    for text in HARD_TEXTS {
        ends_once(&tokenizer, text, None);
    }
    ends_once(&tokenizer, "b", Some("<|endoftext|>"));
}

#[test]
fn text_that_spells_the_end_token_is_text() {
    let tokenizer = small(|_| {}).unwrap();
    // One token a byte, and the end token.
    assert_eq!(tokenizer.encode(END_TOKEN, None).unwrap().len(), END_TOKEN.len() + 1);
}

#[test]
fn an_instruction_is_written_as_the_model_was_trained() {
    let tokenizer = small(|_| {}).unwrap();
    let query = tokenizer.encode("why?", Some("Find answers")).unwrap();
    assert_eq!(query, tokenizer.encode("Instruct: Find answers\nQuery:why?", None).unwrap());
    assert_ne!(query, tokenizer.encode("Instruct: Find answers\nQuery: why?", None).unwrap());
}

#[test]
fn empty_and_too_long_texts_are_told_apart() {
    let tokenizer = small(|_| {}).unwrap();
    assert_eq!(tokenizer.encode("", None), Err(TokenizeError::Empty));
    assert_eq!(tokenizer.encode("", Some("Find")), Err(TokenizeError::Empty));
    let of = |bytes: usize| tokenizer.encode(&"x".repeat(bytes), None);
    assert_eq!(of(TOKENS_MAX - 1).unwrap().len(), TOKENS_MAX);
    assert_eq!(of(TOKENS_MAX), Err(TokenizeError::TooLong { tokens: TOKENS_MAX + 1, tokens_max: TOKENS_MAX }));
    // Past the byte limit the number is an estimate, and above the limit all the same.
    let limit = TOKENS_MAX * TEXT_BYTES_PER_TOKEN_MAX;
    let estimate = |tokens| Err(TokenizeError::TooLong { tokens, tokens_max: TOKENS_MAX });
    assert_eq!(of(limit), estimate(limit + 1));
    assert_eq!(of(limit + 1), estimate(TOKENS_MAX + 1));
    let instructed = tokenizer.encode("x", Some(&"y".repeat(limit)));
    assert_eq!(instructed, estimate(TOKENS_MAX + 1));
}

#[test]
fn sets_the_end_token_on_top_of_a_chat_tokenizer() {
    let byte_level =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false });
    for post_processor in [byte_level, Value::Null] {
        let tokenizer = small(|file| file["post_processor"] = post_processor).unwrap();
        ends_once(&tokenizer, "hello", None);
    }
}

#[test]
fn a_text_that_is_to_be_cut_keeps_its_first_tokens_and_the_end() {
    let tokenizer = small(|_| {}).unwrap();
    let (end, most) = (tokenizer.end_token(), TOKENS_MAX);
    let cut = |text: &str, instruction| tokenizer.encode_input(Input::Text(text), instruction, Truncate::End);
    // One token a byte.
    let short = "x".repeat(most - 1);
    let kept = tokenizer.encode(&short, None).unwrap();
    assert_eq!(cut(&short, None), Ok(Encoded { ids: kept.clone(), truncated: false }));
    for bytes in [most, most + 1, most * TEXT_BYTES_PER_TOKEN_MAX, 1 << 20] {
        assert_eq!(cut(&"x".repeat(bytes), None), Ok(Encoded { ids: kept.clone(), truncated: true }), "{bytes}");
    }
    // In the middle of a character, before and after the limit on bytes.
    for text in ["ü".repeat(most), format!("x{}", "ü".repeat(1 << 12)), "漢".repeat(1 << 12)] {
        let Encoded { ids, truncated } = cut(&text, None).unwrap();
        assert_eq!((ids.len(), ids.last(), truncated), (most, Some(&end), true));
    }
    // The instruction stays, the text is cut.
    let Encoded { ids, truncated } = cut(&"x".repeat(1 << 20), Some("Find")).unwrap();
    let prompt = tokenizer.encode("Instruct: Find\nQuery:", None).unwrap();
    assert_eq!((&ids[..prompt.len() - 1], ids.len(), truncated), (&prompt[..prompt.len() - 1], most, true));
    assert_eq!(ids.last(), Some(&end));
    // An instruction that leaves no room would make all texts alike.
    for length in [most, most * TEXT_BYTES_PER_TOKEN_MAX, 1 << 16] {
        let instruction = "y".repeat(length);
        let error = tokenizer.encode_input(Input::Text("a text"), Some(&instruction), Truncate::End);
        assert!(matches!(error, Err(TokenizeError::TooLong { .. })), "{error:?}");
    }
    assert_eq!(cut("", None), Err(TokenizeError::Empty));
}

#[test]
fn token_ids_are_taken_as_they_are() {
    let tokenizer = small(|_| {}).unwrap();
    let end = tokenizer.end_token();
    let encode = |tokens: &[u32], instruction, truncate| {
        tokenizer
            .encode_input(Input::Tokens(tokens), instruction, truncate)
            .map(|encoded| (encoded.ids, encoded.truncated))
    };
    let plain = |tokens: &[u32]| encode(tokens, None, Truncate::None);
    assert_eq!(plain(&[1, 2, 3]), Ok((vec![1, 2, 3, end], false)));
    assert_eq!(plain(&[1, 2, 3, end]), Ok((vec![1, 2, 3, end], false)));
    // A text and its tokens are the same, with an instruction, too.
    let text = "what the tokens spell";
    let tokens = tokenizer.encode(text, None).unwrap();
    for instruction in [None, Some("Find answers")] {
        let expected = tokenizer.encode(text, instruction).unwrap();
        assert_eq!(encode(&tokens, instruction, Truncate::None), Ok((expected, false)));
    }
    assert_eq!(plain(&[]), Err(TokenizeError::Empty));
    assert_eq!(plain(&[end]), Err(TokenizeError::Empty));
    assert_eq!(tokenizer.vocab(), 257);
    let unknown = plain(&[1, 257]).unwrap_err();
    assert_eq!(unknown, TokenizeError::Unknown { token: 257, vocab: 257 });
    assert!(unknown.to_string().contains("257") && unknown.to_string().contains("256"), "{unknown}");
    let long = vec![7; TOKENS_MAX];
    assert_eq!(plain(&long), Err(TokenizeError::TooLong { tokens: TOKENS_MAX + 1, tokens_max: TOKENS_MAX }));
    let cut = [&long[..TOKENS_MAX - 1], &[end]].concat();
    for length in [TOKENS_MAX, TOKENS_MAX + 1, 10 * TOKENS_MAX] {
        assert_eq!(encode(&vec![7; length], None, Truncate::End), Ok((cut.clone(), true)));
    }
    assert_eq!(encode(&long[1..], None, Truncate::End), Ok((cut.clone(), false)));
}

#[test]
fn switches_off_truncation_and_padding_that_the_file_asks_for() {
    let tokenizer = small(|file| {
        file["truncation"] = json!({ "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0 });
        file["padding"] = json!({
            "strategy": { "Fixed": 40 }, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 256,
            "pad_type_id": 0, "pad_token": END_TOKEN,
        });
    })
    .unwrap();
    assert_eq!(tokenizer.encode("0123456789", None).unwrap().len(), 11);
}

#[test]
fn refuses_a_file_without_the_end_token() {
    let error = small(|file| file["added_tokens"] = json!([])).err().unwrap();
    assert!(matches!(&error, LoadError::Tokenizer { reason, .. } if reason.contains(END_TOKEN)), "{error}");
}

/// The real vocabulary, which is too large to keep here.
#[test]
fn the_real_qwen3_tokenizer_ends_every_text_in_151643() {
    let folder = std::env::var_os("VECMILL_QWEN3_TOKENIZER").map(PathBuf::from).expect(
        "VECMILL_QWEN3_TOKENIZER names no folder with Qwen3's tokenizer.json: run ./infra/test, which fetches it",
    );
    let tokenizer = Tokenizer::from_file(&folder.join("tokenizer.json"), END_TOKEN, 32_768).unwrap();
    assert_eq!(tokenizer.end_token(), 151_643);
    for text in HARD_TEXTS {
        ends_once(&tokenizer, text, None);
        ends_once(&tokenizer, text, Some("Given a web search query, retrieve relevant passages that answer the query"));
    }
    // Words that are in the vocabulary, so this is the real one, merges and all.
    assert_eq!(tokenizer.encode("Hello world", None).unwrap(), [9707, 1879, 151_643]);
    // Long runs, where the regex backtracks and merging is at its slowest: the limit on bytes must keep them possible.
    let long = 32_768 * TEXT_BYTES_PER_TOKEN_MAX;
    for text in [" ".repeat(long), "a".repeat(long), "x ".repeat(16_383), "\u{301}".repeat(long / 2)] {
        match tokenizer.encode(&text, None) {
            Ok(ids) => assert_eq!(ids.last(), Some(&151_643)),
            Err(error) => assert!(matches!(error, TokenizeError::TooLong { .. }), "{error}"),
        }
    }
}
