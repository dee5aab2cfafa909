//! The course of one delivery, and what each way of stopping comes to.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tracing::{debug, info, warn};
use vecmill_producer::{
    contract::{DeadChunk, Manifest, Outcome as ChunkOutcome},
    life::Standing,
    shares::Share,
    store::StoreError,
};
use vecmill_signer::claims::Digest;

use super::{
    Pipeline,
    admit::{Admitted, Claim, Stop},
    embed::Texts,
    write::Encoded,
};
use crate::{
    audit::{AuditRecord, Decision},
    delivery::{Delivery, Incoming, Settle, stopped},
    finish::{EndedJob, FinishError},
    health::Need,
    kill_point::{kill_point, kill_point_of},
    metrics::Outcome,
    schedule::Class,
};

/// Attempts before a chunk is given up. Down the default ladder of 5 s, 30 s, 2 min, 10 min and then every 10 min,
/// that is an outage of about an hour and a half.
const ATTEMPTS_MAX: u32 = 12;
/// How long a chunk of a job that is held up waits between two looks: resumed, it goes on within this time.
const PAUSED_WAIT: Duration = Duration::from_secs(30);
/// Between two looks of a chunk that is computed at a run that is to stop: it is over within seconds.
const CANCELLING_LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a chunk waits when even its end can't be recorded.
const UNRECORDED_WAIT: Duration = Duration::from_secs(30);

/// A way to end well.
enum Ended {
    Embedded,
    AlreadyDone,
    Cancelled,
    Superseded,
}

impl Pipeline {
    /// Works on one delivery and settles it.
    pub(super) async fn handle(self: Arc<Self>, delivery: Delivery, mut give_up: watch::Receiver<bool>) {
        self.parts.metrics.chunks_in_flight.inc();
        let begun = Instant::now();
        let Delivery { incoming, mut settle } = delivery;
        let (decision, outcome) = tokio::select! {
            decided = self.decide(&incoming, begun) => decided,
            () = stopped(&mut give_up) => (Settle::HandBack, Outcome::HandedBack),
            // The session is gone and the delivery with it: it comes again to whoever is there.
            () = settle.closed() => (Settle::HandBack, Outcome::HandedBack),
        };
        self.parts.metrics.settled(outcome);
        self.parts.metrics.chunks_in_flight.dec();
        if matches!(outcome, Outcome::Embedded) {
            self.parts.metrics.chunk_seconds.observe(begun.elapsed().as_secs_f64());
        }
        kill_point("before-settle");
        // Nobody there to hear it: the delivery comes again and finds what is done.
        let _ = settle.send(decision);
    }

    async fn decide(&self, delivery: &Incoming, begun: Instant) -> (Settle, Outcome) {
        let claim = match self.verify(delivery).await {
            Ok(claim) => claim,
            Err(stop) => return self.stopped_unverified(delivery, stop).await,
        };
        let mut manifest = None;
        match self.work(delivery, &claim, &mut manifest, begun).await {
            Ok(Ended::Embedded) => (Settle::Done, Outcome::Embedded),
            Ok(Ended::AlreadyDone) => (Settle::Done, Outcome::AlreadyDone),
            Ok(Ended::Cancelled) => (Settle::Done, Outcome::Cancelled),
            Ok(Ended::Superseded) => (Settle::Done, Outcome::Superseded),
            Err(stop) => self.stopped(delivery, &claim, manifest.as_ref(), stop).await,
        }
    }

