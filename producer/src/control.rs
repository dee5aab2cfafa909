//! What a tenant may do to a job that is under way: cancel it, hold it up, let it go on. Each is an object on S3 that
//! workers look for before they compute a chunk, so that it holds whatever becomes of the broker.

use crate::{
    contract::{Cancelled, JobKeys, Paused},
    store::{Store, StoreError},
};

/// Wants no more of the job. Workers stop within seconds; what is finished stays.
pub async fn cancel(store: &Store, keys: &JobKeys) -> Result<(), StoreError> {
    store.put_json(&keys.cancelled(), &Cancelled { at: jiff::Timestamp::now() }).await
}

/// Holds the job up: within seconds no chunk of it is begun. Its completion window goes on.
pub async fn pause(store: &Store, keys: &JobKeys) -> Result<(), StoreError> {
    store.put_json(&keys.paused(), &Paused { at: jiff::Timestamp::now() }).await
}

/// Lets a job go on that was held up: within the time that its chunks wait between two looks, half a minute.
pub async fn resume(store: &Store, keys: &JobKeys) -> Result<(), StoreError> {
    store.delete(&keys.paused()).await
}
