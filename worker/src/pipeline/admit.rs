//! Admission: from an untrusted message to rows that may be computed. Nothing is believed before it is verified, and
//! nothing is computed or charged before everything is.

use std::{sync::Arc, time::Duration};

use tracing::debug;
use vecmill_producer::{
    contract::{CHUNK_TEXT_BYTES_MAX, ChunkEntry, ChunkMessage, ChunkRow, JobKeys, Manifest, read_chunk, usage_field},
    life::{Ledger, LedgerError},
    shares::Share,
    store::StoreError,
};
use vecmill_signer::{
    claims::Digest,
    verify::{Refusal, RevokedGrant, VerifiedGrant},
};

use super::Pipeline;
use crate::{
    delivery::Incoming,
    health::Need,
    manifests::ManifestTrouble,
    quota::{Ask, Charge, Verdict, Work},
};

/// How long a chunk waits outside when something that admission needs is away.
const AWAY_WAIT: Duration = Duration::from_secs(5);

/// How long a chunk waits outside that asks for a precision which this worker does not have. Short: a worker that has it
/// takes only what lies in the lane when it has a place.
const ELSEWHERE_WAIT: Duration = Duration::from_secs(5);

/// How long a chunk waits outside for which there is no memory: others are done within seconds.
const FULL_WAIT: Duration = Duration::from_secs(2);

/// How many times as long as its object a chunk's text is taken to be: zstd makes of text a fifth at best. What is longer is
/// counted too low, and bounded by [`CHUNK_TEXT_BYTES_MAX`].
const TEXT_PER_BYTE: usize = 8;

/// Bytes of a number of a vector, on its way: as a hidden state, cut and normalized, and in a part.
pub(super) const BYTES_PER_VALUE: u64 = 3 * 4;

const QUOTA_GONE: &str = "the quota's task has ended";

/// A chunk whose grant is verified: whose it is and where its objects lie.
pub(super) struct Claim {
    pub(super) grant: VerifiedGrant,
    /// Why the grant counts no longer: the job is to be told, and nothing else.
    pub(super) revoked: Option<Refusal>,
    /// The keys of its run.
    pub(super) keys: JobKeys,
    pub(super) ledger: Ledger,
    pub(super) chunk: u32,
    sha256: Digest,
}

/// A chunk that belongs to its job as the signer vouched for it.
pub(super) struct Admitted {
    pub(super) manifest: Arc<Manifest>,
    pub(super) entry: ChunkEntry,
}

/// Why a chunk is not computed now.
pub(super) enum Stop {
    /// The message proves no right to be computed. Nothing it claims may have an effect.
    Refused { code: &'static str, reason: String },
    /// It can never be computed; its job's status will say so.
    Dead { code: &'static str, reason: String },
    /// It failed in a way that may pass.
    Transient { reason: String },
    /// Not now.
    Later { wait: Duration },
    /// Not here: another worker can.
    Elsewhere { wait: Duration },
    /// This worker goes away.
    HandBack,
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Transient { reason: error.to_string() }
    }
}

impl From<LedgerError> for Stop {
    fn from(error: LedgerError) -> Self {
        Self::Transient { reason: error.to_string() }
    }
}

impl Pipeline {
    /// Reads the message and verifies its grant. No I/O is caused by what the message claims.
    pub(super) async fn verify(&self, delivery: &Incoming) -> Result<Claim, Stop> {
        let message = ChunkMessage::parse(&delivery.body)
            .map_err(|error| Stop::Refused { code: "malformed", reason: error.to_string() })?;
        let verifying = self.patiently(Need::Keys, || async {
            match self.parts.verifier.grant_or_revoked(&message.grant).await {
                Err(refusal) if refusal.is_transient() => Err(refusal),
                decided => Ok::<Result<Result<VerifiedGrant, RevokedGrant>, Refusal>, Refusal>(decided),
            }
        });
        let (grant, revoked) = match verifying.await {
            Ok(Ok(Ok(grant))) => (grant, None),
            Ok(Ok(Err(RevokedGrant { grant, refusal }))) => (grant, Some(refusal)),
            Ok(Err(refusal)) => return Err(Stop::Refused { code: refusal.code(), reason: refusal.to_string() }),
            Err(_) => return Err(Stop::Later { wait: AWAY_WAIT }),
        };
        if message.job != grant.job().as_str() {
            return Err(Stop::Refused { code: "wrong_job", reason: "the message's job is not its grant's".to_owned() });
        }
        if message.run != grant.run().run {
            return Err(Stop::Refused { code: "wrong_run", reason: "the message's run is not its grant's".to_owned() });
        }
        let ledger = Ledger::new(self.parts.store.clone(), grant.tenant(), grant.job());
        let keys = ledger.keys_of(grant.run());
        Ok(Claim { keys, ledger, chunk: message.chunk, sha256: message.sha256, grant, revoked })
    }

