//! What every command needs to reach the cluster, checked together before anything connects.

use vecmill_signer::{
    client::{ApiKey, SignerClient},
    edge::ClientTlsArgs,
    secret::secret,
};

use super::{door::Door, output::Failure};
use crate::{
    client::GatewayClient,
    store::{Store, StoreSettings},
    topology::BrokerSettings,
};

#[derive(Debug, clap::Args)]
pub(super) struct Connection {
    /// URL of a gateway, to go through it: then the API key is all that is needed beside
    #[arg(long, env = "VECMILL_GATEWAY_URL", value_name = "URL")]
    gateway: Option<String>,
    /// URL of the signer
    #[arg(long, env = "VECMILL_SIGNER_URL", value_name = "URL", default_value = "http://127.0.0.1:8700")]
    signer_url: String,
    #[command(flatten)]
    tls: ClientTlsArgs,
    #[command(flatten)]
    store: StoreSettings,
}

impl Connection {
    /// Checks every setting, the broker's too where the command needs one, then sets the clients up. Through a gateway, only
    /// its own settings count.
    pub(super) async fn door(&self, broker: Option<&BrokerSettings>) -> Result<Door, Failure> {
        let mut mistakes = Vec::new();
        let tls = self.tls.load().unwrap_or_else(|error| {
            mistakes.push(error.to_string());
            <_>::default()
        });
        let key = match secret("VECMILL_API_KEY").map(|key| key.parse::<ApiKey>()) {
            Some(Ok(key)) => Some(key),
            Some(Err(error)) => {
                mistakes.push(format!("VECMILL_API_KEY is not an API key: {error}"));
                None
            }
            None => {
                mistakes.push("VECMILL_API_KEY is not set: give an API key (vm_...) there, or in a file that VECMILL_API_KEY_FILE names".to_owned());
                None
            }
        };
        if let Some(url) = &self.gateway {
            return match key.map(|key| GatewayClient::new(url, key, &tls)) {
                Some(Ok(client)) if mistakes.is_empty() => Ok(Door::Gateway(client)),
                Some(Err(error)) => {
                    mistakes.push(format!("--gateway (VECMILL_GATEWAY_URL): {error}"));
                    Err(Failure::Settings(mistakes))
                }
                _ => Err(Failure::Settings(mistakes)),
            };
        }
        mistakes.extend(self.store.mistakes());
        mistakes.extend(broker.map(BrokerSettings::mistakes).unwrap_or_default());
        let signer = match key.map(|key| SignerClient::with_tls(&self.signer_url, key, &tls)) {
            Some(Ok(signer)) => Some(signer),
            Some(Err(error)) => {
                mistakes.push(format!("--signer-url (VECMILL_SIGNER_URL): {error}"));
                None
            }
            None => None,
        };
        match signer {
            Some(signer) if mistakes.is_empty() => {
                let store = Store::connect(&self.store).await;
                // The broker gets the TLS that all connections share.
                let broker = broker.map(|broker| BrokerSettings { tls, ..broker.clone() });
                Ok(Door::Cluster { store, signer, broker })
            }
            _ => Err(Failure::Settings(mistakes)),
        }
    }

    /// The store alone, to read a corpus from: the tenant's own, wherever the job is to go.
    pub(super) async fn store(&self) -> Store {
        Store::connect(&self.store).await
    }
}
