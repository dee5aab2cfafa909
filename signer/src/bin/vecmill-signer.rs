//! The signer's program. Everything is in the library.

use std::process::ExitCode;

use clap::Parser as _;

#[tokio::main]
async fn main() -> ExitCode {
    vecmill_signer::cli::run(vecmill_signer::cli::Cli::parse()).await
}
