//! What programs came to. Whoever reads a program's output asks here first whether it succeeded; where it did not, the
//! panic says how it ended and the end of what it said, without secrets.
//!
//! The tests of `vecmill-tests` compile this file too.

use std::process::Output;

use serde_json::Value;

/// Of each of a program's outputs: the cause stands at the end.
const LINES_SHOWN: usize = 40;

/// What a program that must succeed printed.
///
/// # Panics
/// When it failed.
#[track_caller]
pub fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{}", told(output));
    String::from_utf8(output.stdout.clone()).unwrap_or_else(|_| panic!("no UTF-8 of a program that {}", told(output)))
}

/// The JSON that a program which must succeed printed.
///
/// # Panics
/// When it failed, or printed something else.
#[track_caller]
pub fn json_of(output: &Output) -> Value {
    let printed = printed(output);
    serde_json::from_str(&printed)
        .unwrap_or_else(|error| panic!("no JSON ({error}) of a program that {}", told(output)))
}

/// How a program ended, and the end of what it said.
pub fn told(output: &Output) -> String {
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|bytes| end_of(&String::from_utf8_lossy(bytes)));
    format!("ended with {}; its standard error:\n{stderr}its standard output:\n{stdout}", output.status)
}

/// The last lines, indented, without secrets.
pub fn end_of(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(LINES_SHOWN)..];
    last.iter().map(|line| format!("  {}\n", without_secrets(line))).collect()
}

/// A line in which API keys, tokens, and the passwords of URLs are cut off.
fn without_secrets(line: &str) -> String {
    let ends_a_word = |character: char| character.is_whitespace() || "\"'`<>(),;".contains(character);
    line.split_inclusive(ends_a_word)
        .map(|word| {
            let (said, after) = word.split_at(word.trim_end_matches(ends_a_word).len());
            let secret = ["vm_", "eyJ"].into_iter().filter_map(|prefix| Some(said.find(prefix)? + prefix.len())).min();
            let password = said.find("://").map(|place| place + 3).zip(said.rfind('@'));
            match (secret, password) {
                (Some(secret), _) => format!("{}..{after}", &said[..secret]),
                (None, Some((from, to))) if from < to => format!("{}..{}{after}", &said[..from], &said[to..]),
                _ => word.to_owned(),
            }
        })
        .collect()
}
