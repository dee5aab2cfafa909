//! Generated texts: the same on every machine, of mixed lengths and scripts.

use std::io::Write;
use std::path::{Path, PathBuf};

const WORDS: [&str; 24] = [
    "tide",
    "river",
    "copper",
    "lamp",
    "Straße",
    "été",
    "naïve",
    "вода",
    "сад",
    "你好",
    "世界",
    "東京",
    "한국어",
    "नमस्ते",
    "سلام",
    "fn main()",
    "{}",
    "0x1f",
    "3.14159",
    "queue",
    "lane",
    "grant",
    "chunk",
    "🚂",
];

/// A small generator (SplitMix64), so that corpora need no dependency and no file.
pub struct Random(u64);

impl Random {
    /// A generator with a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }
}

/// `count` texts, most short, some of a hundred words.
pub fn texts(seed: u64, count: usize) -> Vec<(String, String)> {
    let mut random = Random::new(seed);
    let text = |index: usize| {
        let words = if random.below(50) == 0 { 40 + random.below(60) } else { 1 + random.below(12) };
        let words: Vec<&str> = (0..words).map(|_| WORDS[random.below(WORDS.len())]).collect();
        (format!("{seed}-{index}"), words.join(" "))
    };
    (0..count).map(text).collect()
}

/// Writes texts as JSON lines.
pub fn write_jsonl(dir: &Path, name: &str, texts: &[(String, String)]) -> PathBuf {
    let path = dir.join(name);
    let mut file = std::io::BufWriter::new(std::fs::File::create(&path).expect("a corpus file"));
    for (id, text) in texts {
        let line = serde_json::json!({ "id": id, "text": text });
        writeln!(file, "{line}").expect("a line");
    }
    file.flush().expect("a corpus file");
    path
}
