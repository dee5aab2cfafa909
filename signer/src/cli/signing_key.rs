//! `vecmill-signer signing-key ..`.

use clap::{Args, Subcommand};

use super::table::{moment, moment_or, table};
use super::{Context, Output};
use crate::store::SigningKeyInfo;

#[derive(Debug, Subcommand)]
pub(super) enum SigningKeyCommand {
    /// List the keys that sign tokens, signed them, or will
    #[command(after_help = "Example:\n  vecmill-signer signing-key list")]
    List {
        #[command(flatten)]
        output: Output,
    },
    /// Add a key that takes over in five and a half minutes, when every verifier knows it
    #[command(after_help = "The old key is published until the last grant of it has expired: no job breaks.\n\n\
                            Example:\n  vecmill-signer signing-key rotate")]
    Rotate {
        #[command(flatten)]
        output: Output,
    },
    /// Stop publishing a key that has not signed yet
    #[command(after_help = "Keys that have signed retire by themselves once no grant of them can be alive.\n\n\
                            Example:\n  vecmill-signer signing-key retire 9kXq..")]
    Retire(Kid),
    /// Withdraw a compromised key: nothing it ever signed is believed from a few seconds on
    #[command(
        after_help = "If it is the one that signs, a new one takes over within seconds; tokens are minted again from then on. Jobs\n\
                            that it granted are refused: submit them again.\n\n\
                            Example:\n  vecmill-signer signing-key withdraw 9kXq.."
    )]
    Withdraw(Kid),
}

#[derive(Debug, Args)]
pub(super) struct Kid {
    /// The key's id
    // One in thirty-two begins with a hyphen.
    #[arg(allow_hyphen_values = true)]
    kid: String,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(context: &Context, command: SigningKeyCommand) -> anyhow::Result<()> {
    let (store, actor) = (context.store().await?, context.actor());
    match command {
        SigningKeyCommand::List { output } => {
            let keys = store.list_signing_keys().await?;
            output.print(&keys, || shown(&keys))
        }
        SigningKeyCommand::Rotate { output } => {
            let made = store.rotate_signing_key(&context.vault(&store).await?, actor).await?;
            output.print(&made, || format!("The key {} signs from {} on.", made.kid, moment(made.signs_from_s)))
        }
        SigningKeyCommand::Retire(Kid { kid, output }) => {
            let retired = store.retire_signing_key(&kid, actor).await?;
            output.print(&retired, || shown(std::slice::from_ref(&retired)))
        }
        SigningKeyCommand::Withdraw(Kid { kid, output }) => {
            let withdrawn = store.withdraw_signing_key(&context.vault(&store).await?, &kid, actor).await?;
            output.print(&withdrawn, || {
                format!("The key {kid} is withdrawn: nothing it signed is believed from a few seconds on.")
            })
        }
    }
}

fn shown(keys: &[SigningKeyInfo]) -> String {
    let rows = keys.iter().map(|key| {
        let end = moment_or(key.retired_s, "-");
        [key.kid.clone(), key.state.as_str().to_owned(), moment(key.created_s), moment(key.signs_from_s), end]
    });
    table(["signing key", "state", "created", "signs from", "published until"], rows)
}
