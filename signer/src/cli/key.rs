//! `vecmill-signer key create | list`.

use std::fmt::Write as _;

use clap::{Subcommand, value_parser};
use serde::Serialize;

use crate::claims::TenantId;
use crate::config::Paths;
use crate::store::{NewKey, Store};
use crate::time::unix_now;
use crate::vault::Vault;

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Create an API key and print it, this once
    #[command(after_help = "Example:\n  vecmill-signer key create --tenant acme --role writer --expires-days 90")]
    Create {
        /// The tenant it acts for
        #[arg(long, env = "VECMILL_SIGNER_TENANT", value_name = "NAME")]
        tenant: TenantId,
        /// What it may do: admin, writer or reader
        #[arg(long, env = "VECMILL_SIGNER_ROLE", value_name = "ROLE")]
        role: String,
        /// Days until it stops working [default: it does not]
        // A hundred years: more is a slip of the finger.
        #[arg(long, env = "VECMILL_SIGNER_EXPIRES_DAYS", value_name = "DAYS", value_parser = value_parser!(u64).range(1..=36_500))]
        expires_days: Option<u64>,
        /// Print JSON
        #[arg(long, env = "VECMILL_SIGNER_JSON")]
        json: bool,
    },
    /// List the API keys, without their secrets
    #[command(after_help = "Example:\n  vecmill-signer key list --json")]
    List {
        /// Print JSON
        #[arg(long, env = "VECMILL_SIGNER_JSON")]
        json: bool,
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

pub(super) async fn run(paths: &Paths, command: KeyCommand) -> anyhow::Result<()> {
    let store = Store::open(&paths.database).await?;
    match command {
        KeyCommand::Create { tenant, role, expires_days, json } => {
            let vault = Vault::open(&paths.master_key_file)?;
            // Made under another master key, the new key would never be recognised.
            store.signing_keys(&vault).await?;
            let new = NewKey { tenant, role, expires_s: expires_days.map(|days| unix_now() + days * 24 * 3600) };
            let key = store.create_key(&vault, &new, "cli").await?;
            let created = Created {
                id: key.id(),
                key: key.expose(),
                tenant: &new.tenant,
                role: &new.role,
                expires_s: new.expires_s,
            };
            super::print(json, &created, || format!("{}\n\nThe key is shown this once: keep it now.", created.key))
        }
        KeyCommand::List { json } => {
            let keys = store.keys().await?;
            super::print(json, &keys, || {
                let mut table = format!("{:<16} {:<24} {:<8} {:<20} state\n", "key", "tenant", "role", "created");
                for key in &keys {
                    let state = match (key.revoked_s, key.expires_s) {
                        (Some(at), _) => format!("revoked {}", super::moment(at)),
                        (None, Some(at)) if at <= unix_now() => format!("expired {}", super::moment(at)),
                        (None, Some(at)) => format!("expires {}", super::moment(at)),
                        (None, None) => "active".to_owned(),
                    };
                    let created = super::moment(key.created_s);
                    // Writing to a string can't fail.
                    let _ = writeln!(
                        table,
                        "{:<16} {:<24} {:<8} {created:<20} {state}",
                        key.id,
                        key.tenant.as_str(),
                        key.role
                    );
                }
                table
            })
        }
    }
}
