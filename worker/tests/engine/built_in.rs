//! The model in the box finds what its card says it finds.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;
use vecmill_worker::engine::{Compute, ComputeDtype, ComputePath, Model, finish};

use crate::support::paths_here;

/// What the searches that the card tells of were asked with.
const TASK: &str = "Given a web search query, retrieve relevant passages that answer the query";

#[derive(Deserialize)]
struct Passage {
    id: String,
    text: String,
}

#[derive(Deserialize)]
struct Query {
    query: String,
    relevant: Vec<String>,
}

/// Whole vectors of the passages, and of the queries without and with an instruction.
struct Embedded {
    passages: Vec<Vec<f32>>,
    plain: Vec<Vec<f32>>,
    instructed: Vec<Vec<f32>>,
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../infra/models/mini")
}

fn read<T: for<'a> Deserialize<'a>>(name: &str) -> Vec<T> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("assets/sample").join(name);
    let lines = std::fs::read_to_string(path).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn embed(path: ComputePath, passages: &[Passage], queries: &[Query]) -> Embedded {
    let model = Model::load(&folder(), &Compute::by(path)).unwrap();
    let embed = |text: &str, instruction| {
        let tokens = model.tokenizer().encode(text, instruction).unwrap();
        model.forward(&[&tokens]).unwrap().remove(0)
    };
    Embedded {
        passages: passages.iter().map(|passage| embed(&passage.text, None)).collect(),
        plain: queries.iter().map(|query| embed(&query.query, None)).collect(),
        instructed: queries.iter().map(|query| embed(&query.query, Some(TASK))).collect(),
    }
}

/// How many queries have a right passage among the `first` nearest.
fn hits(first: usize, dimensions: usize, asked: &[Vec<f32>], found: &[Vec<f32>], right: &[Vec<usize>]) -> usize {
    let cut =
        |vectors: &[Vec<f32>]| vectors.iter().map(|vector| finish(vector, dimensions).unwrap()).collect::<Vec<_>>();
    let (asked, found) = (cut(asked), cut(found));
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let nearest = |query: &[f32]| {
        let mut order: Vec<usize> = (0..found.len()).collect();
        order.sort_by(|&a, &b| dot(query, &found[b]).total_cmp(&dot(query, &found[a])));
        order.truncate(first);
        order
    };
    asked.iter().zip(right).filter(|(query, right)| nearest(query).iter().any(|place| right.contains(place))).count()
}

#[test]
fn it_finds_what_its_card_says() {
    let (passages, queries): (Vec<Passage>, Vec<Query>) = (read("corpus.jsonl"), read("queries.jsonl"));
    let place = |id: &String| passages.iter().position(|passage| passage.id == *id).unwrap();
    let right: Vec<Vec<usize>> = queries.iter().map(|query| query.relevant.iter().map(place).collect()).collect();
    let card: Value = serde_json::from_slice(&std::fs::read(folder().join("evaluation.json")).unwrap()).unwrap();
    // The plain one agrees with the others in f32 to the bit, and takes minutes.
    for path in paths_here().filter(|path| *path != ComputePath::PortableF32) {
        let embedded = embed(path, &passages, &queries);
        for dimensions in [32, 64, 128, 256] {
            for (name, asked) in [("bundled_plain", &embedded.plain), ("bundled_instructed", &embedded.instructed)] {
                for (first, share) in [(1, "hit_at_1"), (5, "hit_at_5")] {
                    let written = &card["student"][dimensions.to_string()][name][share];
                    let written = (written.as_f64().unwrap() * queries.len() as f64).round() as usize;
                    let found = hits(first, dimensions, asked, &embedded.passages, &right);
                    // Two passages may be as near as makes no difference.
                    assert!(found.abs_diff(written) <= 1, "{path} {dimensions} {name} {share}: {found}, not {written}");
                }
            }
        }
        // Not by chance: with 313 passages that would be 1 query in 60.
        let found = hits(5, 256, &embedded.plain, &embedded.passages, &right);
        assert!(found * 3 >= queries.len(), "{path}: {found} of {} queries", queries.len());
    }
}

#[test]
fn it_fits_in_the_box_and_says_what_it_is() {
    let bytes: u64 = ["config.json", "tokenizer.json", "model.safetensors", "1_Pooling/config.json"]
        .map(|name| std::fs::metadata(folder().join(name)).unwrap().len())
        .iter()
        .sum();
    assert!(bytes <= 12 << 20, "{bytes} bytes");
    let model = Model::load(&folder(), &Compute::cpu(ComputeDtype::F32)).unwrap();
    assert_eq!(model.info().prompts["query"], format!("Instruct: {TASK}\nQuery:"));
    let card = std::fs::read_to_string(folder().join("README.md")).unwrap();
    assert!(card.contains("for trying Vecmill's pipeline"));
}
