//! The command line. One file a command; this one reads the arguments and turns failures into exit codes.

mod bootstrap;
mod key;
mod serve;
mod tenant;

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use serde::Serialize;

use crate::config::{ConfigError, Paths, ServeArgs};
use crate::store::StoreError;

const EXAMPLES: &str = "\
Examples:
  vecmill-signer bootstrap --tenant acme
  vecmill-signer serve
  vecmill-signer tenant create globex --tokens-per-minute 1000000
  vecmill-signer key create --tenant globex --role writer --json

Every flag can be set by the environment variable that its help names.
Exit codes: 0 done, 1 failed, 2 wrong arguments or settings, 3 bootstrapped already.";

/// The arguments of `vecmill-signer`.
#[derive(Debug, Parser)]
#[command(name = "vecmill-signer", version, about = "Who may do what: API keys in, signed tokens out", after_help = EXAMPLES)]
pub struct Cli {
    #[command(flatten)]
    paths: Paths,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the HTTP service
    #[command(after_help = "Example:\n  vecmill-signer serve --listen 127.0.0.1:8700 --log-format json")]
    Serve(ServeArgs),
    /// Set up a new signer: database, master key, signing key, first tenant, an admin key and a writer key
    #[command(
        after_help = "Example:\n  vecmill-signer bootstrap --tenant acme --json\n\nThe keys are printed once and stored nowhere."
    )]
    Bootstrap(bootstrap::BootstrapArgs),
    /// Create and list tenants
    #[command(subcommand)]
    Tenant(tenant::TenantCommand),
    /// Create and list API keys
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  vecmill-signer completions bash > /etc/bash_completion.d/vecmill-signer")]
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// Runs the command and reports a failure on standard error.
pub async fn run(cli: Cli) -> ExitCode {
    let outcome = match cli.command {
        Command::Serve(args) => serve::run(&cli.paths, &args).await,
        Command::Bootstrap(args) => bootstrap::run(&cli.paths, args).await,
        Command::Tenant(command) => tenant::run(&cli.paths, command).await,
        Command::Key(command) => key::run(&cli.paths, command).await,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "vecmill-signer", &mut io::stdout());
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If standard error is gone there is nobody left to tell.
            let _ = writeln!(io::stderr(), "vecmill-signer: {error:#}");
            exit_code(&error)
        }
    }
}

fn exit_code(error: &anyhow::Error) -> ExitCode {
    if error.is::<ConfigError>() {
        ExitCode::from(2)
    } else if matches!(error.downcast_ref(), Some(StoreError::AlreadyBootstrapped)) {
        ExitCode::from(3)
    } else {
        ExitCode::FAILURE
    }
}

/// Prints `value` as JSON if `json` is set, else `text`.
fn print(json: bool, value: &impl Serialize, text: impl FnOnce() -> String) -> anyhow::Result<()> {
    let output = if json { serde_json::to_string_pretty(value)? } else { text() };
    writeln!(io::stdout(), "{}", output.trim_end())?;
    Ok(())
}

/// A Unix time for people, in UTC.
fn moment(unix_s: u64) -> String {
    let moment = i64::try_from(unix_s).ok().and_then(|unix_s| jiff::Timestamp::from_second(unix_s).ok());
    moment.map_or_else(|| "?".to_owned(), |moment| moment.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_fit_together() {
        Cli::command().debug_assert();
    }
}
