//! `vecmill-signer key ..`, and `job revoke`.

use clap::{Subcommand, value_parser};
use serde::Serialize;

use super::table::{moment, moment_or, table};
use super::{Context, Output};
use crate::claims::{JobId, TenantId};
use crate::server::{OVERLAP_S_DEFAULT, OVERLAP_S_MAX};
use crate::store::{KeyInfo, NewKey};
use crate::time::unix_now;

const HOUR_S: u64 = 3600;

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Create an API key and print it, this once
    #[command(after_help = "Example:\n  vecmill-signer key create --tenant acme --role writer --expires-days 90")]
    Create {
        /// The tenant it acts for
        #[arg(long, env = "VECMILL_SIGNER_TENANT", value_name = "NAME")]
        tenant: TenantId,
        /// What it may do: admin, writer, reader, or a role of your own
        #[arg(long, env = "VECMILL_SIGNER_ROLE", value_name = "ROLE")]
        role: String,
        /// Days until it stops working [default: it does not]
        // A hundred years: more is a slip of the finger.
        #[arg(long, env = "VECMILL_SIGNER_EXPIRES_DAYS", value_name = "DAYS", value_parser = value_parser!(u64).range(1..=36_500))]
        expires_days: Option<u64>,
        #[command(flatten)]
        output: Output,
    },
    /// List the API keys, without their secrets
    #[command(after_help = "Example:\n  vecmill-signer key list --tenant acme")]
    List {
        /// Only this tenant's
        #[arg(long, env = "VECMILL_SIGNER_TENANT", value_name = "NAME")]
        tenant: Option<TenantId>,
        #[command(flatten)]
        output: Output,
    },
    /// Create a key that takes over from another; the old one works on for the overlap
    #[command(after_help = "Example:\n  vecmill-signer key rotate ngqgbnoo2x74a5sp --overlap-hours 48")]
    Rotate {
        /// Id of the key to replace: what stands between the first two underscores of it
        id: String,
        /// Hours that both work, 0 to 2208 (a quarter)
        #[arg(long, env = "VECMILL_SIGNER_OVERLAP_HOURS", value_name = "HOURS", default_value_t = OVERLAP_S_DEFAULT / HOUR_S, value_parser = value_parser!(u64).range(0..=OVERLAP_S_MAX / HOUR_S))]
        overlap_hours: u64,
        #[command(flatten)]
        output: Output,
    },
    /// Revoke a key: it gets no tokens, and those it was given, and the grants of its jobs, are void within seconds
    #[command(after_help = "Example:\n  vecmill-signer key revoke ngqgbnoo2x74a5sp")]
    Revoke {
        /// Id of the key: what stands between the first two underscores of it
        id: String,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum JobCommand {
    /// Void the grants that a job has so far: its chunks are refused within seconds. It may be submitted again
    #[command(after_help = "Example:\n  vecmill-signer job revoke 0123456789abcdef0123456789abcdef --tenant acme")]
    Revoke {
        /// The job
        id: JobId,
        /// The job's tenant
        #[arg(long, env = "VECMILL_SIGNER_TENANT", value_name = "NAME")]
        tenant: TenantId,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Serialize)]
struct Created<'a> {
    id: &'a str,
    key: &'a str,
    tenant: &'a TenantId,
    role: &'a str,
    expires_s: Option<u64>,
}

#[derive(Serialize)]
struct Rotated<'a> {
    #[serde(flatten)]
    created: Created<'a>,
    old_id: &'a str,
    old_expires_s: u64,
}

pub(super) async fn run(context: &Context, command: KeyCommand) -> anyhow::Result<()> {
    let (store, actor) = (context.store().await?, context.actor());
    match command {
        KeyCommand::Create { tenant, role, expires_days, output } => {
            let vault = context.vault(&store).await?;
            let new = NewKey { tenant, role, expires_s: expires_days.map(|days| unix_now() + days * 24 * HOUR_S) };
            let key = store.create_key(&vault, &new, actor).await?;
            let created = Created {
                id: key.id(),
                key: key.expose(),
                tenant: &new.tenant,
                role: &new.role,
                expires_s: new.expires_s,
            };
            output.print(&created, || format!("{}\n\nThe key is shown this once: keep it now.", created.key))
        }
        KeyCommand::List { tenant, output } => {
            let keys = store.keys_of(tenant.as_ref()).await?;
            output.print(&keys, || {
                let rows = keys.iter().map(|key| {
                    let used = moment_or(key.last_used_s, "never");
                    let [tenant, role] = [key.tenant.to_string(), key.role.clone()];
                    [key.id.clone(), tenant, role, moment(key.created_s), used, state(key)]
                });
                table(["key", "tenant", "role", "created", "last used", "state"], rows)
            })
        }
        KeyCommand::Rotate { id, overlap_hours, output } => {
            let vault = context.vault(&store).await?;
            let rotated = store.rotate_key(&vault, None, &id, overlap_hours * HOUR_S, actor).await?;
            let printed = Rotated {
                created: Created {
                    id: rotated.key.id(),
                    key: rotated.key.expose(),
                    tenant: &rotated.info.tenant,
                    role: &rotated.info.role,
                    expires_s: rotated.info.expires_s,
                },
                old_id: &id,
                old_expires_s: rotated.old_expires_s,
            };
            output.print(&printed, || {
                format!(
                    "{}\n\nThe key is shown this once: keep it now. The old key {id} works until {}.",
                    printed.created.key,
                    moment(printed.old_expires_s)
                )
            })
        }
        KeyCommand::Revoke { id, output } => {
            let info = store.revoke_key(None, &id, actor).await?;
            output.print(&info, || {
                format!("The key {id} of {} is revoked; what it was given is void within seconds.", info.tenant)
            })
        }
    }
}

pub(super) async fn job(context: &Context, command: JobCommand) -> anyhow::Result<()> {
    let JobCommand::Revoke { id, tenant, output } = command;
    context.store().await?.revoke_job(&tenant, &id, context.actor()).await?;
    output.print(&serde_json::json!({"tenant": tenant, "job": id}), || {
        format!("The grants of job {id} of {tenant} are void within seconds. Submitted again, it gets a new one.")
    })
}

fn state(key: &KeyInfo) -> String {
    match (key.revoked_s, key.expires_s) {
        (Some(at), _) => format!("revoked {}", moment(at)),
        (None, Some(at)) if at <= unix_now() => format!("expired {}", moment(at)),
        (None, Some(at)) => format!("expires {}", moment(at)),
        (None, None) => "active".to_owned(),
    }
}
