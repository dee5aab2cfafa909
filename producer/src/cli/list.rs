//! `vecmill list`.

use super::{
    connection::Connection,
    output::{Failure, grouped, print_json},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print as JSON, one job a line
    #[arg(long, env = "VECMILL_JSON")]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let statuses = args.connection.door(None).await?.list().await?;
    if args.json {
        statuses.iter().for_each(print_json);
        return Ok(());
    }
    if statuses.is_empty() {
        println!("the tenant has no jobs");
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
