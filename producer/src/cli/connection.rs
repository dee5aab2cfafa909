//! What every command needs to reach the cluster, checked together before anything connects.

use vecmill_signer::{
    claims::{JobId, Scope, TenantId},
    client::{ApiKey, SignerClient},
    edge::ClientTlsArgs,
    secret::secret,
};

use super::output::Failure;
use crate::{
    store::{Store, StoreSettings},
    topology::BrokerSettings,
};

#[derive(Debug, clap::Args)]
pub(super) struct Connection {
    /// URL of the signer
    #[arg(long, env = "VECMILL_SIGNER_URL", value_name = "URL", default_value = "http://127.0.0.1:8700")]
    signer_url: String,
    #[command(flatten)]
    tls: ClientTlsArgs,
    #[command(flatten)]
    store: StoreSettings,
}

impl Connection {
    /// Checks every setting, the broker's too where the command needs one, then sets the clients up. The broker's
    /// settings get the TLS that all connections share.
    pub(super) async fn open(&self, broker: Option<&mut BrokerSettings>) -> Result<(Store, SignerClient), Failure> {
        let mut mistakes = self.store.mistakes();
        mistakes.extend(broker.as_deref().map(BrokerSettings::mistakes).unwrap_or_default());
        let tls = self.tls.load().unwrap_or_else(|error| {
            mistakes.push(error.to_string());
            <_>::default()
        });
        if let Some(broker) = broker {
            broker.tls = tls.clone();
        }
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
        let signer = match key.map(|key| SignerClient::with_tls(&self.signer_url, key, &tls)) {
            Some(Ok(signer)) => Some(signer),
            Some(Err(error)) => {
                mistakes.push(format!("--signer-url (VECMILL_SIGNER_URL): {error}"));
                None
            }
            None => None,
        };
        match signer {
            Some(signer) if mistakes.is_empty() => Ok((Store::connect(&self.store).await, signer)),
            _ => Err(Failure::Settings(mistakes)),
        }
    }

    /// A store, and the tenant that the signer says the key belongs to, provided that it may use `scope`.
    pub(super) async fn tenant(&self, scope: Scope) -> Result<(Store, TenantId), Failure> {
        let (store, signer) = self.open(None).await?;
        let access = signer.access_token(&[scope]).await?;
        Ok((store, access.tenant))
    }
}

/// The failure for a job that is not there (or is another tenant's: the same).
pub(super) fn no_such_job(job: &JobId) -> Failure {
    Failure::Input(format!("there is no job {job} for this API key's tenant; `vecmill list` shows those there are"))
}
