//! `vecmill repair`.

use vecmill_signer::claims::JobId;

use super::{
    connection::Connection,
    output::{Failure, bar, print_json},
    submit::nobody_computes,
};
use crate::{prepare::Event, topology::BrokerSettings};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Job, as `submit` printed it
    job: JobId,
    /// Hours within which the rest must be done
    #[arg(long, env = "VECMILL_WINDOW_HOURS", value_name = "H", default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=168))]
    window_hours: u64,
    /// Print the result as JSON
    #[arg(long, env = "VECMILL_JSON")]
    json: bool,
    #[command(flatten)]
    broker: BrokerSettings,
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let door = args.connection.door(Some(&args.broker)).await?;
    let bar = bar(0, "chunks").with_message("publishing");
    let repaired = door
        .repair(&args.job, args.window_hours, |event| match event {
            Event::Publishing(messages) => bar.set_length(u64::from(messages)),
            Event::Published => bar.inc(1),
            Event::NobodyComputes(precision) => bar.suspend(|| nobody_computes(precision)),
            _ => {}
        })
        .await;
    bar.finish_and_clear();
    let repaired = repaired?;
    if args.json {
        print_json(&repaired);
    } else if repaired.published == 0 {
        println!("job {} is complete: there is nothing to repair", args.job);
    } else {
        println!("job {} was {}: {} of {} chunks go on", args.job, repaired.was, repaired.published, repaired.chunks);
    }
    Ok(())
}
