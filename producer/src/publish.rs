//! Publishing so that a yes is a yes: persistent, mandatory, confirmed.

use futures_util::{StreamExt, TryStreamExt, stream};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    tcp::{OwnedIdentity, OwnedTLSConfig},
    types::{AMQPValue, FieldTable},
};

use vecmill_signer::edge::{self, ClientTls};

use crate::{
    contract::Precision,
    topology::{Topology, TopologyError},
};

/// Messages on the way to the broker at once. Enough to hide the round trip and the quorum's disk writes; at
/// 12 KiB at most each, 6 MiB.
const UNCONFIRMED_MAX: usize = 512;

/// Persistent, in AMQP's terms.
const DELIVERY_MODE: u8 = 2;

/// Why a message is not on the broker, or may not be.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// No queue takes it: `mandatory` brought it back.
    #[error(
        "RabbitMQ has no queue for exchange {exchange} and key {key:?}: is the topology declared under this namespace?"
    )]
    Unroutable {
        /// The exchange it was sent to.
        exchange: String,
        /// The key it was sent under.
        key: String,
    },
    /// The queue is full or the broker could not store it.
    #[error("RabbitMQ refused the message for key {key:?}: the lane is full; try again when workers have caught up")]
    Refused {
        /// The key it was sent under.
        key: String,
    },
    /// The queues are not what they should be.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The connection failed before the confirm.
    #[error("RabbitMQ can't be reached: {}", edge::explain(.0))]
    Broker(#[from] lapin::Error),
}

/// Opens a connection with a name that operators see in the broker's list; with TLS where the URL is `amqps://`.
pub async fn connect(url: &str, name: &str, tls: &ClientTls) -> Result<Connection, lapin::Error> {
    // lapin takes the process's crypto provider.
    edge::provider();
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let text = |pem: &[u8]| String::from_utf8_lossy(pem).into_owned();
    let config = OwnedTLSConfig {
        identity: tls.identity_pem().map(|(pem, key)| OwnedIdentity::PKCS8 { pem: pem.to_vec(), key: key.to_vec() }),
        cert_chain: tls.ca_pem().map(text),
    };
    Connection::connect_with_config(url, properties, config, lapin::runtime::default_runtime()?).await
}

/// A channel in confirm mode.
#[derive(Clone)]
pub struct Publisher {
    channel: Channel,
}

impl Publisher {
    /// Opens a channel on `connection` and switches confirms on.
    pub async fn open(connection: &Connection) -> Result<Self, lapin::Error> {
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { channel })
    }

    /// Declares the queues. A queue that is there with other arguments is an error that names it.
    pub async fn declare(&self, topology: &Topology) -> Result<(), lapin::Error> {
        topology.declare(&self.channel).await
    }

    /// How many workers compute in a precision, once the queues are declared.
    pub async fn workers_in(&self, topology: &Topology, precision: Precision) -> Result<u32, lapin::Error> {
        topology.workers_in(&self.channel, precision).await
    }

    /// Publishes one message and waits until the broker has it.
    pub async fn publish(
        &self,
        exchange: &str,
        key: &str,
        body: &[u8],
        headers: FieldTable,
    ) -> Result<(), PublishError> {
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let properties = BasicProperties::default()
            .with_delivery_mode(DELIVERY_MODE)
            .with_content_type("application/json".into())
            .with_headers(headers);
        let confirm = self.channel.basic_publish(exchange.into(), key.into(), options, body, properties).await?;
        match confirm.await? {
            Confirmation::Ack(None) => Ok(()),
            // A returned message comes with an ack: the broker has dealt with it, by giving it back.
            Confirmation::Ack(Some(_)) => {
                Err(PublishError::Unroutable { exchange: exchange.to_owned(), key: key.to_owned() })
            }
            Confirmation::Nack(_) | Confirmation::NotRequested => Err(PublishError::Refused { key: key.to_owned() }),
        }
    }

    /// Publishes many messages, a bounded number at a time, and calls `confirmed` after each confirm.
    pub async fn publish_all(
        &self,
        exchange: &str,
        key: &str,
        bodies: impl Iterator<Item = Vec<u8>>,
        mut confirmed: impl FnMut(),
    ) -> Result<(), PublishError> {
        stream::iter(bodies)
            .map(|body| async move { self.publish(exchange, key, &body, FieldTable::default()).await })
            .buffered(UNCONFIRMED_MAX)
            .try_for_each(|()| {
                confirmed();
                std::future::ready(Ok(()))
            })
            .await
    }
}

/// A header with a number.
pub fn number(value: u32) -> AMQPValue {
    AMQPValue::LongUInt(value)
}
