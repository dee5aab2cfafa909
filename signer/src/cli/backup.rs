//! `vecmill-signer backup` and `restore`, for SQLite.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::{Context, Output};
use crate::store;

#[derive(Debug, Args)]
pub(super) struct BackupArgs {
    /// File to write the copy to; it must not be there yet
    file: PathBuf,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    /// The copy to put back
    file: PathBuf,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn backup(context: &Context, args: BackupArgs) -> anyhow::Result<()> {
    context.store().await?.backup(&args.file).await?;
    args.output.print(&json!({"file": args.file}), || {
        format!(
            "The copy is {}. It opens with the master key only: keep a copy of that elsewhere.",
            args.file.display()
        )
    })
}

pub(super) async fn restore(context: &Context, args: RestoreArgs) -> anyhow::Result<()> {
    let database = context.restore(&args.file).await?;
    args.output.print(&json!({"database": database.display().to_string()}), || {
        format!(
            "{} is back as it was in the copy. What was revoked since the copy was made is valid again: revoke it again.",
            database.display()
        )
    })
}

impl Context {
    async fn restore(&self, copy: &std::path::Path) -> anyhow::Result<PathBuf> {
        let database = self.database()?;
        let path = database.file().ok_or(store::StoreError::SqliteOnly("`restore`"))?.to_owned();
        store::restore(copy, &path, &self.master_key()?, self.actor()).await?;
        Ok(path)
    }
}
