//! `vecmill-worker`, the program: arguments, log and signals.

use std::{io::IsTerminal, path::PathBuf, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing_subscriber::EnvFilter;

use crate::{engine::synthetic, panics, settings::Settings, worker};

const EXAMPLES: &str = "\
Examples:
  vecmill-worker run --model Qwen/Qwen3-Embedding-0.6B --model-dir /models/0.6B
  VECMILL_MODEL=vecmill/random vecmill-worker run       try the pipeline, no download
  vecmill-worker run --listen 0.0.0.0:8701              let Prometheus on other hosts scrape it

Secrets have no flags: VECMILL_AMQP_URL and VECMILL_REDIS_URL, or VECMILL_AMQP_URL_FILE and
VECMILL_REDIS_URL_FILE; S3 credentials come from the usual AWS_* variables.
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
    /// Write a seeded random model, for load tests without a download; its vectors mean nothing
    RandomModel {
        /// Folder to write
        dir: PathBuf,
        /// Its size
        #[arg(long, env = "VECMILL_RANDOM_SHAPE", value_enum, default_value = "first-look")]
        shape: RandomShape,
        /// Another seed gives other weights
        #[arg(long, env = "VECMILL_RANDOM_SEED", default_value_t = 1)]
        seed: u64,
    },
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RandomShape {
    /// 2 layers, 64 wide: the pipeline's own cost shows
    Tiny,
    /// 4 layers, 256 wide: what `vecmill/random` is
    FirstLook,
    /// 4 layers of the 0.6B model's shape: a realistic cost
    Realistic,
}

impl RandomShape {
    fn shape(self) -> synthetic::Shape {
        match self {
            Self::Tiny => synthetic::Shape::tiny(),
            Self::FirstLook => synthetic::Shape::first_look(),
            Self::Realistic => synthetic::Shape::realistic(4),
        }
    }
}

/// The program. It stands here and not in `bin/`, because a program that awaits a library's futures compiles them all
/// once more.
#[tokio::main]
pub async fn main() -> ExitCode {
    let settings = match Cli::parse().command {
        Command::Run(settings) => settings,
        Command::RandomModel { dir, shape, seed } => {
            return match synthetic::write(&dir, &shape.shape(), seed) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("vecmill-worker: {error}");
                    ExitCode::FAILURE
                }
            };
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "vecmill-worker", &mut std::io::stdout());
            return ExitCode::SUCCESS;
        }
    };
    start_log();
    panics::say_only_where();
    let config = match settings.check() {
        Ok(config) => config,
        Err(mistakes) => {
            mistakes.iter().for_each(|mistake| eprintln!("vecmill-worker: {mistake}"));
            return ExitCode::from(2);
        }
    };
    match worker::run(config, stop_on_signal()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vecmill-worker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start_log() {
    let filter = EnvFilter::try_from_env("VECMILL_LOG").unwrap_or_else(|_| EnvFilter::new("info,lapin=warn,aws=warn"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    if std::env::var("VECMILL_LOG_FORMAT").is_ok_and(|format| format == "json") {
        log.json().init();
    } else {
        log.init();
    }
}

/// Becomes true at SIGTERM or Ctrl-C.
fn stop_on_signal() -> watch::Receiver<bool> {
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        let terminate = async {
            match signal(SignalKind::terminate()) {
                Ok(mut signal) => drop(signal.recv().await),
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            () = terminate => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        stop.send_replace(true);
        // Until the process ends: a dropped sender would read as a stop, too.
        stop.closed().await;
    });
    stopped
}
