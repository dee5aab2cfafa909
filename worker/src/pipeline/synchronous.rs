//! One synchronous request from message to answer: the same checks, tokens, charge, model and finish as a chunk's, without S3
//! in between and ahead of every chunk. Whatever goes wrong is an answer: somebody waits.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use vecmill_producer::contract::{
    ChunkRow, EMBED_INPUTS_MAX, EMBED_TOKENS_MAX, EmbedAnswer, EmbedRefusal, EmbedRequest, RefusalKind, RowError,
    Truncate, usage_field,
};
use vecmill_signer::{edge, verify::VerifiedEmbed};

use super::{
    Pipeline,
    admit::BYTES_PER_VALUE,
    embed::{Texts, Tokenized},
};
use crate::{
    audit::{AuditRecord, Decision},
    kill_point::kill_point,
    quota::{Charge, Over, Verdict, Work},
    schedule::Class,
};

/// Shortest vector that a Matryoshka model of this family was trained to be cut to.
const DIMENSIONS_MIN: u32 = 32;
/// A charge is remembered for longer than one that got lost on its way is asked for again.
const CHARGE_KEPT_S: u64 = 10;
/// A message that is read where it stands: it takes less than the two changes of thread.
const SMALL_BYTES: usize = 64 << 10;
/// When to come back where something is away: a restart takes seconds.
const AWAY_MS: u64 = 2_000;

fn refusal(kind: RefusalKind, code: &str, message: impl Into<String>) -> EmbedRefusal {
    EmbedRefusal { kind, code: code.to_owned(), message: message.into(), input: None, retry_after_ms: None }
}

fn away(code: &str, message: &str) -> EmbedRefusal {
    EmbedRefusal { retry_after_ms: Some(AWAY_MS), ..refusal(RefusalKind::Unavailable, code, message) }
}

/// A refusal for one of the inputs.
fn at_fault(kind: RefusalKind, failure: &RowError) -> EmbedRefusal {
    EmbedRefusal { input: Some(failure.line as u32), ..refusal(kind, &failure.code, failure.message.clone()) }
}

/// Why nothing is computed of what was tokenized.
fn not_computed(tokenized: &Tokenized) -> Option<EmbedRefusal> {
    if let Some(failure) = tokenized.first_failure() {
        return Some(at_fault(RefusalKind::Invalid, failure));
    }
    let total = tokenized.total();
    (total > EMBED_TOKENS_MAX).then(|| {
        let message = format!("the inputs have {total} tokens or more, {EMBED_TOKENS_MAX} may be asked for at once");
        refusal(RefusalKind::Invalid, "too_many_tokens", message)
    })
}

