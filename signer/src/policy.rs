//! What a tenant may have: pure rules over a tenant's settings and its request.

use sha2::{Digest as _, Sha256};

use crate::store::{DIMENSIONS_MAX, Tenant, TenantSettings, WINDOW_S_MIN};
use crate::wire::GrantRequest;

/// Shortest vector that a Matryoshka model of this family was trained to be cut to.
const DIMENSIONS_MIN: u32 = 32;

/// Why a grant is denied: a sentence for the caller, with the limit in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denial {
    /// The model is not on the tenant's list.
    #[error("this tenant may not use that model; it may use: {allowed}")]
    Model { allowed: String },
    /// Vectors of that length don't exist.
    #[error("dimensions must be {DIMENSIONS_MIN} to {max} for this model, not {asked}")]
    Dimensions { asked: u32, max: u32 },
    /// Longer vectors than the tenant may have.
    #[error("this tenant's vectors may have {max} dimensions, not {asked}")]
    LongVectors { asked: u32, max: u32 },
    /// An empty job.
    #[error("a job has at least one row")]
    NoRows,
    /// Too many rows.
    #[error("this tenant's jobs may have {max} rows, not {asked}; split the corpus into several jobs")]
    Rows { asked: u64, max: u64 },
    /// The window is out of range.
    #[error("the completion window must be {WINDOW_S_MIN} to {max} seconds for this tenant, not {asked}")]
    Window { asked: u64, max: u64 },
}

impl Denial {
    /// Whether another tenant could be granted the same: a matter of policy, not of a mistaken request.
    pub(crate) fn is_policy(&self) -> bool {
        matches!(self, Self::Model { .. } | Self::LongVectors { .. } | Self::Rows { .. })
    }
}

/// Whether a tenant with `settings` may have the grant it asks for.
pub(crate) fn check(settings: &TenantSettings, request: &GrantRequest) -> Result<(), Denial> {
    may_use(settings, &request.model)?;
    let max = dimensions_max(&request.model);
    if !(DIMENSIONS_MIN..=max).contains(&request.dimensions) {
        return Err(Denial::Dimensions { asked: request.dimensions, max });
    }
    if request.dimensions > settings.dimensions_max {
        return Err(Denial::LongVectors { asked: request.dimensions, max: settings.dimensions_max });
    }
    if request.rows == 0 {
        return Err(Denial::NoRows);
    }
    if request.rows > settings.rows_per_job {
        return Err(Denial::Rows { asked: request.rows, max: settings.rows_per_job });
    }
    if !(WINDOW_S_MIN..=settings.window_s_max).contains(&request.window_s) {
        return Err(Denial::Window { asked: request.window_s, max: settings.window_s_max });
    }
    Ok(())
}

/// Whether a tenant with `settings` may use `model`.
pub(crate) fn may_use(settings: &TenantSettings, model: &str) -> Result<(), Denial> {
    if settings.models.iter().any(|allowed| allowed == model) {
        return Ok(());
    }
    let allowed = if settings.models.is_empty() { "none".to_owned() } else { settings.models.join(", ") };
    Err(Denial::Model { allowed })
}

/// The queue lane of a tenant: its own while there are lanes enough, a shared one by hash beyond that. Either way it
/// never changes while the number of lanes stays.
pub(crate) fn lane(tenant: &Tenant, lanes: u32) -> u32 {
    match u32::try_from(tenant.ordinal) {
        Ok(ordinal) if ordinal < lanes => ordinal,
        _ => {
            let digest: [u8; 32] = Sha256::digest(tenant.id.as_str()).into();
            u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]) % lanes
        }
    }
}

/// Longest vector of a model: its hidden size (`hidden_size` in its config.json). For a model unknown here, that of the
/// largest one; the worker that loads it knows its own.
fn dimensions_max(model: &str) -> u32 {
    match model {
        "Qwen/Qwen3-Embedding-0.6B" => 1024,
        "Qwen/Qwen3-Embedding-4B" => 2560,
        _ => DIMENSIONS_MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claims::{Digest, JobId};

    fn request() -> GrantRequest {
        GrantRequest {
            job: JobId::from_digest(&[1; 32]),
            manifest_sha256: Digest::of(b"manifest"),
            model: "Qwen/Qwen3-Embedding-0.6B".to_owned(),
            dimensions: 1024,
            rows: 10,
            window_s: 3600,
            life: None,
            run: None,
        }
    }

    #[test]
    fn each_limit_holds_at_its_edge() {
        let settings = TenantSettings { rows_per_job: 10, window_s_max: 3600, ..TenantSettings::default() };
        assert_eq!(check(&settings, &request()), Ok(()));
        assert_eq!(check(&settings, &GrantRequest { dimensions: 32, rows: 1, window_s: 60, ..request() }), Ok(()));

        let denied = |request: GrantRequest| check(&settings, &request).expect_err("denied");
        assert_eq!(
            denied(GrantRequest { dimensions: 1025, ..request() }),
            Denial::Dimensions { asked: 1025, max: 1024 }
        );
        assert_eq!(denied(GrantRequest { dimensions: 31, ..request() }), Denial::Dimensions { asked: 31, max: 1024 });
        assert_eq!(denied(GrantRequest { rows: 11, ..request() }), Denial::Rows { asked: 11, max: 10 });
        assert_eq!(denied(GrantRequest { rows: 0, ..request() }), Denial::NoRows);
        assert_eq!(denied(GrantRequest { window_s: 3601, ..request() }), Denial::Window { asked: 3601, max: 3600 });
        assert_eq!(denied(GrantRequest { window_s: 59, ..request() }), Denial::Window { asked: 59, max: 3600 });
        assert!(matches!(denied(GrantRequest { model: "other".to_owned(), ..request() }), Denial::Model { .. }));
    }

    #[test]
    fn a_tenant_may_be_held_to_shorter_vectors_than_the_model_has() {
        let settings = TenantSettings { dimensions_max: 256, ..TenantSettings::default() };
        assert_eq!(check(&settings, &GrantRequest { dimensions: 256, ..request() }), Ok(()));
        let denied = check(&settings, &GrantRequest { dimensions: 257, ..request() }).expect_err("denied");
        assert_eq!(denied, Denial::LongVectors { asked: 257, max: 256 });
        assert!(denied.is_policy());
    }

    #[test]
    fn an_empty_allow_list_allows_nothing() {
        let settings = TenantSettings { models: Vec::new(), ..TenantSettings::default() };
        assert_eq!(check(&settings, &request()), Err(Denial::Model { allowed: "none".to_owned() }));
    }

    #[test]
    fn lanes_are_own_first_and_shared_after() {
        let tenant = |ordinal| Tenant {
            id: "acme".parse().expect("a name"),
            ordinal,
            active: true,
            operator: false,
            epoch: 0,
            settings: TenantSettings::default(),
            created_s: 0,
        };
        assert_eq!(lane(&tenant(0), 4), 0);
        assert_eq!(lane(&tenant(3), 4), 3);
        let shared = lane(&tenant(4), 4);
        assert!(shared < 4);
        assert_eq!(lane(&tenant(u64::MAX), 4), shared, "the lane beyond depends on the name alone");
    }
}
