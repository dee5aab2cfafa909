//! `vecmill topology`: what an operator does with RabbitMQ.

use clap::Subcommand;
use serde_json::json;
use vecmill_signer::edge::ClientTlsArgs;

use super::output::{Failure, print_json};
use crate::{
    publish::{Publisher, connect},
    topology::{BrokerSettings, TopologyError},
};

const EXAMPLES: &str = "\
Examples:
  vecmill topology declare                  with VECMILL_AMQP_URL of a user who may configure
  vecmill topology check                    as the programs do when they start; any user may
  vecmill topology take-over                once no program runs that uses the queues' names of before

The namespace, the number of lanes and the wait ladder must be those of the programs. infra/roles has the rights that each
program's user needs.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Declare what is missing; harmless when all of it is there
    Declare(Settings),
    /// Say whether all of it is there
    Check(Settings),
    /// Move what waits in queues whose names begin {namespace}.lane, .wait and .dead, as they once did, and remove those queues
    TakeOver(Settings),
}

#[derive(Debug, clap::Args)]
struct Settings {
    /// Print the result as JSON
    #[arg(long, env = "VECMILL_JSON")]
    json: bool,
    #[command(flatten)]
    tls: ClientTlsArgs,
    #[command(flatten)]
    broker: BrokerSettings,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let (Action::Declare(settings) | Action::Check(settings) | Action::TakeOver(settings)) = &args.action;
    let mut mistakes = settings.broker.mistakes();
    let tls = settings.tls.load().unwrap_or_else(|error| {
        mistakes.push(error.to_string());
        <_>::default()
    });
    if !mistakes.is_empty() {
        return Err(Failure::Settings(mistakes));
    }
    let topology = settings.broker.topology();
    let url = settings.broker.amqp_url.as_deref().unwrap_or_default();
    let connection = connect(url, "vecmill topology", &tls).await.map_err(TopologyError::from)?;
    let said = match &args.action {
        Action::Declare(_) => {
            let declaring = async { Publisher::open(&connection).await?.declare(&topology).await };
            declaring.await.map_err(TopologyError::from)?;
            (json!({"declared": true}), "all queues and exchanges are there".to_owned())
        }
        Action::Check(_) => {
            topology.check(&connection).await?;
            (json!({"complete": true}), "all queues and exchanges are there".to_owned())
        }
        Action::TakeOver(_) => {
            let moved = topology.take_over(&connection).await?;
            (json!({"moved": moved}), format!("{moved} messages were moved"))
        }
    };
    match settings.json {
        true => print_json(&said.0),
        false => println!("{}", said.1),
    }
    Ok(())
}
