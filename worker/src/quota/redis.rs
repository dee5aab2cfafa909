//! The quota in Redis: one Lua script, so that checking and writing are one step for all workers.

use std::time::{SystemTime, UNIX_EPOCH};

use deadpool_redis::redis::{AsyncTypedCommands as _, Script, ScriptInvocation, cmd};
use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;
use tracing::debug;

use vecmill_producer::contract::{USAGE_DAYS, usage_key};
pub use vecmill_producer::redis::SetupError;
use vecmill_producer::redis::{AskError, Redis};
use vecmill_signer::edge::ClientTls;

use super::{Ask, Cause, Charge, DAY_MS, Over, QuotaError, TOKENS_MAX, Verdict, Work, keep_ms};

/// The rules as Redis runs them. Its header says what it takes and answers.
pub(super) const CHARGE_LUA: &str = include_str!("charge.lua");

/// Asks under way at once. A worker asks twice a chunk, a chunk takes seconds, and an ask takes about a millisecond.
const ASKS_MAX: usize = 8;

/// Quotas of all tenants, shared by all workers through Redis.
pub struct RedisQuota {
    redis: Redis,
    script: Script,
}

impl RedisQuota {
    /// Takes a `redis://` or `rediss://` URL; `tls` is for the latter. Connects to nothing yet.
    ///
    /// # Errors
    /// When the URL is not usable.
    pub fn new(url: &str, tls: &ClientTls) -> Result<Self, SetupError> {
        Self::with_script(url, tls, CHARGE_LUA)
    }

    /// The same, running a script of the caller's: tests give it a clock they hold.
    pub(super) fn with_script(url: &str, tls: &ClientTls, script: &str) -> Result<Self, SetupError> {
        Ok(Self { redis: Redis::new(url, tls)?, script: Script::new(script) })
    }

    /// Charges tokens, once until they are spent.
    ///
    /// # Errors
    /// [`QuotaError::Unavailable`] within 1.5 s when Redis can't be asked. Asking again is harmless.
    pub async fn charge(&self, charge: &Charge) -> Result<Verdict, QuotaError> {
        let invocation = &self.invocation(charge);
        let asked = self.redis.ask(|mut line| async move { invocation.invoke_async(&mut line).await }).await;
        let (tag, wait_ms): (String, u64) = asked.map_err(unavailable)?;
        match tag.as_str() {
            "charged" => Ok(Verdict::Charged),
            "already" => Ok(Verdict::AlreadyCharged),
            "minute" => Ok(Verdict::Later { wait_ms, over: Over::Minute }),
            "day" => Ok(Verdict::Later { wait_ms, over: Over::Day }),
            _ => Err(QuotaError::Unavailable(Cause::Answer)),
        }
    }

    /// Forgets a charge whose work is done.
    ///
    /// # Errors
    /// [`QuotaError::Unavailable`] within 1.5 s when Redis can't be asked.
    pub async fn spent(&self, work: &Work) -> Result<(), QuotaError> {
        let (key, piece) = (unspent_key(work), &work.piece);
        let key = &key;
        let asked = self.redis.ask(|mut line| async move { line.srem(key, piece).await }).await;
        asked.map(drop).map_err(unavailable)
    }

    /// Asks whether Redis answers, for start-up and readiness.
    ///
    /// # Errors
    /// [`QuotaError::Unavailable`] within 1.5 s when it does not.
    pub async fn ping(&self) -> Result<(), QuotaError> {
        self.redis.ask(|mut line| async move { cmd("PING").query_async(&mut line).await }).await.map_err(unavailable)
    }

    /// The script's call for a charge. All keys of a tenant share its hash tag, so they lie on one node of a cluster.
    fn invocation(&self, charge: &Charge) -> ScriptInvocation<'_> {
        let Charge { work, tokens, usage, keep_s, .. } = charge;
        let limits = charge.limits.clamped();
        let mut invocation = self.script.prepare_invoke();
        invocation
            .key(format!("vecmill:{{{}}}:quota", work.tenant))
            .key(unspent_key(work))
            .key(usage_key(&work.tenant, unix_day()))
            .arg((*tokens).min(TOKENS_MAX))
            .arg(limits.tokens_per_minute)
            .arg(limits.tokens_burst)
            .arg(limits.tokens_per_day)
            .arg(&work.piece)
            .arg(keep_ms(*keep_s))
            .arg(usage)
            .arg(USAGE_DAYS * DAY_MS);
        invocation
    }
}

/// The set of a work's pieces that are charged and not done. It has those in hand at workers, and the few of which it was never
/// said that they were done.
fn unspent_key(work: &Work) -> String {
    format!("vecmill:{{{}}}:unspent:{}", work.tenant, work.of)
}

/// The UTC day, from 1970. By this machine's clock: which day a chunk at midnight is counted under decides nothing.
fn unix_day() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or_default() / DAY_MS
}

/// Answers asks until all senders are gone.
///
/// A bounded number at once: the channel is the better queue.
pub async fn serve(quota: RedisQuota, mut asks: mpsc::Receiver<Ask>) {
    let quota = &quota;
    stream::poll_fn(move |cx| asks.poll_recv(cx))
        .for_each_concurrent(ASKS_MAX, async |ask| match ask {
            Ask::Charge { charge, reply } => {
                let verdict = quota.charge(&charge).await;
                // The asker may have gone. The charge stands; whoever takes the chunk next hears `AlreadyCharged`.
                drop(reply.send(verdict));
            }
            Ask::Spent(work) => {
                if let Err(error) = quota.spent(&work).await {
                    debug!(%error, "a charge that is spent could not be forgotten");
                }
            }
        })
        .await;
}

fn unavailable(error: AskError) -> QuotaError {
    QuotaError::Unavailable(Cause::Redis(error))
}
