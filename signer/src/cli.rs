//! The command line. One file a command; this one reads the arguments and turns failures into exit codes.

mod audit;
mod backup;
mod bootstrap;
mod key;
mod role;
mod serve;
mod signing_key;
mod table;
mod tenant;

use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use serde::Serialize;

use crate::config::{ConfigError, Paths, ServeArgs};
use crate::store::{Database, Store, StoreError};
use crate::vault::{Vault, VaultError};

const EXAMPLES: &str = "\
Examples:
  vecmill-signer bootstrap --tenant acme
  vecmill-signer serve
  vecmill-signer tenant create globex --tokens-per-minute 1000000
  vecmill-signer key create --tenant globex --role writer --json
  vecmill-signer limit set globex --tokens-per-day 1000000000
  vecmill-signer key revoke ngqgbnoo2x74a5sp
  vecmill-signer audit --tenant globex

Commands work on the policy database itself and need no running service; what they change is in force at every running
signer within half a second, and at every worker and gateway within seconds.
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
    /// Tenants: create, list, show, suspend, resume, void-tokens
    #[command(subcommand)]
    Tenant(tenant::TenantCommand),
    /// API keys: create, list, rotate, revoke
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Roles, each a set of scopes: list, create, set, delete
    #[command(subcommand)]
    Role(role::RoleCommand),
    /// A tenant's limits: show, set
    #[command(subcommand)]
    Limit(tenant::LimitCommand),
    /// A job's grants: revoke
    #[command(subcommand)]
    Job(key::JobCommand),
    /// The keys that sign tokens: list, rotate, retire, withdraw
    #[command(subcommand)]
    SigningKey(signing_key::SigningKeyCommand),
    /// Who changed what, newest first
    #[command(after_help = "Example:\n  vecmill-signer audit --tenant acme --limit 20")]
    Audit(audit::AuditArgs),
    /// Copy the SQLite database while it is in use
    #[command(
        after_help = "Postgres has pg_dump for it.\n\nExample:\n  vecmill-signer backup /backups/signer-2026-01-31.db"
    )]
    Backup(backup::BackupArgs),
    /// Put a copy back where no database is, after checking that it is whole and opens with the master key
    #[command(
        after_help = "Stop the service and move the old database away first.\n\nExample:\n  vecmill-signer restore /backups/signer-2026-01-31.db"
    )]
    Restore(backup::RestoreArgs),
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  vecmill-signer completions bash > /etc/bash_completion.d/vecmill-signer")]
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// Where a command works, and in whose name.
struct Context {
    paths: Paths,
    actor: String,
}

impl Context {
    fn new(paths: Paths) -> Self {
        // The kernel's word on who runs this, not the environment's.
        let user = std::fs::metadata("/proc/self").map(|process| process.uid());
        Self { paths, actor: user.map_or_else(|_| "cli".to_owned(), |uid| format!("cli:{uid}")) }
    }

    fn paths(&self) -> &Paths {
        &self.paths
    }

    /// The name in the audit.
    fn actor(&self) -> &str {
        &self.actor
    }

    fn database(&self) -> Result<Database, ConfigError> {
        self.paths.database()
    }

    async fn store(&self) -> anyhow::Result<Store> {
        Ok(Store::open(self.database()?).await?)
    }

    fn master_key(&self) -> Result<Vault, VaultError> {
        Vault::open(&self.paths.master_key_file)
    }

    /// The master key, once it is certain to be this database's: what is made under another would never be recognised.
    async fn vault(&self, store: &Store) -> anyhow::Result<Vault> {
        let vault = self.master_key()?;
        match store.signing_keys(&vault).await {
            // Between a withdrawal and the next key's start, or with keys in files: there is nothing to compare with.
            Ok(_) | Err(StoreError::NoSigningKey) => Ok(vault),
            Err(error) => Err(error.into()),
        }
    }
}

/// How to print the answer.
#[derive(Debug, Args)]
struct Output {
    /// Print JSON
    #[arg(long, env = "VECMILL_SIGNER_JSON")]
    json: bool,
}

impl Output {
    /// Prints `value` as JSON if that is asked for, else `text`.
    fn print(&self, value: &impl Serialize, text: impl FnOnce() -> String) -> anyhow::Result<()> {
        let output = if self.json { serde_json::to_string_pretty(value)? } else { text() };
        writeln!(io::stdout(), "{}", output.trim_end())?;
        Ok(())
    }
}

/// Runs the command and reports a failure on standard error.
pub async fn run(cli: Cli) -> ExitCode {
    let context = Context::new(cli.paths);
    let outcome = match cli.command {
        Command::Serve(args) => serve::run(&context.paths, &args).await,
        Command::Bootstrap(args) => bootstrap::run(&context, args).await,
        Command::Tenant(command) => tenant::run(&context, command).await,
        Command::Key(command) => key::run(&context, command).await,
        Command::Role(command) => role::run(&context, command).await,
        Command::Limit(command) => tenant::limit(&context, command).await,
        Command::Job(command) => key::job(&context, command).await,
        Command::SigningKey(command) => signing_key::run(&context, command).await,
        Command::Audit(args) => audit::run(&context, args).await,
        Command::Backup(args) => backup::backup(&context, args).await,
        Command::Restore(args) => backup::restore(&context, args).await,
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
    match error.downcast_ref() {
        Some(StoreError::AlreadyBootstrapped) => ExitCode::from(3),
        Some(StoreError::BadSetting(_)) => ExitCode::from(2),
        _ if error.is::<ConfigError>() => ExitCode::from(2),
        _ => ExitCode::FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_fit_together() {
        Cli::command().debug_assert();
    }
}
