//! The gateway's own documents on S3: records of files and batches, beside the jobs under each tenant's prefix.

use vecmill_signer::claims::TenantId;

/// Records are this long at most: a batch's names up to a thousand bad lines.
pub(super) const RECORD_BYTES_MAX: usize = 1 << 20;

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

/// The id in a record's key.
pub(super) fn id_of_key(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or_default().trim_end_matches(".json")
}
