//! Clients of others, unchanged, run as programs: each prints a JSON object a step.

use std::ffi::{OsStr, OsString};
use std::process::Command;

use serde_json::Value;
use vecmill_tests::program::printed;

/// A Python that has OpenAI's SDK, pyarrow and DuckDB.
pub(crate) const PYTHON: &str = "VECMILL_OPENAI_PYTHON";
/// A folder that has OpenAI's SDK for JavaScript.
pub(crate) const NODE: &str = "VECMILL_OPENAI_NODE";
/// A Python that has LangChain.
pub(crate) const LANGCHAIN: &str = "VECMILL_LANGCHAIN_PYTHON";

/// Where `infra/test` has installed something.
pub(crate) fn installed(name: &str) -> OsString {
    std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set: run ./infra/test"))
}

/// Runs a script of this folder to its end; gives what it printed.
pub(crate) fn steps(program: impl AsRef<OsStr>, script: &str, arguments: &[&OsStr]) -> Vec<Value> {
    let mut command = Command::new(program);
    command.arg(format!("{}/e2e/{script}", env!("CARGO_MANIFEST_DIR"))).args(arguments);
    let printed = printed(&command.env("NO_PROXY", "127.0.0.1").output().unwrap());
    printed.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}
