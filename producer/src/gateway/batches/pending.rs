//! Batches that are not jobs yet. Each lies on S3 with what is needed to make a job of it, so that every gateway takes up what it
//! finds there: the work of one that has died goes on, whether anybody asks for the batch or not.
//!
//! The credential among it is a submission token: for a day, and as long as the API key behind it is good, it can have the
//! signer grant jobs of its tenant, and nothing else.
//!
//! A preparation is counted before it begins, and its count taken back when it has come back, whatever it came to. What is left
//! of counts is therefore gateways that died in between: a batch over which three did is failed, and those that were only in
//! their company are prepared again, one such batch at a time.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use vecmill_signer::claims::{Limits, Scope, TenantId};
use vecmill_signer::client::AccessToken;
use zeroize::Zeroizing;

use super::super::auth::Caller;
use super::super::error::ApiError;
use super::super::files::FileRecord;
use super::super::{App, ids, storage};
use super::RECORD_WITHIN_S;
use super::prepare::{Trouble, attempt};
use super::record::{BadLine, BatchRecord, Ended};
use super::turns::WAITING_MAX;
use super::view;
use crate::contract::CONTRACT_VERSION;
use crate::life::EndState;

/// Between two looks for batches that nobody is at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Gateways that may die over a batch: one may have died of another batch, or been killed, two hardly.
const DEATHS_MAX: u32 = 3;
/// Preparations of a batch that may take too long: once may be a slow day of S3's.
const OVERRUNS_MAX: u32 = 2;
/// What a batch that is being queued has at shutdown to come to its end.
const CLOSING_MAX: Duration = Duration::from_secs(3);
/// Between two looks whether a batch that is prepared is still wanted.
const WANTED_EVERY: Duration = Duration::from_secs(1);
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
    /// Preparations that have begun and not come back.
    #[serde(default)]
    begun: u32,
    /// Preparations that took too long.
    #[serde(default)]
    overruns: u32,
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

    /// A preparation has come back without a job.
    fn came_back(&mut self, trouble: &Trouble) {
        self.begun -= 1;
        self.overruns += u32::from(matches!(trouble, Trouble::TooLong));
        if matches!(trouble, Trouble::Passing(_) | Trouble::TooLong) {
            let again_s = (*AGAIN_S.start() << self.tries.min(10)).min(*AGAIN_S.end());
            self.tries = self.tries.saturating_add(1);
            self.next_at = ids::unix_s() + again_s;
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
        begun: 0,
        overruns: 0,
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
        let Some(tenant) = storage::tenant_of_folder(&folder) else { continue };
        // One tenant's folder that can't be listed is no other's trouble.
        if let Err(error) = look_at(app, &tenant, &folder).await {
            tracing::warn!(%tenant, %error, "a tenant's batches wait");
        }
    }
    Ok(())
}

async fn look_at(app: &Arc<App>, tenant: &TenantId, folder: &str) -> Result<(), ApiError> {
    let (mut after, mut found) = (None, 0);
    loop {
        let (keys, next) = app.shared.list_readable(&app.store, folder, after.as_deref(), WAITING_MAX).await?;
        found += keys.len();
        for key in &keys {
            start(app, tenant, storage::id_of_key(key));
        }
        if next.is_none() || found >= WAITING_MAX {
            return Ok(());
        }
        after = next;
    }
}

/// Makes a job of a batch when its turn comes, unless another gateway is at it then.
pub(super) fn start(app: &Arc<App>, tenant: &TenantId, id: &str) {
    // How many wait here is bounded: another gateway, or a later look, finds the others.
    let Some(place) = app.turns.place(tenant, id) else { return };
    let (app, tenant) = (Arc::clone(app), tenant.clone());
    tokio::spawn(async move {
        let Some(_first) = app.turns.first(&place).await else { return };
        let Some((bytes, suspect)) = weight(&app, &tenant, place.id()).await else { return };
        let Some(_turn) = app.turns.turn(bytes, suspect).await else { return };
        held(&app, &tenant, place.id(), true).await;
    });
}

/// Writes down the end of a batch that is not wanted any more, without waiting for its turn: there is nothing to prepare. Where
/// somebody is at it, that one sees it.
pub(super) fn end(app: &Arc<App>, tenant: &TenantId, id: &str) {
    let (app, tenant, id) = (Arc::clone(app), tenant.clone(), id.to_owned());
    tokio::spawn(async move { held(&app, &tenant, &id, false).await });
}

/// Bytes of a batch's file, and whether gateways may have died of it; `None` where it is not to be taken up now.
async fn weight(app: &App, tenant: &TenantId, id: &str) -> Option<(u64, bool)> {
    let pending = read(app, tenant, id).await.ok()??;
    if pending.next_at > ids::unix_s() {
        return None;
    }
    let file = match BatchRecord::read(app, tenant, id).await {
        Ok(Some(record)) => FileRecord::read(app, tenant, &record.input_file_id).await.ok().flatten(),
        // Whoever takes it up finds out why.
        Ok(None) | Err(_) => None,
    };
    Some((file.map_or(0, |file| file.bytes), pending.begun > 0))
}