impl Pipeline {
    /// Answers a request, or nobody: its caller's time was over before it came.
    pub async fn answer(&self, body: Vec<u8>) -> Option<EmbedAnswer> {
        let begun = Instant::now();
        let read = if body.len() <= SMALL_BYTES {
            EmbedRequest::parse(&body)
        } else {
            tokio::task::spawn_blocking(move || EmbedRequest::parse(&body)).await.ok()?
        };
        let request = match read {
            Ok(request) => request,
            Err(error) => {
                return Some(EmbedAnswer::Refused(refusal(RefusalKind::Invalid, "malformed", error.to_string())));
            }
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let left = Duration::from_millis(request.deadline_ms).checked_sub(now).filter(|left| !left.is_zero())?;
        // Past the deadline the rows that are not computed yet are dropped with this future.
        let answered = tokio::time::timeout(left, self.embed_now(request, begun)).await.ok()?;
        Some(answered.unwrap_or_else(EmbedAnswer::Refused))
    }

    async fn embed_now(&self, request: EmbedRequest, begun: Instant) -> Result<EmbedAnswer, EmbedRefusal> {
        let access = self.authorize(&request).await?;
        let dimensions = self.check(&request, &access)?;
        // Of the same memory as chunks: the words of a request are few, and their vectors are not.
        let values = request.inputs.len() as u64 * self.parts.embedder.info().hidden as u64;
        let _memory = self.memory.take(access.tenant().as_str(), values * BYTES_PER_VALUE).ok_or_else(|| {
            away("overloaded", "the worker has all the requests and chunks of this tenant that it can hold; ask again")
        })?;
        // Unaudited means unserved: the place in the audit comes before the work.
        let place = self.parts.request_audit.place().ok_or_else(|| {
            away("audit_unavailable", "the audit can't be written at the moment, and nothing is served without it")
        })?;
        let inputs = request.inputs.into_iter().zip(0..);
        let rows = inputs.map(|(input, index)| ChunkRow { line: index, id: String::new(), input: input.into() });
        let texts = Texts {
            tenant: access.tenant().clone(),
            class: Class::Synchronous,
            rows: rows.collect(),
            instruction: request.instruction,
            truncate: Truncate::None,
            tokens_max: Some(EMBED_TOKENS_MAX),
        };
        let mut tokenized =
            self.tokenize(texts).await.map_err(|_| away("worker_draining", "the worker is going away; ask again"))?;
        let total = tokenized.total();
        if let Some(refused) = not_computed(&tokenized) {
            // A core has worked on it, so that is paid for; the answer is no either way. A tenant that is over its quota pays
            // nothing more: it works through its turns only.
            if total > 0 {
                _ = self.charge_request(&access, total).await;
            }
            return Err(refused);
        }
        self.charge_request(&access, total).await?;
        let good = tokenized.take_good();
        let tokens: Vec<u32> = good.iter().map(|ids| ids.len() as u32).collect();
        kill_point("before-synchronous-embed");
        let embedded = self.parts.embedder.embed(access.tenant().as_str(), Class::Synchronous, good).await;
        let hiddens = embedded.map_err(|_| away("worker_draining", "the worker is going away; ask again"))?;
        let finishing = Self::finish(tokenized, tokens.clone(), hiddens, dimensions as usize);
        let embedded = finishing
            .await
            .map_err(|_| refusal(RefusalKind::Failed, "engine_failed", "the worker failed on this request"))?;
        if let Some(failure) = embedded.failed.first() {
            return Err(at_fault(RefusalKind::Failed, failure));
        }
        let info = self.parts.embedder.info();
        let mut record = AuditRecord::of_request(&self.parts.worker, Decision::Embedded, &access, &request.id);
        record.model = Some(request.model);
        record.revision = Some(info.revision.clone());
        record.commit = info.commit.clone();
        record.precision = Some(info.precision);
        record.compute = Some(info.path);
        record.rows = tokens.len() as u32;
        record.tokens = total;
        record.dimensions = Some(dimensions);
        record.latency_ms = begun.elapsed().as_millis() as u64;
        place.write(record);
        self.parts.metrics.rows.inc_by(tokens.len() as u64);
        let mut vectors = Vec::with_capacity(embedded.vectors.len() * 4 * dimensions as usize);
        embedded.vectors.iter().flatten().for_each(|value| vectors.extend_from_slice(&value.to_le_bytes()));
        Ok(EmbedAnswer::Embedded { tokens, dimensions, vectors })
    }

    /// Whose request it is. Only an embed token says so: an access token opens more than a queue should hold.
    async fn authorize(&self, request: &EmbedRequest) -> Result<VerifiedEmbed, EmbedRefusal> {
        self.parts.verifier.embed(&request.token).await.map_err(|refused| {
            tracing::warn!(request = request.id, code = refused.code(), "synchronous request refused");
            if refused.is_transient() {
                away("signer_unavailable", "tokens can't be verified at the moment")
            } else {
                refusal(RefusalKind::Unauthorized, "invalid_token", "the token is not good; ask for a new one")
            }
        })
    }

    /// What can be said without a look at the texts; gives the vectors' length.
    fn check(&self, request: &EmbedRequest, access: &VerifiedEmbed) -> Result<u32, EmbedRefusal> {
        let invalid = |code: &str, message: String| Err(refusal(RefusalKind::Invalid, code, message));
        let (model, hidden) = (&self.parts.model, self.parts.embedder.info().hidden as u32);
        if request.model != *model {
            return invalid("model_not_found", format!("these workers serve {model}, not {}", request.model));
        }
        if access.model() != request.model {
            let message = format!("the token is for {}, not for {}", access.model(), request.model);
            return Err(refusal(RefusalKind::Forbidden, "access_denied", message));
        }
        if !(1..=EMBED_INPUTS_MAX).contains(&request.inputs.len()) {
            return invalid("invalid_input", format!("there must be 1 to {EMBED_INPUTS_MAX} inputs"));
        }
        let dimensions = request.dimensions.unwrap_or(hidden);
        if !(DIMENSIONS_MIN.min(hidden)..=hidden).contains(&dimensions) {
            return invalid(
                "invalid_dimensions",
                format!("dimensions must be {DIMENSIONS_MIN} to {hidden} for {model}, not {dimensions}"),
            );
        }
        if dimensions > access.dimensions_max() {
            let most = access.dimensions_max();
            let message = format!("dimensions {dimensions} are more than this tenant may ask for ({most})");
            return Err(refusal(RefusalKind::Forbidden, "access_denied", message));
        }
        Ok(dimensions)
    }

    /// Charges a request. Each that is computed is: whatever it is called, and however often it lies in the queue.
    async fn charge_request(&self, access: &VerifiedEmbed, tokens: u64) -> Result<(), EmbedRefusal> {
        let mut nonce = [0; 16];
        // The one source of randomness that TLS has too; without it there would be no connection.
        _ = edge::provider().secure_random.fill(&mut nonce);
        let charge = Charge {
            work: Work {
                tenant: access.tenant().to_string(),
                of: format!("request-{:032x}", u128::from_be_bytes(nonce)),
                piece: String::new(),
            },
            tokens,
            limits: access.limits().into(),
            usage: usage_field(None, access.key_id()),
            keep_s: CHARGE_KEPT_S,
        };
        let verdict = self.ask_for(charge).await.map_err(|_| {
            away("quota_unavailable", "the quota can't be asked at the moment, and nothing is served without it")
        })?;
        match verdict {
            Verdict::Charged | Verdict::AlreadyCharged => Ok(()),
            Verdict::Later { wait_ms, over } => {
                let (code, limit) = match over {
                    Over::Minute => ("tokens_per_minute", "a minute"),
                    Over::Day => ("tokens_per_day", "a day"),
                };
                let message = format!(
                    "the tenant is over its tokens {limit}; this request of {tokens} fits in {:.1} s",
                    wait_ms as f64 / 1000.0
                );
                Err(EmbedRefusal { retry_after_ms: Some(wait_ms), ..refusal(RefusalKind::OverQuota, code, message) })
            }
        }
    }
}
