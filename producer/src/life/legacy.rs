//! Jobs from before there were ledgers, as if they had one: life 0, run 0, whose objects lie directly under the job. The first event
//! writes the first entry, and from then on it is a job like any other.

use serde::de::DeserializeOwned;

use super::{Entry, Job, Run, UNRECORDED};
use crate::{
    contract::{CONTRACT_VERSION, Cancelled, JobKeys, Paused, Submission},
    store::{Store, StoreError},
};

/// Each of its documents is this long at most.
const DOCUMENT_BYTES_MAX: usize = 64 << 10;

/// What the objects of such a job amount to; `None` where there are none.
///
/// Neither its end nor its failure is read here: both follow from what its chunks came to, and whoever looks writes it down.
pub(super) async fn entry(store: &Store, keys: &JobKeys) -> Result<Option<Entry>, StoreError> {
    let Some(submission) = document::<Submission>(store, &keys.submission()).await? else {
        // Cut, and not submitted yet: as good as opened.
        let cut = store.exists(&keys.manifest()).await?;
        return Ok(cut.then(|| zeroth(Job::default(), jiff::Timestamp::UNIX_EPOCH)));
    };
    let cancelled = document::<Cancelled>(store, &keys.cancelled()).await?;
    let paused = document::<Paused>(store, &keys.paused()).await?;
    let run = Run {
        number: 0,
        submitted_at: submission.submitted_at,
        expires_at: submission.expires_at,
        name: submission.name,
        lane: submission.lane,
        published: submission.published,
        wanted_by: [UNRECORDED.to_owned()].into(),
        inherited: None,
        paused_at: paused.map(|paused| paused.at),
        cancelling_at: cancelled.map(|cancelled| cancelled.at),
        end: None,
    };
    // Nobody wrote down who held it.
    let job = Job { holders: [UNRECORDED.to_owned()].into(), run: Some(run), ..Job::default() };
    Ok(Some(zeroth(job, submission.submitted_at)))
}

fn zeroth(job: Job, at: jiff::Timestamp) -> Entry {
    Entry { version: CONTRACT_VERSION, number: 0, at, event: "found".to_owned(), writer: String::new(), job }
}

async fn document<T: DeserializeOwned>(store: &Store, key: &str) -> Result<Option<T>, StoreError> {
    store.get_json(key, DOCUMENT_BYTES_MAX).await
}
