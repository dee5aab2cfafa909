//! `vecmill list`.

use futures_util::{StreamExt, TryStreamExt, stream};
use vecmill_signer::claims::Scope;

use super::{
    connection::Connection,
    output::{Failure, grouped, print_json},
};
use crate::status::{JobStatus, list_jobs};

/// Jobs looked at once; each is a handful of S3 requests.
const LOOKS_MAX: usize = 8;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print as JSON, one job a line
    #[arg(long, env = "VECMILL_JSON")]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let (store, tenant) = args.connection.tenant(Scope::JobsRead).await?;
    let jobs = list_jobs(&store, &tenant).await?;
    let mut statuses: Vec<JobStatus> =
        stream::iter(&jobs).map(|job| JobStatus::read(&store, &tenant, job)).buffered(LOOKS_MAX).try_collect().await?;
    // What `status` would call unknown is not listed either.
    statuses.retain(JobStatus::is_known);
    statuses.sort_by_key(|status| status.submitted_at);
    if args.json {
        statuses.iter().for_each(print_json);
        return Ok(());
    }
    if statuses.is_empty() {
        println!("tenant {tenant} has no jobs");
        return Ok(());
    }
    println!("{:32}  {:10}  {:>14}  {:>6}  {:20}  CORPUS", "JOB", "STATE", "TEXTS", "DONE", "SUBMITTED");
    for status in &statuses {
        let share = 100 * status.rows_done / status.rows.max(1);
        let submitted = status.submitted_at.map(|time| format!("{time:.0}")).unwrap_or_default();
        let name = status.name.as_deref().unwrap_or_default();
        println!(
            "{}  {:10}  {:>14}  {share:>4} %  {submitted:20}  {name}",
            status.job,
            status.state,
            grouped(status.rows)
        );
    }
    Ok(())
}
