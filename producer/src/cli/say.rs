//! `vecmill cancel`, `vecmill pause` and `vecmill resume`.

use vecmill_signer::claims::JobId;

use super::{
    connection::Connection,
    door::Word,
    output::{Failure, print_json},
};
use crate::status::{JobState, WaitReason};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Job, as `submit` printed it
    job: JobId,
    /// Print the result as JSON
    #[arg(long, env = "VECMILL_JSON")]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn run(args: Args, word: Word) -> Result<(), Failure> {
    let job = &args.job;
    let status = args.connection.door(None).await?.say(job, word).await?;
    if args.json {
        print_json(&status);
        return Ok(());
    }
    let paused = status.waiting.as_ref().is_some_and(|waiting| waiting.reason == WaitReason::Paused);
    match word {
        Word::Cancel if matches!(status.state, JobState::Cancelling | JobState::Cancelled) => {
            println!("job {job} is {}; workers stop within seconds, and what is finished stays", status.state);
        }
        _ if status.state.is_final() => println!("job {job} had ended before: {}", status.state),
        Word::Pause if paused => {
            println!("job {job} is held up within seconds; its window goes on. Go on with: vecmill resume {job}");
        }
        Word::Resume => println!("job {job} goes on within half a minute"),
        Word::Cancel | Word::Pause => println!("job {job} is {}", status.state),
    }
    Ok(())
}
