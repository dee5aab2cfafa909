//! `vecmill get`.

use std::path::PathBuf;

use vecmill_signer::claims::JobId;

use super::{
    connection::Connection,
    output::{Failure, bar, grouped, print_json},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Job, as `submit` printed it
    job: JobId,
    /// Folder to write to; parts that are there already are kept
    #[arg(long, env = "VECMILL_OUT", value_name = "DIR")]
    out: PathBuf,
    /// Print the result as JSON
    #[arg(long, env = "VECMILL_JSON")]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let door = args.connection.door(None).await?;
    let bar = bar(0, "parts").with_message("fetching");
    let fetched = door
        .fetch(&args.job, &args.out, |there, parts| {
            bar.set_length(parts as u64);
            bar.set_position(there as u64);
        })
        .await;
    bar.finish_and_clear();
    let fetched = fetched?;
    if args.json {
        print_json(&fetched);
        return Ok(());
    }
    println!("{} parts in {} ({} were there)", fetched.parts, fetched.dir.display(), fetched.kept);
    if fetched.errors > 0 {
        println!("{} rows have no vector: {}", grouped(fetched.errors), fetched.dir.join("errors.jsonl").display());
    }
    if !fetched.complete {
        println!("the job is not complete: these are the parts finished so far");
    }
    Ok(())
}
