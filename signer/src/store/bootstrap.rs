//! The first signing key, tenant and API keys, in one transaction: all of them or none, and once.

use std::path::Path;

use super::{NewKey, Store, StoreError, TenantSettings, api_keys, changed, signing_keys, tenants};
use crate::api_key::ApiKey;
use crate::claims::TenantId;
use crate::time::unix_now;
use crate::vault::Vault;

/// The first tenant, which is the operator's: its admins administer every tenant.
#[derive(Debug, Clone)]
pub struct FirstTenant {
    /// Its name.
    pub id: TenantId,
    /// What it may use.
    pub settings: TenantSettings,
}

/// The keys to print. They are stored nowhere.
#[derive(Debug)]
pub struct Bootstrapped {
    /// Key with the role `admin`.
    pub admin: ApiKey,
    /// Key with the role `writer`.
    pub writer: ApiKey,
}

impl Store {
    /// Sets up an empty signer. Makes the master key file if it is absent, but only once it is certain that this is the
    /// bootstrap that counts: a late second one must not leave a key file that belongs to nothing.
    pub async fn bootstrap(
        &self,
        master_key_file: &Path,
        first: &FirstTenant,
        actor: &str,
    ) -> Result<Bootstrapped, StoreError> {
        let mut transaction = self.write().await?;
        let done = sqlx::query("SELECT 1 FROM tenants UNION ALL SELECT 1 FROM signing_keys LIMIT 1");
        if done.fetch_optional(&mut *transaction).await?.is_some() {
            return Err(StoreError::AlreadyBootstrapped);
        }
        let vault = Vault::open_or_create(master_key_file)?;
        // No verifier knows another key, so there is nobody to wait for.
        signing_keys::insert(&mut transaction, &vault, unix_now(), actor).await?;
        tenants::insert(&mut transaction, &first.id, &first.settings, true, actor).await?;
        let key = |role: &str| NewKey { tenant: first.id.clone(), role: role.to_owned(), expires_s: None };
        let admin = api_keys::insert(&mut transaction, &vault, &key("admin"), actor).await?;
        let writer = api_keys::insert(&mut transaction, &vault, &key("writer"), actor).await?;
        changed(&mut transaction).await?;
        transaction.commit().await?;
        Ok(Bootstrapped { admin, writer })
    }
}