    async fn work(
        &self,
        delivery: &Incoming,
        claim: &Claim,
        manifest: &mut Option<Arc<Manifest>>,
        begun: Instant,
    ) -> Result<Ended, Stop> {
        let store = &self.parts.store;
        // An outage of S3 shows here first; it is waited for before anything is spent on the chunk.
        let standing = self.patiently(Need::Store, || self.standing(claim)).await?;
        if standing == Standing::Over {
            debug!(job = %claim.grant.job(), at = %claim.keys.at(), chunk = claim.chunk, "a message of an earlier run");
            return Ok(Ended::Superseded);
        }
        // Kept outside: a chunk that stops below may be its run's last.
        let manifest = &*manifest.insert(self.manifest(claim).await?);
        let admitted = &self.admit(claim, manifest)?;
        if standing == Standing::Paused {
            return Err(Stop::Later { wait: PAUSED_WAIT });
        }
        let ended = claim.keys.ended(claim.chunk);
        if self.patiently(Need::Store, || store.exists(&ended)).await? {
            self.end(claim, manifest).await?;
            return Ok(Ended::AlreadyDone);
        }
        if standing != Standing::Goes {
            // Cancelled, or over without this chunk.
            let audit = AuditRecord::of_chunk(&self.parts.worker, Decision::Cancelled, &claim.grant, claim.chunk);
            audit.write_for(&self.parts.audit, &claim.keys, claim.chunk, "cancelled").await?;
            self.stop(claim, manifest).await?;
            return Ok(Ended::Cancelled);
        }
        self.check_revoked(claim)?;
        // After what ends a job whoever looks, before anything is spent on the chunk.
        self.check_precision(claim, manifest)?;
        let turn = self.turn(delivery, claim).await?;
        let computed = self.compute(claim, admitted).await;
        self.survived(turn, claim).await;
        // The memory is held until all of it is written.
        let (encoded, _memory) = computed?;
        // It may have been revoked while it was computed, or be of a run that counts no longer.
        self.check_revoked(claim)?;
        loop {
            match self.patiently(Need::Store, || self.standing(claim)).await? {
                Standing::Over => return Ok(Ended::Superseded),
                // Whoever writes the end of a cancelled run counts what is recorded: nothing may come between the count and the end.
                // After it the result is kept for a later run.
                Standing::Cancelling => {
                    self.stop(claim, manifest).await?;
                    tokio::time::sleep(CANCELLING_LOOK_EVERY).await;
                }
                Standing::Goes | Standing::Paused | Standing::Ended => break,
            }
        }
        // The GPU's work is in hand: patience here saves doing it again.
        self.patiently(Need::Store, || self.write(claim, admitted, &encoded, begun)).await?;
        self.spent(claim, admitted).await;
        self.end(claim, manifest).await?;
        debug!(job = %claim.grant.job(), chunk = claim.chunk, "chunk done");
        Ok(Ended::Embedded)
    }

    /// From the chunk's object to the objects that are to be written.
    async fn compute(&self, claim: &Claim, admitted: &Admitted) -> Result<(Encoded, Share), Stop> {
        let of = (claim.grant.manifest_sha256(), claim.chunk);
        let known = self.counts.get(of);
        if let Some(tokens) = known {
            // It waited for quota: it is not fetched before it has it.
            self.charge(claim, admitted, tokens).await?;
        }
        let memory = self.memory_for(claim, admitted.entry)?;
        let rows = self.fetch(claim, admitted.entry).await?;
        let spec = &admitted.manifest.spec;
        let texts = Texts {
            tenant: claim.grant.tenant().clone(),
            class: Class::Bulk,
            rows,
            instruction: spec.instruction.clone(),
            truncate: spec.truncate,
            tokens_max: None,
        };
        let mut tokenized = self.tokenize(texts).await?;
        self.check_revoked(claim)?;
        if known.is_none() {
            let tokens = tokenized.total();
            let charged = self.charge(claim, admitted, tokens).await;
            if let Err(Stop::Later { .. }) = charged {
                self.counts.keep(of, tokens);
            }
            charged?;
        }
        let good = tokenized.take_good();
        let counts: Vec<u32> = good.iter().map(|tokens| tokens.len() as u32).collect();
        kill_point_of("before-embed", claim.grant.job().as_str());
        let hiddens = self
            .parts
            .embedder
            .embed(claim.grant.tenant().as_str(), Class::Bulk, good)
            .await
            .map_err(|_| Stop::HandBack)?;
        let finishing = Self::finish(tokenized, counts, hiddens, spec.dimensions as usize);
        let embedded =
            finishing.await.map_err(|_| Stop::Transient { reason: "finishing rows ended early".to_owned() })?;
        Ok((self.encode(claim, admitted, embedded).await?, memory))
    }

    /// Has the run looked at, now that this chunk has ended.
    async fn end(&self, claim: &Claim, manifest: &Arc<Manifest>) -> Result<(), Stop> {
        let ended = ended_job(claim, manifest);
        let looking = self.patiently(Need::Store, || self.finisher.chunk_ended(ended.clone()));
        looking.await.map_err(Stop::from)
    }

    /// Has a run looked at that is to stop, or has ended.
    async fn stop(&self, claim: &Claim, manifest: &Arc<Manifest>) -> Result<(), Stop> {
        let ended = ended_job(claim, manifest);
        let looking = self.patiently(Need::Store, || self.finisher.run_stops(ended.clone()));
        looking.await.map_err(Stop::from)
    }

