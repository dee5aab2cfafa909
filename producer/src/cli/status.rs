//! `vecmill status`.

use std::time::Duration;

use vecmill_signer::claims::JobId;

use super::{
    connection::Connection,
    door::Watching,
    output::{Failure, bar, grouped, print_json},
};
use crate::split::REJECTED_LISTED_MAX;
use crate::status::{JobState, JobStatus};

/// Between two looks of a watch: one look is a handful of S3 requests.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Looks of a watch that may fail in a row before it gives up: an S3 server that restarts is back by then.
const FAILED_LOOKS_MAX: u32 = 60;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Job, as `submit` printed it
    job: JobId,
    /// Look until the job has ended
    #[arg(long, env = "VECMILL_WATCH")]
    watch: bool,
    /// Print as JSON
    #[arg(long, env = "VECMILL_JSON")]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let mut watching = args.connection.door(None).await?.watch(&args.job).await?;
    if args.watch {
        return wait_for_the_end(watching, &args.job, args.json).await;
    }
    let status = watching.look().await?;
    if args.json {
        print_json(&status)
    } else {
        say(&status)
    }
    Ok(())
}

/// Watches a job, with a bar where somebody looks, and ends as the job does.
pub(super) async fn wait_for_the_end(mut watching: Watching, job: &JobId, json: bool) -> Result<(), Failure> {
    let bar = bar(0, "texts");
    let mut failed_looks = 0;
    let mut look = watching.look().await;
    let status = loop {
        match look {
            Ok(status) => {
                failed_looks = 0;
                bar.set_length(status.rows);
                bar.set_position(status.rows_done);
                let waiting = status.waiting.as_ref().map(|waiting| waiting.message.clone());
                bar.set_message(waiting.unwrap_or_else(|| status.state.to_string()));
                if status.state.is_final() {
                    break status;
                }
            }
            Err(error) if failed_looks < FAILED_LOOKS_MAX => {
                failed_looks += 1;
                bar.set_message(format!("waiting: {}", error.sentences().join("; ")));
                tokio::time::sleep(LOOK_EVERY).await;
            }
            Err(error) => return Err(error),
        }
        look = watching.next().await;
    };
    bar.finish_and_clear();
    if json {
        print_json(&status)
    } else {
        say(&status)
    }
    match status.state {
        JobState::Completed => Ok(()),
        state => Err(Failure::NotCompleted(format!("job {job} ended {state}"))),
    }
}

fn say(status: &JobStatus) {
    let JobStatus { job, state, rows, rows_done, chunks, chunks_done, .. } = status;
    println!("job        {job}");
    println!("state      {state}{}", status.note.as_ref().map(|note| format!(": {note}")).unwrap_or_default());
    if let (Some(name), Some(model), Some(dimensions)) = (&status.name, &status.model, status.dimensions) {
        println!("corpus     {name}");
        let precision = status.precision.map(|precision| format!(", computed in {precision}"));
        println!("model      {model}, {dimensions} dimensions{}", precision.unwrap_or_default());
    }
    let share = 100.0 * *rows_done as f64 / (*rows).max(1) as f64;
    println!(
        "texts      {} of {} ({share:.1} %), in {chunks_done} of {chunks} chunks",
        grouped(*rows_done),
        grouped(*rows)
    );
    if let Some(tokens) = status.tokens {
        println!("tokens     {}", grouped(tokens));
    }
    if let Some(truncated @ 1..) = status.rows_truncated {
        println!(
            "truncated  {} texts were cut to the model's longest; the column truncated says which",
            grouped(truncated)
        );
    }
    if status.rows_failed.unwrap_or_default() > 0 || status.rejected > 0 {
        let failed = status.rows_failed.map_or_else(|| "some".to_owned(), grouped);
        println!(
            "errors     {failed} failed, {} rejected at submission; `vecmill get` lists {}",
            grouped(status.rejected),
            if status.rejected > REJECTED_LISTED_MAX { "the first of them" } else { "them" }
        );
    }
    if let (Some(rate), false) = (status.rows_per_s, state.is_final()) {
        let eta = status.eta_s.map(|s| format!(", done in about {}", indicatif::HumanDuration(Duration::from_secs(s))));
        println!("rate       {rate:.1} texts/s{}", eta.unwrap_or_default());
    }
    if let Some(submitted) = status.submitted_at {
        let run = if status.run > 1 { format!(", run {}", status.run) } else { String::new() };
        println!("submitted  {submitted:.0}{run}");
    }
    for chunk in &status.dead {
        println!("given up   chunk {}: {} [{}]", chunk.chunk, chunk.reason, chunk.code);
    }
}
