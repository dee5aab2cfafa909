//! Where workers count what tenants use, for gateways to show: a cache of what the audit has.

/// Days that the counts are kept.
pub const USAGE_DAYS: u64 = 40;

/// The Redis hash of a tenant's tokens in a UTC day (days since 1970), on the node of all its keys. Its fields are
/// [`usage_field`]s.
pub fn usage_key(tenant: &str, day: u64) -> String {
    format!("vecmill:{{{tenant}}}:usage:{day}")
}

/// What the tokens were spent on, and by which API key. No job is the synchronous endpoint.
pub fn usage_field(job: Option<&str>, key_id: &str) -> String {
    format!("{} {key_id}", job.unwrap_or_default())
}
