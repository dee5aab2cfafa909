//! `vecmill-signer bootstrap`.

use clap::Args;
use serde::Serialize;

use super::tenant::SettingsArgs;
use crate::claims::TenantId;
use crate::config::Paths;
use crate::store::{FirstTenant, Store};

#[derive(Debug, Args)]
pub(super) struct BootstrapArgs {
    /// Name of the first tenant
    #[arg(long, env = "VECMILL_SIGNER_TENANT", value_name = "NAME", default_value = "default")]
    tenant: TenantId,
    #[command(flatten)]
    settings: SettingsArgs,
    /// Print JSON
    #[arg(long, env = "VECMILL_SIGNER_JSON")]
    json: bool,
}

#[derive(Serialize)]
struct Output<'a> {
    tenant: &'a TenantId,
    admin_key: &'a str,
    writer_key: &'a str,
    database: String,
    master_key_file: String,
}

pub(super) async fn run(paths: &Paths, args: BootstrapArgs) -> anyhow::Result<()> {
    let store = Store::open_or_create(&paths.database).await?;
    let first = FirstTenant { id: args.tenant, settings: args.settings.into() };
    let done = store.bootstrap(&paths.master_key_file, &first).await?;
    store.close().await;
    let output = Output {
        tenant: &first.id,
        admin_key: done.admin.expose(),
        writer_key: done.writer.expose(),
        database: paths.database.display().to_string(),
        master_key_file: paths.master_key_file.display().to_string(),
    };
    super::print(args.json, &output, || {
        format!(
            "The signer is set up.\n  tenant          {}\n  admin key       {}\n  writer key      {}\n  \
             database        {}\n  master key file {}\n\n\
             The keys are shown this once and stored nowhere: keep them now. Back up the master key file apart from\n\
             the database; without it no stored key works.",
            output.tenant, output.admin_key, output.writer_key, output.database, output.master_key_file
        )
    })
}
