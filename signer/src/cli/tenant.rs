//! `vecmill-signer tenant ..` and `limit ..`.

use clap::{Args, Subcommand};

use super::table::{moment, table};
use super::{Context, Output};
use crate::claims::TenantId;
use crate::store::{SettingsPatch, StoreError, Tenant, TenantSettings};

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
        settings: SettingsPatch,
        #[command(flatten)]
        output: Output,
    },
    /// List the tenants
    #[command(after_help = "Example:\n  vecmill-signer tenant list --json")]
    List {
        #[command(flatten)]
        output: Output,
    },
    /// Show one tenant and its limits
    #[command(after_help = "Example:\n  vecmill-signer tenant show acme")]
    Show(Named),
    /// Cut a tenant off: its keys get no tokens, and the tokens and grants it has are void within seconds
    #[command(after_help = "Its queued jobs are refused by the workers and not computed.\n\n\
                            Example:\n  vecmill-signer tenant suspend acme")]
    Suspend(Named),
    /// Let a suspended tenant back in: its keys get tokens again, and jobs must be submitted again
    #[command(after_help = "Example:\n  vecmill-signer tenant resume acme")]
    Resume(Named),
    /// Void every token and grant that a tenant has; its keys get new ones
    #[command(after_help = "Example:\n  vecmill-signer tenant void-tokens acme")]
    VoidTokens(Named),
}

#[derive(Debug, Args)]
pub(super) struct Named {
    /// The tenant
    name: TenantId,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Subcommand)]
pub(super) enum LimitCommand {
    /// Show a tenant's limits
    #[command(after_help = "Example:\n  vecmill-signer limit show acme")]
    Show(Named),
    /// Change some of a tenant's limits; those not named stay. They count from its next token and its next job on
    #[command(
        after_help = "Example:\n  vecmill-signer limit set acme --tokens-per-day 1000000000 --sources 192.0.2.0/24"
    )]
    Set {
        /// The tenant
        name: TenantId,
        #[command(flatten)]
        settings: SettingsPatch,
        #[command(flatten)]
        output: Output,
    },
}

pub(super) async fn run(context: &Context, command: TenantCommand) -> anyhow::Result<()> {
    let (store, actor) = (context.store().await?, context.actor());
    match command {
        TenantCommand::Create { name, settings, output } => {
            store.create_tenant(&name, &settings.apply(TenantSettings::default())?, actor).await?;
            let tenant = store.tenant(&name).await?;
            output.print(&tenant, || {
                format!("Tenant {name} is there. Next: vecmill-signer key create --tenant {name} --role writer")
            })
        }
        TenantCommand::List { output } => {
            let tenants = store.tenants().await?;
            output.print(&tenants, || {
                let rows = tenants.iter().map(|tenant| {
                    let models = tenant.settings.models.join(",");
                    [tenant.id.to_string(), status(tenant).to_owned(), moment(tenant.created_s), models]
                });
                table(["tenant", "status", "created", "models"], rows)
            })
        }
        TenantCommand::Show(Named { name, output }) => show(context, &name, &output).await,
        TenantCommand::Suspend(Named { name, output }) => {
            let tenant = store.set_active(&name, false, actor).await?;
            output.print(&tenant, || {
                format!("Tenant {name} is cut off: nothing of it is served from a few seconds on. `tenant resume {name}` lets it back in.")
            })
        }
        TenantCommand::Resume(Named { name, output }) => {
            let tenant = store.set_active(&name, true, actor).await?;
            output.print(&tenant, || {
                format!("Tenant {name} may work again. Jobs it had queued before are void: submit them again.")
            })
        }
        TenantCommand::VoidTokens(Named { name, output }) => {
            let tenant = store.void_tokens(&name, actor).await?;
            output.print(&tenant, || {
                format!("Every token and grant that {name} had is void. Its keys get new ones; jobs must be submitted again.")
            })
        }
    }
}

pub(super) async fn limit(context: &Context, command: LimitCommand) -> anyhow::Result<()> {
    match command {
        LimitCommand::Show(Named { name, output }) => show(context, &name, &output).await,
        LimitCommand::Set { name, settings, output } => {
            if settings == SettingsPatch::default() {
                let sentence = "name at least one limit to change; `vecmill-signer limit set --help` lists them";
                return Err(StoreError::BadSetting(sentence.to_owned()).into());
            }
            let tenant = context.store().await?.set_limits(&name, settings, context.actor()).await?;
            output.print(&tenant, || described(&tenant))
        }
    }
}

async fn show(context: &Context, name: &TenantId, output: &Output) -> anyhow::Result<()> {
    let tenant = context.store().await?.tenant(name).await?;
    let tenant = tenant.ok_or_else(|| StoreError::NoTenant(name.to_string()))?;
    output.print(&tenant, || described(&tenant))
}

fn status(tenant: &Tenant) -> &'static str {
    match (tenant.active, tenant.operator) {
        (false, _) => "suspended",
        (true, true) => "operator",
        (true, false) => "active",
    }
}

fn described(tenant: &Tenant) -> String {
    let settings = &tenant.settings;
    let limits = &settings.limits;
    let list = |entries: Vec<String>, none: &str| if entries.is_empty() { none.to_owned() } else { entries.join(", ") };
    let rows = [
        ("status", status(tenant).to_owned()),
        ("created", moment(tenant.created_s)),
        ("revocation epoch", tenant.epoch.to_string()),
        ("models", list(settings.models.clone(), "none")),
        ("requests-per-minute", limits.requests_per_minute.to_string()),
        ("tokens-per-minute", limits.tokens_per_minute.to_string()),
        ("tokens-burst", limits.tokens_burst.to_string()),
        ("tokens-per-day", limits.tokens_per_day.to_string()),
        ("queued-tokens", limits.queued_tokens.to_string()),
        ("concurrent-jobs", limits.concurrent_jobs.to_string()),
        ("stored-bytes", limits.stored_bytes.map_or("none".to_owned(), |bytes| bytes.to_string())),
        ("rows-per-job", settings.rows_per_job.to_string()),
        ("dimensions-max", settings.dimensions_max.to_string()),
        ("window-s-max", settings.window_s_max.to_string()),
        ("sources", list(settings.sources.iter().map(ToString::to_string).collect(), "anywhere")),
    ];
    table(["tenant", tenant.id.as_str()], rows.map(|(name, value)| [name.to_owned(), value]))
}
