//! The program, a model for it, and what it says.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use vecmill_worker::engine::synthetic::{self, Shape};
use vecmill_worker::engine::{Compute, ComputeDtype, Model, Tokenizer, finish};

/// A tiny random model on disk.
pub(crate) struct Folder {
    guard: TempDir,
    pub(crate) model: PathBuf,
}

impl Folder {
    pub(crate) fn new() -> Self {
        let guard = tempfile::tempdir().unwrap();
        let model = guard.path().join("model");
        synthetic::write(&model, &Shape::tiny(), 7).unwrap();
        Self { guard, model }
    }

    /// A file beside the model.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.guard.path().join(name)
    }

    /// A command of the program, on this model, in f32, and with no setting of the environment.
    pub(crate) fn command(&self, command: &str, args: &[&str]) -> Command {
        let mut program = program(&[command, "--dtype", "f32", "--device", "cpu"]);
        program.arg("--model-dir").arg(&self.model).args(args);
        program
    }

    /// The unit vector that the engine gives for a text.
    pub(crate) fn vector(&self, text: &str, instruction: Option<&str>, dimensions: usize) -> Vec<f32> {
        let tokens = Tokenizer::load(&self.model).unwrap().encode(text, instruction).unwrap();
        let hidden = self.load().forward(&[&tokens]).unwrap();
        finish(&hidden[0], dimensions).unwrap()
    }

    fn load(&self) -> Model {
        Model::load(&self.model, &exact()).unwrap()
    }
}

/// Vectors that can be compared to the last digits, whatever shared their batch.
pub(crate) fn exact() -> Compute {
    Compute::cpu(ComputeDtype::F32)
}

/// The program without the settings that whoever runs the tests may have.
pub(crate) fn program(args: &[&str]) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_vecmill-worker"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("VECMILL_") {
            program.env_remove(name);
        }
    }
    program.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    program
}

/// Runs to the end on this input.
pub(crate) fn run(mut command: Command, input: impl AsRef<[u8]>) -> Output {
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.as_ref().to_vec();
    // A program that stops early closes the pipe.
    let feed = std::thread::spawn(move || _ = stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    feed.join().unwrap();
    output
}

/// Standard output, a JSON value a line.
pub(crate) fn json_lines(output: &Output) -> Vec<Value> {
    let lines = std::str::from_utf8(&output.stdout).unwrap().lines();
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"))).collect()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A vector in JSON.
pub(crate) fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

/// Asserts that two vectors differ by rounding only.
#[track_caller]
pub(crate) fn assert_near(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "they differ by {worst}");
}

/// The name of a file, for an argument.
pub(crate) fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
