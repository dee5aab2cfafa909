//! `vecmill-worker`, the program: one file a command.

mod bench;
mod embed;
mod random_model;
mod run;

use std::{fmt::Display, io::IsTerminal, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::settings::Settings;

const EXAMPLES: &str = "\
Examples:
  vecmill-worker run --model Qwen/Qwen3-Embedding-0.6B --model-dir /models/0.6B
  vecmill-worker run --model Qwen/Qwen3-Embedding-0.6B --revision COMMIT       download it once, pinned
  VECMILL_MODEL=vecmill/mini vecmill-worker run       try the pipeline, no download
  vecmill-worker run --listen 0.0.0.0:8701 --tls-cert-file w.pem --tls-key-file w.key
                                                        let Prometheus on other hosts scrape it, over TLS
  vecmill-worker embed --model-dir /models/0.6B < lines > vectors.jsonl
  vecmill-worker bench --model-dir /models/0.6B         how fast the model is on this machine

Secrets have no flags: VECMILL_AMQP_URL and VECMILL_REDIS_URL, or VECMILL_AMQP_URL_FILE and
VECMILL_REDIS_URL_FILE; S3 credentials come from the usual AWS_* variables.
Models are kept where the Hugging Face hub's tools keep theirs (HF_HOME), or under VECMILL_CACHE_DIR. HF_TOKEN,
HF_ENDPOINT and HF_HUB_OFFLINE mean what they mean there.
VECMILL_LOG filters the log (default: info), VECMILL_LOG_FORMAT is text or json.";

#[derive(Debug, Parser)]
#[command(name = "vecmill-worker", version, about = "Embed chunks of signed jobs", after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Take chunks and embed them until SIGTERM
    Run(Box<Settings>),
    /// Embed lines of standard input, without a job or a server
    Embed(Box<embed::Args>),
    /// Measure the model on this machine, with random token ids
    Bench(bench::Args),
    /// Write a seeded random model, for load tests without a download; its vectors mean nothing
    RandomModel(random_model::Args),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// The program. It stands here and not in `bin/`, because a program that awaits a library's futures compiles them all
/// once more.
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(settings) => run::run(*settings),
        Command::Embed(args) => embed::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::RandomModel(args) => random_model::run(&args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "vecmill-worker", &mut std::io::stdout());
            ExitCode::SUCCESS
        }
    }
}

/// Logs to standard error, for commands that print what their user needs to know: by default only what the engine does
/// otherwise than was hoped for.
fn log_quietly() {
    let quiet = || EnvFilter::new("vecmill_worker::engine=warn,vecmill_worker::embedder=error");
    let filter = EnvFilter::try_from_env("VECMILL_LOG").unwrap_or_else(|_| quiet());
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(std::io::stderr).init();
}

/// One line on standard error, which names the program.
fn complain(what: impl Display) {
    eprintln!("vecmill-worker: {what}");
}

/// Wrong settings, a line each, and the exit code for them.
fn refuse(mistakes: &[String]) -> ExitCode {
    mistakes.iter().for_each(complain);
    ExitCode::from(2)
}

/// Whether whoever read our standard output has gone away, as `head` does: no failure of ours.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |error: &std::io::Error| error.kind() == std::io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref::<std::io::Error>().is_some_and(broken))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two flattened settings of one name would be one argument, and in a release nobody would be told.
    #[test]
    fn no_two_arguments_are_one() {
        Cli::command().debug_assert();
    }
}
