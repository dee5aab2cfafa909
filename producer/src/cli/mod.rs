//! `vecmill`, the program that people type: one file a command.

mod connection;
mod door;
mod get;
mod list;
mod output;
mod repair;
mod say;
mod status;
mod submit;
mod through_gateway;
mod topology;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

const EXAMPLES: &str = "\
Examples:
  vecmill submit corpus.jsonl                      submit a corpus, go on at once
  zcat logs.txt.gz | vecmill submit - --format lines --dimensions 256
  vecmill submit s3://my-bucket/corpus.parquet --text-field body --wait
  vecmill status 5d41402abc4b2a76b9719d911017c592 --watch
  vecmill get 5d41402abc4b2a76b9719d911017c592 --out vectors/
  vecmill list --json
  vecmill repair 5d41402abc4b2a76b9719d911017c592
  vecmill submit corpus.jsonl --gateway https://vecmill.example     from outside: nothing but an API key is needed

Settings come from the environment: VECMILL_API_KEY (or VECMILL_API_KEY_FILE), VECMILL_SIGNER_URL,
VECMILL_AMQP_URL (or VECMILL_AMQP_URL_FILE), VECMILL_S3_ENDPOINT, VECMILL_S3_BUCKET and the usual AWS_* variables.

Exit codes: 0 done; 1 failed, try again later; 2 wrong usage or settings; 3 refused by the signer;
4 the input was refused; 5 the job ended without being completed.";

/// Embed text in bulk: submit a corpus, watch it, fetch the vectors.
#[derive(Debug, Parser)]
#[command(name = "vecmill", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Cut a corpus into chunks, have it signed and queue it for embedding
    Submit(submit::Args),
    /// Show where a job stands
    Status(status::Args),
    /// Fetch a job's vectors; of a running job, the parts finished so far
    Get(get::Args),
    /// Publish again what is not done of a job, from what is on S3: after a failure, or for a broker that lost it
    #[command(visible_alias = "retry-failed")]
    Repair(repair::Args),
    /// Cancel a job; what is finished stays
    Cancel(say::Args),
    /// Hold a job up: within seconds no chunk of it is begun. Its window goes on
    Pause(say::Args),
    /// Let a job go on that was held up, within half a minute
    Resume(say::Args),
    /// List the tenant's jobs
    List(list::Args),
    /// Declare or check the queues on RabbitMQ: an operator's, and once for a namespace
    Topology(topology::Args),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// The program. It stands here and not in `bin/`, because a program that awaits a library's futures compiles them all
/// once more.
#[tokio::main]
pub async fn main() -> ExitCode {
    let cli = Cli::parse();
    // Quiet by default: the libraries' own words about retries are for debugging.
    let filter = EnvFilter::try_from_env("VECMILL_LOG").unwrap_or_else(|_| EnvFilter::new("off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    run(cli).await
}

/// Runs a command; the exit code tells how it went.
async fn run(cli: Cli) -> ExitCode {
    let result = match cli.command {
        Command::Submit(args) => submit::run(args).await,
        Command::Status(args) => status::run(args).await,
        Command::Get(args) => get::run(args).await,
        Command::Repair(args) => repair::run(args).await,
        Command::Cancel(args) => say::run(args, door::Word::Cancel).await,
        Command::Pause(args) => say::run(args, door::Word::Pause).await,
        Command::Resume(args) => say::run(args, door::Word::Resume).await,
        Command::List(args) => list::run(args).await,
        Command::Topology(args) => topology::run(args).await,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "vecmill", &mut std::io::stdout());
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
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
