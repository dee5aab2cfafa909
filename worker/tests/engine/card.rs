//! sentence-transformers' files beside the weights: read where they say what the engine does, refused elsewhere.

use std::path::Path;

use serde_json::{Value, json};
use vecmill_worker::engine::synthetic::Shape;
use vecmill_worker::engine::{Compute, ComputeDtype, LoadError, Model};

use crate::support::{edit, written};

const QUERY: &str = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:";

fn put(dir: &Path, name: &str, value: &Value) {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, value.to_string()).unwrap();
}

/// The files as Qwen ships them, for a model of this width.
fn ship(dir: &Path, hidden: usize) {
    let module = |idx: usize, path: &str, kind: &str| {
        let kind = format!("sentence_transformers.models.{kind}");
        json!({ "idx": idx, "name": idx.to_string(), "path": path, "type": kind })
    };
    let modules =
        [module(0, "", "Transformer"), module(1, "1_Pooling", "Pooling"), module(2, "2_Normalize", "Normalize")];
    put(dir, "modules.json", &json!(modules));
    let pooling = json!({
        "word_embedding_dimension": hidden, "pooling_mode_cls_token": false, "pooling_mode_mean_tokens": false,
        "pooling_mode_max_tokens": false, "pooling_mode_mean_sqrt_len_tokens": false,
        "pooling_mode_weightedmean_tokens": false, "pooling_mode_lasttoken": true, "include_prompt": true,
    });
    put(dir, "1_Pooling/config.json", &pooling);
    let prompts = json!({
        "prompts": { "query": QUERY, "document": "" }, "default_prompt_name": null, "similarity_fn_name": "cosine",
    });
    put(dir, "config_sentence_transformers.json", &prompts);
}

fn load(dir: &Path) -> Result<Model, LoadError> {
    Model::load(dir, &Compute::cpu(ComputeDtype::F32))
}

#[test]
fn prompts_are_read_from_the_card() {
    let (_guard, dir) = written(&Shape::tiny());
    assert!(load(&dir).unwrap().info().prompts.is_empty(), "a folder without a card has none");
    ship(&dir, 64);
    let prompts = load(&dir).unwrap().info().prompts.clone();
    let expected = [("document", ""), ("query", QUERY)].map(|(name, prompt)| (name.to_owned(), prompt.to_owned()));
    assert_eq!(prompts.into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn later_spellings_mean_the_same() {
    let (_guard, dir) = written(&Shape::tiny());
    ship(&dir, 64);
    edit(&dir.join("modules.json"), |modules| {
        for (module, kind) in modules.as_array_mut().unwrap().iter_mut().zip(["Transformer", "Pooling", "Normalize"]) {
            module["type"] = json!(format!("sentence_transformers.base.modules.{kind}"));
        }
    });
    let pooling = json!({ "embedding_dimension": 64, "pooling_mode": "lasttoken", "include_prompt": true });
    put(&dir, "1_Pooling/config.json", &pooling);
    load(&dir).unwrap();
}

#[test]
fn a_card_that_asks_for_anything_else_is_refused_by_field_and_value() {
    const POOLING: &str = "1_Pooling/config.json";
    type Change = fn(&mut Value);
    let cases: [(&str, Change, &str); 14] = [
        ("modules.json", |it| _ = it.as_array_mut().unwrap().pop(), "modules.json: the list = "),
        (
            "modules.json",
            |it| it[1]["type"] = json!("sentence_transformers.models.Dense"),
            "modules.json: [1].type = \"sentence_transformers.models.Dense\"",
        ),
        ("modules.json", |it| it[0]["type"] = json!("evil.Transformer"), "[0].type = \"evil.Transformer\""),
        ("modules.json", |it| it[0]["path"] = json!("0_Transformer"), "[0].path = \"0_Transformer\""),
        ("modules.json", |it| it[1]["path"] = json!("../other"), "[1].path = \"../other\""),
        ("modules.json", |it| it[1]["path"] = json!("gone"), "gone/config.json"),
        (POOLING, |it| it["pooling_mode_lasttoken"] = json!(false), "config.json: pooling_mode_lasttoken = false"),
        (POOLING, |it| it["pooling_mode_mean_tokens"] = json!(true), "pooling_mode_mean_tokens = true"),
        (POOLING, |it| it["pooling_mode"] = json!("mean"), "pooling_mode = \"mean\""),
        (POOLING, |it| it["word_embedding_dimension"] = json!(1024), "word_embedding_dimension = 1024"),
        (POOLING, |it| it["include_prompt"] = json!(false), "include_prompt = false"),
        (
            "config_sentence_transformers.json",
            |it| it["prompts"]["query"] = json!(7),
            "config_sentence_transformers.json: prompts.query = 7",
        ),
        (
            "config_sentence_transformers.json",
            |it| it["default_prompt_name"] = json!("query"),
            "default_prompt_name = \"query\"",
        ),
        ("config_sentence_transformers.json", |it| *it = json!([]), "config_sentence_transformers.json"),
    ];
    for (file, change, expected) in cases {
        let (_guard, dir) = written(&Shape::tiny());
        ship(&dir, 64);
        edit(&dir.join(file), change);
        let error = load(&dir).err().unwrap_or_else(|| panic!("{expected} is taken")).to_string();
        assert!(error.contains(expected), "{error}");
    }
}
