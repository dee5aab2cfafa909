//! Batches that are not jobs yet. Each lies on S3 with what is needed to make a job of it, so that every gateway takes up what it
//! finds there: the work of one that has died goes on, whether anybody asks for the batch or not.
//!
//! The credential among it is a submission token: for a day, and as long as the API key behind it is good, it can have the
//! signer grant jobs of its tenant, and nothing else.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vecmill_signer::claims::{Limits, Scope, TenantId};
use vecmill_signer::client::AccessToken;
use zeroize::Zeroizing;

use super::super::auth::Caller;
use super::super::error::ApiError;
use super::super::{App, ids, storage};
use super::RECORD_WITHIN_S;
use super::prepare::{Trouble, attempt};
use super::record::{BadLine, BatchRecord, Ended};
use super::view;
use crate::contract::CONTRACT_VERSION;
use crate::life::EndState;

/// Between two looks for batches that nobody is at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Seconds from a try that something away has ended to the next; it doubles from the first to the last.
const AGAIN_S: RangeInclusive<u64> = 5..=300;

/// What is needed to make a job of a batch, beside its record. No `Debug`: it holds a secret.
#[derive(Serialize, Deserialize)]
pub(super) struct Pending {
    version: u32,
    created_at: u64,
    submission: String,
    expires_at: u64,
    pub(super) limits: Limits,
    /// When to try next.
    next_at: u64,
    tries: u32,
}

impl Pending {
    /// To ask the signer with.
    pub(super) fn token(&self, tenant: &TenantId) -> AccessToken {
        AccessToken {
            token: Zeroizing::new(self.submission.clone()),
            tenant: tenant.clone(),
            scopes: vec![Scope::JobsSubmit],
            expires_at: self.expires_at,
        }
    }
}

/// Leaves a batch to whichever gateway comes to it first. Its record is the caller's next step.
pub(super) async fn entrust(app: &App, caller: &Caller, id: &str) -> Result<(), ApiError> {
    let submission = app.auth.submission(caller).await?;
    let created_at = ids::unix_s();
    let pending = Pending {
        version: CONTRACT_VERSION,
        created_at,
        submission: submission.token.to_string(),
        expires_at: submission.expires_at,
        limits: caller.access.limits(),
        next_at: created_at,
        tries: 0,
    };
    Ok(app.store.put_json(&storage::preparing(caller.access.tenant(), id), &pending).await?)
}

/// Takes up what nobody is at, again and again; never ends.
pub(in super::super) async fn run(app: Arc<App>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if let Err(error) = look(&app).await {
            tracing::warn!(%error, "batches wait");
        }
    }
}

/// A share of every tenant's: who has thousands keeps nobody's from being seen.
async fn look(app: &Arc<App>) -> Result<(), ApiError> {
    for folder in app.store.list_folders(&storage::all_preparing()).await? {
        let Some(tenant) = folder.trim_end_matches('/').rsplit('/').next().and_then(|name| name.parse().ok()) else {
            continue;
        };
        for object in app.store.list_some(&folder, None, super::turns::WAITING_MAX).await? {
            start(app, &tenant, storage::id_of_key(&object.key));
        }
    }
    Ok(())
}

/// Makes a job of a batch when its turn comes, unless another gateway is at it then.
pub(super) fn start(app: &Arc<App>, tenant: &TenantId, id: &str) {
    // How many wait here is bounded: another gateway, or a later look, finds the others.
    let Some(place) = app.turns.place(tenant, id) else { return };
    let (app, tenant) = (Arc::clone(app), tenant.clone());
    tokio::spawn(async move {
        let _turn = app.turns.turn(&place).await;
        // Not before: what waits here may be another's turn there.
        let Some(held) = app.shared.hold(&tenant, place.id()).await else { return };
        tokio::select! {
            taken_up = take_up(&app, &tenant, place.id()) => {
                if let Err(error) = taken_up {
                    tracing::warn!(%tenant, batch = place.id(), %error, "a batch waits");
                }
            }
            () = held.keep() => {}
        }
        held.release().await;
    });
}

async fn take_up(app: &App, tenant: &TenantId, id: &str) -> Result<(), ApiError> {
    let key = storage::preparing(tenant, id);
    let pending: Option<Pending> = app.store.get_json(&key, storage::RECORD_BYTES_MAX).await?;
    let Some(mut pending) = pending else { return Ok(()) };
    let Some(mut record) = BatchRecord::read(app, tenant, id).await? else {
        if pending.created_at + RECORD_WITHIN_S < ids::unix_s() {
            app.store.delete(&key).await?;
        }
        return Ok(());
    };
    let begun = record.job.is_some() || record.failed_at.is_some() || record.ended.is_some();
    let over_at = record.created_at + record.window_s;
    let outcome = match view::cancelled_at(app, tenant, id).await? {
        _ if begun => Ok(()),
        Some(_) => Err(Trouble::Cancelled),
        // Nobody could prepare it in its whole window.
        None if over_at <= ids::unix_s() => {
            record.end(app, tenant, Ended::unprepared(EndState::Expired, over_at)).await?;
            Ok(())
        }
        None if pending.next_at > ids::unix_s() => return Ok(()),
        None => Box::pin(attempt(app, &pending, tenant, record.clone())).await,
    };
    match outcome {
        Ok(()) => {}
        Err(Trouble::Cancelled) => {
            let at = view::cancelled_at(app, tenant, id).await?.unwrap_or_else(ids::unix_s);
            record.end(app, tenant, Ended::unprepared(EndState::Cancelled, at)).await?;
        }
        Err(Trouble::Failed { code, message, bad_lines }) => {
            tracing::info!(%tenant, batch = id, code, "a batch failed");
            write_failure(app, tenant, id, code, &message, bad_lines).await?;
        }
        Err(Trouble::Passing(reason)) => {
            let again_s = (*AGAIN_S.start() << pending.tries.min(10)).min(*AGAIN_S.end());
            tracing::warn!(%tenant, batch = id, tries = pending.tries + 1, again_s, reason, "a batch can't be prepared yet");
            pending.tries += 1;
            pending.next_at = ids::unix_s() + again_s;
            return Ok(app.store.put_json(&key, &pending).await?);
        }
    }
    Ok(app.store.delete(&key).await?)
}

async fn write_failure(
    app: &App,
    tenant: &TenantId,
    id: &str,
    code: &str,
    message: &str,
    bad_lines: Vec<BadLine>,
) -> Result<(), ApiError> {
    let Some(mut record) = BatchRecord::read(app, tenant, id).await? else { return Ok(()) };
    record.fail(code, message.to_owned(), bad_lines);
    record.write(app, tenant).await
}
