//! `vecmill-signer tenant create | list`.

use std::fmt::Write as _;

use clap::{Args, Subcommand, value_parser};

use crate::claims::{Limits, TenantId};
use crate::config::Paths;
use crate::store::{Store, TenantSettings};
use crate::verify::GRANT_LIFETIME_S_MAX;

#[derive(Debug, Subcommand)]
pub(super) enum TenantCommand {
    /// Create a tenant
    #[command(
        after_help = "Example:\n  vecmill-signer tenant create acme --models Qwen/Qwen3-Embedding-4B --rows-per-job 1000000"
    )]
    Create {
        /// Its name: 1 to 63 characters of a-z, 0-9 and '-'
        name: TenantId,
        #[command(flatten)]
        settings: SettingsArgs,
        /// Print JSON
        #[arg(long, env = "VECMILL_SIGNER_JSON")]
        json: bool,
    },
    /// List the tenants
    #[command(after_help = "Example:\n  vecmill-signer tenant list --json")]
    List {
        /// Print JSON
        #[arg(long, env = "VECMILL_SIGNER_JSON")]
        json: bool,
    },
}

/// What a tenant may use. The defaults are those of [`TenantSettings`].
#[derive(Debug, Args)]
pub(super) struct SettingsArgs {
    /// Models the tenant may use, separated by commas; an empty value allows none
    #[arg(long, env = "VECMILL_SIGNER_MODELS", value_name = "NAMES", default_value_t = TenantSettings::default().models.join(","))]
    models: String,
    /// Tokens that come back each minute
    #[arg(long, env = "VECMILL_SIGNER_TOKENS_PER_MINUTE", value_name = "NUMBER", value_parser = value_parser!(u64).range(1..), default_value_t = TenantSettings::default().limits.tokens_per_minute)]
    tokens_per_minute: u64,
    /// Tokens that may be spent at once [default: as many as a minute's]
    #[arg(long, env = "VECMILL_SIGNER_TOKENS_BURST", value_name = "NUMBER", value_parser = value_parser!(u64).range(1..))]
    tokens_burst: Option<u64>,
    /// Tokens in one UTC day
    #[arg(long, env = "VECMILL_SIGNER_TOKENS_PER_DAY", value_name = "NUMBER", value_parser = value_parser!(u64).range(1..), default_value_t = TenantSettings::default().limits.tokens_per_day)]
    tokens_per_day: u64,
    /// Most rows in one job
    #[arg(long, env = "VECMILL_SIGNER_ROWS_PER_JOB", value_name = "NUMBER", value_parser = value_parser!(u64).range(1..), default_value_t = TenantSettings::default().rows_per_job)]
    rows_per_job: u64,
    /// Longest completion window in seconds; a grant lives no longer than this
    #[arg(long, env = "VECMILL_SIGNER_WINDOW_S_MAX", value_name = "SECONDS", value_parser = value_parser!(u64).range(60..=GRANT_LIFETIME_S_MAX), default_value_t = TenantSettings::default().window_s_max)]
    window_s_max: u64,
}

impl From<SettingsArgs> for TenantSettings {
    fn from(args: SettingsArgs) -> Self {
        let models = args.models.split(',').map(str::trim).filter(|model| !model.is_empty());
        Self {
            models: models.map(str::to_owned).collect(),
            limits: Limits {
                tokens_per_minute: args.tokens_per_minute,
                tokens_burst: args.tokens_burst.unwrap_or(args.tokens_per_minute),
                tokens_per_day: args.tokens_per_day,
            },
            rows_per_job: args.rows_per_job,
            window_s_max: args.window_s_max,
        }
    }
}

pub(super) async fn run(paths: &Paths, command: TenantCommand) -> anyhow::Result<()> {
    let store = Store::open(&paths.database).await?;
    match command {
        TenantCommand::Create { name, settings, json } => {
            store.create_tenant(&name, &settings.into(), "cli").await?;
            let tenant = store.tenant(&name).await?;
            super::print(json, &tenant, || {
                format!("Tenant {name} is there. Next: vecmill-signer key create --tenant {name} --role writer")
            })
        }
        TenantCommand::List { json } => {
            let tenants = store.tenants().await?;
            super::print(json, &tenants, || {
                let mut table = format!("{:<24} {:<10} {:<20} models\n", "tenant", "status", "created");
                for tenant in &tenants {
                    let status = if tenant.active { "active" } else { "suspended" };
                    let created = super::moment(tenant.created_s);
                    let models = tenant.settings.models.join(",");
                    // Writing to a string can't fail.
                    let _ = writeln!(table, "{:<24} {status:<10} {created:<20} {models}", tenant.id.as_str());
                }
                table
            })
        }
    }
}
