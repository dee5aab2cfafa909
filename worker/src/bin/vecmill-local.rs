//! `vecmill-local`: the whole pipeline in one process, for a first look.

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;
use vecmill_worker::{
    local::{Cli, run},
    panics,
};

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    // Quiet by default: what the user needs to know is printed.
    let filter = EnvFilter::try_from_env("VECMILL_LOG").unwrap_or_else(|_| EnvFilter::new("off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    panics::say_only_where();
    match run(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vecmill-local: {error:#}");
            ExitCode::FAILURE
        }
    }
}
