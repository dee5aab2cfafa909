//! What all lists that come in pages share.

use super::error::ApiError;
use super::ids;

/// How many to list.
pub(super) fn limit(asked: Option<usize>, default: usize, most: usize) -> Result<usize, ApiError> {
    let limit = asked.unwrap_or(default);
    if (1..=most).contains(&limit) {
        return Ok(limit);
    }
    Err(ApiError::invalid("invalid_query", Some("limit"), format!("limit must be 1 to {most}")))
}

/// The id after which to list.
pub(super) fn after(asked: Option<&str>, prefix: &str) -> Result<(), ApiError> {
    if asked.is_none_or(|after| ids::is_good(prefix, after)) {
        return Ok(());
    }
    Err(ApiError::invalid("invalid_query", Some("after"), "after must be the id of an entry of this list"))
}

/// The ids of the first and of the last entry.
pub(super) fn ends<T>(data: &[T], id: impl Fn(&T) -> &str) -> (Option<String>, Option<String>) {
    let id = |entry: Option<&T>| entry.map(|entry| id(entry).to_owned());
    (id(data.first()), id(data.last()))
}