    /// Whether the grant counts no longer: found when it was verified, or since.
    pub(super) fn check_revoked(&self, claim: &Claim) -> Result<(), Stop> {
        let revoked = claim.revoked.clone().map_or_else(|| self.parts.verifier.recheck(&claim.grant), Err);
        let Err(refusal) = revoked else { return Ok(()) };
        let (code, reason) = (refusal.code(), refusal.to_string());
        // A withdrawn signing key's word has no effect on any job, whoever's it was.
        if refusal == Refusal::SigningKeyWithdrawn {
            return Err(Stop::Refused { code, reason });
        }
        Err(Stop::Dead { code, reason })
    }

    /// The manifest that the grant vouches for.
    pub(super) async fn manifest(&self, claim: &Claim) -> Result<Arc<Manifest>, Stop> {
        match self.manifests.of(&claim.grant).await {
            Ok(manifest) => Ok(manifest),
            Err(ManifestTrouble::Store(error)) => Err(error.into()),
            Err(error @ ManifestTrouble::Missing) => {
                Err(Stop::Dead { code: "manifest_missing", reason: error.to_string() })
            }
            Err(error) => Err(Stop::Dead { code: "bad_manifest", reason: error.to_string() }),
        }
    }

    /// Checks that this worker can compute the chunk, and that the chunk is the job's.
    pub(super) fn admit(&self, claim: &Claim, manifest: &Arc<Manifest>) -> Result<Admitted, Stop> {
        let (model, hidden) = (&self.parts.model, self.parts.embedder.info().hidden);
        if claim.grant.model() != model {
            let reason = format!("the job is for model {}, these workers serve {model}", claim.grant.model());
            return Err(Stop::Dead { code: "wrong_model", reason });
        }
        if claim.grant.dimensions() as usize > hidden {
            let reason = format!("the job asks for {} dimensions, the model has {hidden}", claim.grant.dimensions());
            return Err(Stop::Dead { code: "too_many_dimensions", reason });
        }
        let Some(entry) = manifest.chunks.get(claim.chunk as usize).copied() else {
            let reason = format!("the message is for chunk {}, the job has {}", claim.chunk, manifest.chunks.len());
            return Err(Stop::Refused { code: "no_such_chunk", reason });
        };
        // Not the job's fault: a message that was tampered with must not be able to kill a chunk.
        if entry.sha256 != claim.sha256 {
            let reason = "the message's digest is not the manifest's".to_owned();
            return Err(Stop::Refused { code: "tampered", reason });
        }
        Ok(Admitted { manifest: manifest.clone(), entry })
    }

    /// Whether the model here has the precision that the job asks for. If not it is nobody's fault and costs nothing: a
    /// worker that has it takes the chunk in its turn, and a gateway says so where there is none.
    pub(super) fn check_precision(&self, claim: &Claim, manifest: &Manifest) -> Result<(), Stop> {
        let have = self.parts.embedder.info().precision;
        let Some(asked) = manifest.spec.precision.filter(|&asked| asked != have) else { return Ok(()) };
        debug!(job = %claim.grant.job(), chunk = claim.chunk, %asked, %have, "chunk left to a worker of its precision");
        Err(Stop::Elsewhere { wait: ELSEWHERE_WAIT })
    }