    /// A message that proves nothing: recorded by its digest, and no effect on any job.
    async fn stopped_unverified(&self, delivery: &Incoming, stop: Stop) -> (Settle, Outcome) {
        match stop {
            Stop::Refused { code, reason } => self.refuse(delivery, code, reason).await,
            Stop::Later { wait } => (Settle::Later { wait }, Outcome::Later),
            Stop::Elsewhere { wait } => (Settle::Later { wait }, Outcome::Elsewhere),
            Stop::Dead { reason, .. } | Stop::Transient { reason } => (Settle::Retry { reason }, Outcome::Retry),
            Stop::HandBack => (Settle::HandBack, Outcome::HandedBack),
        }
    }

    async fn refuse(&self, delivery: &Incoming, code: &'static str, reason: String) -> (Settle, Outcome) {
        warn!(code, reason, "message refused");
        let record = AuditRecord::refused(&self.parts.worker, Digest::of(&delivery.body), code, &reason);
        match self.patiently(Need::Store, || record.write_refusal(&self.parts.audit)).await {
            Ok(()) => (Settle::Dead { code: code.to_owned(), reason }, Outcome::Refused),
            Err(_) => (Settle::Later { wait: UNRECORDED_WAIT }, Outcome::Later),
        }
    }

    async fn stopped(
        &self,
        delivery: &Incoming,
        claim: &Claim,
        manifest: Option<&Arc<Manifest>>,
        stop: Stop,
    ) -> (Settle, Outcome) {
        let (code, reason) = match stop {
            Stop::Later { wait } => return (Settle::Later { wait }, Outcome::Later),
            Stop::Elsewhere { wait } => return (Settle::Later { wait }, Outcome::Elsewhere),
            Stop::HandBack => return (Settle::HandBack, Outcome::HandedBack),
            Stop::Refused { code, reason } => return self.refuse(delivery, code, reason).await,
            Stop::Transient { reason } if delivery.attempt + 1 < ATTEMPTS_MAX => {
                info!(job = %claim.grant.job(), chunk = claim.chunk, attempt = delivery.attempt, reason, "chunk to be tried again");
                return (Settle::Retry { reason }, Outcome::Retry);
            }
            Stop::Transient { reason } => {
                ("retries_exhausted", format!("{ATTEMPTS_MAX} attempts failed, the last: {reason}"))
            }
            Stop::Dead { code, reason } => (code, reason),
        };
        warn!(job = %claim.grant.job(), chunk = claim.chunk, code, reason, "chunk given up");
        if let Err(error) = self.record_death(claim, code, &reason).await {
            // Unaudited and invisible to the tenant is no end: it comes back until it can be recorded.
            warn!(%error, "the chunk's end can't be recorded yet");
            return (Settle::Later { wait: UNRECORDED_WAIT }, Outcome::Later);
        }
        if let Some(manifest) = manifest
            && self.end(claim, manifest).await.is_err()
        {
            return (Settle::Later { wait: UNRECORDED_WAIT }, Outcome::Later);
        }
        (Settle::Dead { code: code.to_owned(), reason }, Outcome::Dead)
    }

    async fn record_death(&self, claim: &Claim, code: &str, reason: &str) -> Result<(), StoreError> {
        let (store, keys, chunk) = (&self.parts.store, &claim.keys, claim.chunk);
        let mut audit = AuditRecord::of_chunk(&self.parts.worker, Decision::Dead, &claim.grant, chunk);
        audit.code = Some(code.to_owned());
        audit.reason = Some(reason.to_owned());
        audit.write_for(&self.parts.audit, keys, chunk, "dead").await?;
        let dead = DeadChunk { chunk, code: code.to_owned(), reason: reason.to_owned(), at: jiff::Timestamp::now() };
        // First that it may be dead, for those who list; then that it is, unless another has done it.
        store.put_json(&keys.dead(chunk), &dead).await?;
        let outcome = serde_json::to_vec(&ChunkOutcome::Dead(dead)).unwrap_or_default();
        store.put_new(&keys.ended(chunk), outcome, "application/json").await?;
        Ok(())
    }
}

fn ended_job(claim: &Claim, manifest: &Arc<Manifest>) -> EndedJob {
    EndedJob {
        keys: claim.keys.clone(),
        ledger: claim.ledger.clone(),
        manifest: manifest.clone(),
        manifest_sha256: claim.grant.manifest_sha256(),
    }
}

impl From<FinishError> for Stop {
    fn from(error: FinishError) -> Self {
        match error {
            FinishError::Ledger(error) => Self::Transient { reason: error.to_string() },
            FinishError::Gone => Self::HandBack,
        }
    }
}
