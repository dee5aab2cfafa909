//! `vecmill-signer role ..`.

use clap::{Args, Subcommand};

use super::table::table;
use super::{Context, Output};
use crate::claims::Scope;
use crate::store::Role;

#[derive(Debug, Subcommand)]
pub(super) enum RoleCommand {
    /// List the roles and what each may do
    #[command(after_help = "Example:\n  vecmill-signer role list")]
    List {
        #[command(flatten)]
        output: Output,
    },
    /// Create a role of your own
    #[command(after_help = "Example:\n  vecmill-signer role create embedder --scopes embed,jobs:read")]
    Create(RoleArgs),
    /// Give a role of your own other scopes, for its keys' next tokens
    #[command(after_help = "Example:\n  vecmill-signer role set embedder --scopes embed")]
    Set(RoleArgs),
    /// Delete a role that no key has
    #[command(after_help = "Example:\n  vecmill-signer role delete embedder")]
    Delete {
        /// Its name
        name: String,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Debug, Args)]
pub(super) struct RoleArgs {
    /// Its name
    name: String,
    /// What it may do, separated by commas: jobs:submit, jobs:read, vectors:read, jobs:cancel, jobs:delete, embed, admin
    #[arg(long, env = "VECMILL_SIGNER_SCOPES", value_name = "SCOPES", value_delimiter = ',', required = true)]
    scopes: Vec<Scope>,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(context: &Context, command: RoleCommand) -> anyhow::Result<()> {
    let (store, actor) = (context.store().await?, context.actor());
    match command {
        RoleCommand::List { output } => {
            let roles = store.roles().await?;
            output.print(&roles, || shown(&roles))
        }
        RoleCommand::Create(RoleArgs { name, scopes, output }) => {
            let role = store.create_role(&name, &scopes, actor).await?;
            output.print(&role, || shown(std::slice::from_ref(&role)))
        }
        RoleCommand::Set(RoleArgs { name, scopes, output }) => {
            let role = store.set_role(&name, &scopes, actor).await?;
            output.print(&role, || shown(std::slice::from_ref(&role)))
        }
        RoleCommand::Delete { name, output } => {
            store.delete_role(&name, actor).await?;
            output.print(&serde_json::json!({"deleted": name}), || format!("The role {name} is gone."))
        }
    }
}

fn shown(roles: &[Role]) -> String {
    let rows = roles.iter().map(|role| {
        let kind = if role.builtin { "built in" } else { "your own" };
        [role.name.clone(), kind.to_owned(), Scope::join(&role.scopes)]
    });
    table(["role", "kind", "scopes"], rows)
}