/// What is needed for a batch; `None` where it is done with, or set aside.
async fn read(app: &App, tenant: &TenantId, id: &str) -> Result<Option<Pending>, ApiError> {
    let key = storage::preparing(tenant, id);
    if app.shared.is_unreadable(&key) {
        return Ok(None);
    }
    let pending = async {
        let pending: Option<Pending> = app.store.get_json(&key, storage::RECORD_BYTES_MAX).await?;
        if let Some(pending) = &pending {
            storage::readable(pending.version)?;
        }
        Ok::<_, ApiError>(pending)
    };
    app.shared.or_set_aside(&key, pending.await)
}

/// Takes a batch up, if nobody is at it.
async fn held(app: &App, tenant: &TenantId, id: &str, prepares: bool) {
    let closing = app.turns.closing();
    if *closing.borrow() {
        return;
    }
    // Not before: what waits here may be another's turn there.
    let Some(held) = app.shared.hold(tenant, id).await else { return };
    let taking_up = async {
        match take_up(app, tenant, id, prepares, closing).await {
            Ok(()) => {}
            // Its own record, or its file's.
            Err(error) if error.is_of_a_record() => app.shared.set_aside(&storage::preparing(tenant, id)),
            Err(error) => tracing::warn!(%tenant, batch = id, %error, "a batch waits"),
        }
    };
    _ = held.during(taking_up).await;
}

async fn take_up(
    app: &App,
    tenant: &TenantId,
    id: &str,
    prepares: bool,
    closing: watch::Receiver<bool>,
) -> Result<(), ApiError> {
    let key = storage::preparing(tenant, id);
    let Some(mut pending) = read(app, tenant, id).await? else { return Ok(()) };
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
        None if over_at <= ids::unix_s() => Err(Trouble::Expired),
        None if pending.next_at > ids::unix_s() || !prepares => return Ok(()),
        None if pending.begun >= DEATHS_MAX => Err(Trouble::Failed {
            code: "preparation_failed",
            message: format!(
                "{DEATHS_MAX} gateways have died while they prepared it: something in its file is more than they bear; \
                 tell who runs them, or give the file in another form"
            ),
            bad_lines: Vec::new(),
        }),
        None => {
            pending.begun += 1;
            app.store.put_json(&key, &pending).await?;
            let stop = unwanted(app, tenant, &record, closing.clone());
            let mut told = closing.clone();
            let late = async {
                // What is published by then goes on from there at the next gateway, as after a death.
                _ = told.wait_for(|closing| *closing).await;
                tokio::time::sleep(CLOSING_MAX).await;
            };
            let outcome = tokio::select! {
                outcome = Box::pin(attempt(app, &pending, tenant, record.clone(), stop)) => outcome,
                () = late => Err(Trouble::Closing),
            };
            if let Err(trouble) = &outcome {
                pending.came_back(trouble);
                put_back(app, &key, &pending, closing).await?;
            }
            outcome
        }
    };
    match outcome {
        Ok(()) => {}
        Err(Trouble::Cancelled) => {
            let at = view::cancelled_at(app, tenant, id).await?.unwrap_or_else(ids::unix_s);
            record.end(app, tenant, Ended::unprepared(EndState::Cancelled, at)).await?;
        }
        Err(Trouble::Expired) => record.end(app, tenant, Ended::unprepared(EndState::Expired, over_at)).await?,
        Err(Trouble::Failed { code, message, bad_lines }) => {
            tracing::info!(%tenant, batch = id, code, "a batch failed");
            write_failure(app, tenant, id, code, &message, bad_lines).await?;
        }
        Err(Trouble::Closing) => return Ok(()),
        Err(Trouble::TooLong) if pending.overruns > OVERRUNS_MAX => {
            tracing::info!(%tenant, batch = id, "a batch took too long");
            let message = "its file takes longer to prepare than a file of its size may: give it in smaller parts, or \
                           uncompressed";
            write_failure(app, tenant, id, "preparation_too_long", message, Vec::new()).await?;
        }
        Err(Trouble::TooLong) => {
            tracing::warn!(%tenant, batch = id, tries = pending.tries, "a batch takes too long and has to wait for another turn");
            return Ok(());
        }
        Err(Trouble::Passing(reason)) => {
            tracing::warn!(%tenant, batch = id, tries = pending.tries, reason, "a batch can't be prepared yet");
            return Ok(());
        }
    }
    Ok(app.store.delete(&key).await?)
}

/// Writes down that a preparation has come back. Where S3 is away that waits: an outage is nobody's death.
async fn put_back(app: &App, key: &str, pending: &Pending, mut closing: watch::Receiver<bool>) -> Result<(), ApiError> {
    loop {
        let error = match app.store.put_json(key, pending).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        tokio::select! {
            _ = closing.wait_for(|closing| *closing) => return Err(error.into()),
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// Ends when a batch that is prepared is not wanted any more, and says why. Looked for on S3, so that it holds whichever gateway was
/// told.
async fn unwanted(app: &App, tenant: &TenantId, record: &BatchRecord, mut closing: watch::Receiver<bool>) -> Trouble {
    let over_at = record.created_at + record.window_s;
    let key = storage::batch_cancelled(tenant, &record.id);
    loop {
        tokio::select! {
            _ = closing.wait_for(|closing| *closing) => return Trouble::Closing,
            () = tokio::time::sleep(WANTED_EVERY) => {}
        }
        if app.store.exists(&key).await.unwrap_or(false) {
            return Trouble::Cancelled;
        }
        if over_at <= ids::unix_s() {
            return Trouble::Expired;
        }
    }
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
