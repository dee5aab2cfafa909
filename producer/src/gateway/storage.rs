//! The gateway's own documents on S3: records of files and batches, beside the jobs under each tenant's prefix.

use vecmill_signer::claims::TenantId;

use super::error::ApiError;
use crate::contract::CONTRACT_VERSION;

/// Records are this long at most: a batch's names up to a thousand bad lines.
pub(super) const RECORD_BYTES_MAX: usize = 1 << 20;

/// Whether a record is of a version that this program reads.
pub(super) fn readable(version: u32) -> Result<(), ApiError> {
    match version {
        ..=CONTRACT_VERSION => Ok(()),
        _ => Err(ApiError::internal("unreadable_record", "it was stored by a later version than this gateway's")),
    }
}

/// Where the records of a tenant's files lie, in the order of their ids.
pub(super) fn files(tenant: &TenantId) -> String {
    format!("{tenant}/files/")
}

/// A file's record.
pub(super) fn file(tenant: &TenantId, id: &str) -> String {
    format!("{tenant}/files/{id}.json")
}

/// An uploaded file's bytes.
pub(super) fn content(tenant: &TenantId, id: &str) -> String {
    format!("{tenant}/file-content/{id}")
}

/// Where it is written which of a tenant's files are kept for a time, in the order of its ends.
pub(super) fn all_expiring(tenant: &TenantId) -> String {
    format!("{tenant}/files-expiring/")
}

/// That a file is kept until `at`, in Unix seconds.
pub(super) fn expiring(tenant: &TenantId, at: u64, id: &str) -> String {
    format!("{tenant}/files-expiring/{at:012}-{id}.json")
}

/// Where the records of a tenant's batches lie, in the order of their ids.
pub(super) fn batches(tenant: &TenantId) -> String {
    format!("{tenant}/batches/")
}

/// A batch's record.
pub(super) fn batch(tenant: &TenantId, id: &str) -> String {
    format!("{tenant}/batches/{id}.json")
}

/// Present once a batch was cancelled. Apart from its record, which whoever prepares the batch writes meanwhile.
pub(super) fn batch_cancelled(tenant: &TenantId, id: &str) -> String {
    format!("{tenant}/batches-cancelled/{id}.json")
}

/// What a batch came to: put once, by whoever sees its end first.
pub(super) fn batch_ended(tenant: &TenantId, id: &str) -> String {
    format!("{tenant}/batches-ended/{id}.json")
}

/// Where it is kept which batches are to be made jobs of, a folder for each tenant.
pub(super) fn all_preparing() -> String {
    "_preparing/".to_owned()
}

/// That a batch is to be made a job of, and the credential for it.
pub(super) fn preparing(tenant: &TenantId, batch: &str) -> String {
    format!("_preparing/{tenant}/{batch}.json")
}

/// Where it is kept which batches' ends are to be told, a folder for each tenant: a tenant's name does not begin with an
/// underscore.
pub(super) fn webhooks() -> String {
    "_webhooks/".to_owned()
}

/// Where those lie that gateways of before have put there, without folders.
pub(super) fn old_webhooks() -> String {
    "_webhooks/batch_".to_owned()
}

/// That a batch's end is to be told, and when to look or try next: those of a tenant are listed as they are due.
pub(super) fn webhook(tenant: &TenantId, next_at: u64, batch: &str) -> String {
    format!("_webhooks/{tenant}/{next_at:012}-{batch}.json")
}

/// The tenant whose folder it is, if it is one's.
pub(super) fn tenant_of_folder(folder: &str) -> Option<TenantId> {
    folder.trim_end_matches('/').rsplit('/').next()?.parse().ok()
}

/// The id in a record's key.
pub(super) fn id_of_key(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or_default().trim_end_matches(".json")
}
