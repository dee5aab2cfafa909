//! `vecmill cancel`.

use vecmill_signer::claims::{JobId, Scope};

use super::{
    connection::{Connection, no_such_job},
    output::{Failure, print_json},
};
use crate::{
    control::cancel,
    status::{JobState, Watch},
};

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

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let (store, tenant) = args.connection.tenant(Scope::JobsCancel).await?;
    let mut watch = Watch::new(store.clone(), &tenant, &args.job);
    if !watch.exists().await? {
        return Err(no_such_job(&args.job));
    }
    let mut status = watch.look().await?;
    if !status.state.is_final() {
        cancel(&store, watch.keys()).await?;
        status = watch.look().await?;
    }
    if args.json {
        print_json(&status);
    } else if status.state == JobState::Cancelled {
        println!("job {} is cancelled; workers stop within seconds, and what is finished stays", args.job);
    } else {
        println!("job {} had ended before: {}", args.job, status.state);
    }
    Ok(())
}
