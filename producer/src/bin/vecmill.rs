//! `vecmill`: submit a corpus, watch it, fetch the vectors.

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;
use vecmill_producer::cli::{Cli, run};

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    // Quiet by default: the libraries' own words about retries are for debugging.
    let filter = EnvFilter::try_from_env("VECMILL_LOG").unwrap_or_else(|_| EnvFilter::new("off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    run(cli).await
}