    /// Fetches the chunk's rows, which must be those of the manifest.
    pub(super) async fn fetch(&self, claim: &Claim, entry: ChunkEntry) -> Result<Vec<ChunkRow>, Stop> {
        let key = claim.keys.chunk(claim.chunk, &entry.sha256);
        let object = match self.parts.store.get(&key, entry.bytes as usize).await {
            Ok(Some(object)) => object,
            Ok(None) => {
                let reason = "the chunk is not on S3: it was deleted".to_owned();
                return Err(Stop::Dead { code: "chunk_missing", reason });
            }
            // Longer than the manifest says: another object, whatever it hashes to. No later try changes that.
            Err(error) if error.is_too_long() => {
                return Err(Stop::Dead { code: "bad_digest", reason: error.to_string() });
            }
            Err(error) => return Err(error.into()),
        };
        let decoded = tokio::task::spawn_blocking(move || {
            let found = Digest::of(&object);
            if found != entry.sha256 {
                let reason = format!("the chunk hashes to {found}, the manifest says {}", entry.sha256);
                return Err(Stop::Dead { code: "bad_digest", reason });
            }
            read_chunk(&object, entry.rows)
                .map_err(|error| Stop::Dead { code: "unreadable_chunk", reason: error.to_string() })
        });
        decoded.await.unwrap_or_else(|_| Err(Stop::Transient { reason: "decoding the chunk ended early".to_owned() }))
    }

    /// Memory for a chunk in hand: its object, its text, its rows' hidden states and their vectors.
    ///
    /// No chunk that a producer cuts comes near a share. One that was made to be large waits outside until there is room, and one
    /// that never can have it is given up.
    pub(super) fn memory_for(&self, claim: &Claim, entry: ChunkEntry) -> Result<Share, Stop> {
        let hidden = self.parts.embedder.info().hidden as u64;
        let text = CHUNK_TEXT_BYTES_MAX.min((entry.bytes as usize).saturating_mul(TEXT_PER_BYTE)) as u64;
        let bytes = u64::from(entry.bytes) + text + u64::from(entry.rows) * hidden * BYTES_PER_VALUE;
        if bytes > self.parts.chunk_memory_bytes {
            let most = self.parts.chunk_memory_bytes;
            let reason = format!("the chunk takes {bytes} bytes of memory, workers have {most}: cut it smaller");
            return Err(Stop::Dead { code: "chunk_too_large", reason });
        }
        self.memory.take(claim.grant.tenant().as_str(), bytes).ok_or(Stop::Later { wait: FULL_WAIT })
    }

    /// Charges the tenant for the chunk's exact tokens, once for each time that it is computed, however often it comes before.
    pub(super) async fn charge(&self, claim: &Claim, admitted: &Admitted, tokens: u64) -> Result<(), Stop> {
        if tokens == 0 {
            return Ok(());
        }
        let charge = Charge {
            work: work(claim, admitted),
            tokens,
            limits: claim.grant.limits().into(),
            usage: usage_field(Some(claim.grant.job().as_str()), claim.grant.key_id()),
            keep_s: claim.grant.expires_at().saturating_sub(claim.grant.issued_at()),
        };
        match self.patiently(Need::Quota, || self.ask_for(charge.clone())).await {
            Ok(Verdict::Charged | Verdict::AlreadyCharged) => Ok(()),
            Ok(Verdict::Later { wait_ms, .. }) => Err(Stop::Later { wait: Duration::from_millis(wait_ms) }),
            Err(_) => Err(Stop::Later { wait: AWAY_WAIT }),
        }
    }

    /// What whoever keeps the quota says to a charge, or why it says nothing.
    pub(super) async fn ask_for(&self, charge: Charge) -> Result<Verdict, String> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.parts.quota.send(Ask::Charge { charge, reply }).await.map_err(|_| QUOTA_GONE.to_owned())?;
        answer.await.map_err(|_| QUOTA_GONE.to_owned())?.map_err(|error| error.to_string())
    }

    /// The chunk's result is recorded: whoever has it computed again pays again.
    pub(super) async fn spent(&self, claim: &Claim, admitted: &Admitted) {
        // Whoever keeps the quota is gone with the worker.
        _ = self.parts.quota.send(Ask::Spent(work(claim, admitted))).await;
    }
}

/// What is paid for: this chunk's bytes, in this run. The job's id alone would be its client's to choose, and to use again for
/// other texts.
fn work(claim: &Claim, admitted: &Admitted) -> Work {
    Work {
        tenant: claim.grant.tenant().to_string(),
        of: format!("{}.{}", claim.grant.job(), claim.grant.run()),
        piece: format!("{}:{}", claim.chunk, admitted.entry.sha256),
    }
}
