//! `vecmill-signer bootstrap`.

use clap::Args;
use serde::Serialize;

use super::{Context, Output};
use crate::claims::TenantId;
use crate::store::{FirstTenant, SettingsPatch, Store, TenantSettings};

#[derive(Debug, Args)]
pub(super) struct BootstrapArgs {
    /// Name of the first tenant, the operator's: its admins administer every tenant
    #[arg(long, env = "VECMILL_SIGNER_TENANT", value_name = "NAME", default_value = "default")]
    tenant: TenantId,
    #[command(flatten)]
    settings: SettingsPatch,
    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
struct Bootstrap<'a> {
    tenant: &'a TenantId,
    admin_key: &'a str,
    writer_key: &'a str,
    database: String,
    master_key_file: String,
}

pub(super) async fn run(context: &Context, args: BootstrapArgs) -> anyhow::Result<()> {
    let database = context.database()?;
    let settings = args.settings.apply(TenantSettings::default())?;
    let store = Store::open_or_create(&database).await?;
    let first = FirstTenant { id: args.tenant, settings };
    let done = store.bootstrap(&context.paths().master_key_file, &first, context.actor()).await?;
    store.close().await;
    let made = Bootstrap {
        tenant: &first.id,
        admin_key: done.admin.expose(),
        writer_key: done.writer.expose(),
        database: database.to_string(),
        master_key_file: context.paths().master_key_file.display().to_string(),
    };
    args.output.print(&made, || {
        format!(
            "The signer is set up.\n  tenant          {}\n  admin key       {}\n  writer key      {}\n  \
             database        {}\n  master key file {}\n\n\
             The keys are shown this once and stored nowhere: keep them now. Back up the master key file apart from\n\
             the database; without it no stored key works.",
            made.tenant, made.admin_key, made.writer_key, made.database, made.master_key_file
        )
    })
}
