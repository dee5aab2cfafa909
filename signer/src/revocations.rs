//! What the signer has revoked, as a verifier knows it: one signed statement, fetched every two seconds.
//!
//! The statement is signed and numbered, so nobody on the way can forge it, trim it or go back to an earlier one, and its
//! age counts from when it was signed, so nobody can hold it up for longer than the bound on its age. Past the bound a
//! verifier refuses everything with a reason that passes: it pauses rather than admit what may have been revoked.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{ETAG, IF_NONE_MATCH};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::claims::{JobId, REVOCATIONS_TYPE, RevocationClaims, RevokedName, TenantId};
use crate::edge;
use crate::header::kid_of;
use crate::http;
use crate::refusal::Refusal;
use crate::remote_keys::RemoteKeys;
use crate::time::unix_now;
use crate::verify::{LEEWAY_S, statement};

/// Between two fetches. With the signer's own half a second this is how fast a revocation takes effect.
const POLL_EVERY: Duration = Duration::from_secs(2);
/// Longest wait for the first answer: an exchange's longest time, and some.
const FIRST_ANSWER_MAX: Duration = Duration::from_secs(6);
/// Tenants that one signer has at most: a queue lane each, at the most lanes that there may be.
pub(crate) const TENANTS_MAX: u64 = 4096;
/// Entries of one tenant in the statement, beside its own: keys, tokens and jobs together. What is more becomes one (see the
/// store's `revocations`). Few, because each verifier fetches all tenants' entries every five seconds.
pub(crate) const ENTRIES_PER_TENANT_MAX: u64 = 32;
/// `["NAME",1800000000],`: the longest entry, a job's.
const ENTRY_LEN: usize = RevokedName::LEN + 16;
/// `"NAME":[18446744073709551615,1800000000],`
const TENANT_LEN: usize = RevokedName::LEN + 37;
/// Everything else: issuer, numbers, some hundred signing keys of 43 characters, header and signature.
const REST_LEN: usize = 16 * 1024;
/// Largest statement, 7 MiB: every tenant that there may be with every entry that it may have, in base64. A verifier takes exactly as
/// much as a signer may have to say.
pub(crate) const STATEMENT_LEN_MAX: usize =
    (TENANTS_MAX as usize * (ENTRIES_PER_TENANT_MAX as usize * ENTRY_LEN + TENANT_LEN) + REST_LEN).div_ceil(3) * 4;

/// The token that a judgement is about.
pub(crate) struct Subject<'a> {
    pub(crate) kid: &'a str,
    pub(crate) tenant: &'a TenantId,
    pub(crate) key_id: &'a str,
    pub(crate) epoch: u64,
    pub(crate) issued_at: u64,
    /// Whether it is a submission token: those are the signer's own to judge, by its database.
    pub(crate) is_submission: bool,
    pub(crate) name: Name<'a>,
}

/// A token's own name.
pub(crate) enum Name<'a> {
    /// Its `jti`, and that of the token it was made with.
    Token {
        id: &'a str,
        parent: Option<&'a str>,
    },
    Job(&'a JobId),
}

/// Follows one signer's statements. Clones share what they know; the fetching ends when the last is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Feed(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    issuer: String,
    keys: RemoteKeys,
    staleness_max_s: u64,
    known: Mutex<Known>,
    poller: Mutex<Option<JoinHandle<()>>>,
    /// Answers so far, good or bad.
    answers: watch::Sender<u64>,
}

impl Feed {
    pub(crate) fn new(issuer: String, keys: RemoteKeys, staleness_max: Duration) -> Self {
        let (known, poller, answers) = (Mutex::default(), Mutex::default(), watch::Sender::new(0));
        let staleness_max_s = staleness_max.as_secs();
        Self(Arc::new(Shared { issuer, keys, staleness_max_s, known, poller, answers }))
    }

    /// Returns once the signer has answered at least once, or too late. From the first call on it is asked regularly.
    pub(crate) async fn heard(&self) {
        let mut answers = self.0.answers.subscribe();
        self.poll();
        if *answers.borrow_and_update() == 0 {
            // Too late is no answer, and judged as such.
            let _ = tokio::time::timeout(FIRST_ANSWER_MAX, answers.changed()).await;
        }
    }

    /// Starts the fetching, or starts it again where its runtime is gone.
    fn poll(&self) {
        let mut poller = self.0.poller.lock().unwrap_or_else(PoisonError::into_inner);
        if poller.as_ref().is_none_or(JoinHandle::is_finished) {
            *poller = Some(tokio::spawn(follow(Arc::downgrade(&self.0))));
        }
    }

    /// Whether the key may have signed anything at all.
    pub(crate) fn judge_kid(&self, kid: &str) -> Result<(), Refusal> {
        if self.0.known().withdrawn.contains(kid) { Err(Refusal::SigningKeyWithdrawn) } else { Ok(()) }
    }

    /// Whether a token is still good as far as is known, and enough is known to say so.
    pub(crate) fn judge(&self, subject: &Subject<'_>) -> Result<(), Refusal> {
        self.judge_kid(subject.kid)?;
        self.0.known().judge(subject)?;
        self.fresh()
    }

    /// Whether the statement at hand is young enough to go by.
    pub(crate) fn fresh(&self) -> Result<(), Refusal> {
        self.0.known().fresh(self.0.staleness_max_s, unix_now())
    }
}

/// Asks until nobody is interested any more.
async fn follow(feed: Weak<Shared>) {
    while let Some(shared) = feed.upgrade() {
        let outcome = shared.fetch().await;
        shared.known().note(outcome.err());
        shared.answers.send_modify(|answers| *answers += 1);
        drop(shared);
        tokio::time::sleep(POLL_EVERY).await;
    }
}

impl Shared {
    fn known(&self) -> MutexGuard<'_, Known> {
        // What is known is replaced whole, so it is sound even after a panic elsewhere.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn fetch(&self) -> Result<(), String> {
        let (client, url) = self.keys.revocations();
        let mut request = client.get(url.clone());
        if let Some(etag) = self.known().etag.clone() {
            request = request.header(IF_NONE_MATCH, etag);
        }
        let response = request.send().await.map_err(|error| edge::explain(&error.without_url()))?;
        match response.status() {
            // Not a word about its age: that is counted from the signature.
            StatusCode::NOT_MODIFIED => return Ok(()),
            StatusCode::OK => {}
            status => return Err(format!("the signer answered {status}")),
        }
        let etag = response.headers().get(ETAG).and_then(|etag| etag.to_str().ok()).map(str::to_owned);
        let body =
            http::body(response, STATEMENT_LEN_MAX).await.map_err(|error| edge::explain(&error.without_url()))?;
        let body = body.ok_or("the statement is too large")?;
        let token = String::from_utf8(body).map_err(|_| "the statement is not a JWT".to_owned())?;

        let kid = kid_of(&token, REVOCATIONS_TYPE).map_err(|refusal| refusal.to_string())?;
        if self.known().withdrawn.contains(&kid) {
            return Err("the statement is signed with a withdrawn key".to_owned());
        }
        let key = self.keys.public_now(&kid).await.map_err(|refusal| refusal.to_string())?;
        let claims = statement(&token, &key, &self.issuer).map_err(|refusal| refusal.to_string())?;
        if claims.iat > unix_now().saturating_add(LEEWAY_S) {
            return Err("the statement is from the future; compare the clocks".to_owned());
        }
        let kids = claims.kids.clone();
        self.known().take(claims, etag);
        for kid in kids {
            // A new key is known before the first token of it comes.
            self.keys.public_now(&kid).await.map_err(|refusal| refusal.to_string())?;
        }
        Ok(())
    }
}

/// What is known, free of I/O and of any clock of its own.
#[derive(Debug, Default)]
struct Known {
    seq: u64,
    /// When the newest statement was signed; `None` before the first.
    issued_at: Option<u64>,
    etag: Option<String>,
    /// Once withdrawn is withdrawn for ever: the holder of such a key could say otherwise.
    withdrawn: BTreeSet<String>,
    names: HashSet<RevokedName>,
    jobs: HashMap<RevokedName, u64>,
    /// Epoch, and until when access and embed tokens are void.
    tenants: BTreeMap<RevokedName, (u64, u64)>,
    /// What the last fetch failed with; `None` after a success.
    failure: Option<String>,
}

impl Known {
    /// Takes a statement unless the one at hand is newer: another signer may be half a second behind, and who plays an
    /// old one back achieves nothing but that this one grows old.
    fn take(&mut self, claims: RevocationClaims, etag: Option<String>) -> bool {
        if (claims.seq, Some(claims.iat)) < (self.seq, self.issued_at) {
            return false;
        }
        self.seq = claims.seq;
        self.issued_at = Some(claims.iat);
        self.etag = etag;
        self.withdrawn.extend(claims.withdrawn_kids);
        self.names = claims.names.into_iter().collect();
        self.jobs = claims.jobs.into_iter().collect();
        self.tenants = claims.tenants;
        true
    }

    fn note(&mut self, failure: Option<String>) {
        match (&failure, &self.failure) {
            (Some(failure), None) => tracing::warn!(failure, "the signer's revocations could not be fetched"),
            (None, Some(_)) => tracing::info!("the signer's revocations are fetched again"),
            _ => {}
        }
        self.failure = failure;
    }

    fn judge(&self, subject: &Subject<'_>) -> Result<(), Refusal> {
        let tenant = self.tenants.get(&RevokedName::of_tenant(subject.tenant));
        let (epoch, tokens_void_until) = tenant.copied().unwrap_or_default();
        if subject.epoch < epoch {
            return Err(Refusal::TenantCutOff);
        }
        if self.names.contains(&RevokedName::of_key(subject.key_id)) {
            return Err(Refusal::KeyRevoked);
        }
        match subject.name {
            Name::Token { id, parent } => {
                let revoked =
                    [Some(id), parent].into_iter().flatten().any(|id| self.names.contains(&RevokedName::of_token(id)));
                if revoked || (subject.issued_at <= tokens_void_until && !subject.is_submission) {
                    Err(Refusal::TokenRevoked)
                } else {
                    Ok(())
                }
            }
            Name::Job(job) => {
                let until = self.jobs.get(&RevokedName::of_job(subject.tenant, job));
                if until.is_some_and(|until| subject.issued_at <= *until) { Err(Refusal::JobRevoked) } else { Ok(()) }
            }
        }
    }

    fn fresh(&self, staleness_max_s: u64, now: u64) -> Result<(), Refusal> {
        match self.issued_at {
            Some(issued_at) if now < issued_at.saturating_add(staleness_max_s) => Ok(()),
            known => {
                let age = known.map(|issued_at| format!("it is {} s old", now.saturating_sub(issued_at)));
                let age = age.unwrap_or_else(|| "none has been fetched".to_owned());
                let failure = self.failure.as_ref().map_or(String::new(), |failure| format!(", and {failure}"));
                Err(Refusal::RevocationsStale(format!("{age}{failure}")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(seq: u64, iat: u64) -> RevocationClaims {
        RevocationClaims { seq, iat, ..RevocationClaims::default() }
    }

    fn tenant(name: &str) -> TenantId {
        name.parse().expect("a name")
    }

    fn token(id: &str) -> Name<'_> {
        Name::Token { id, parent: None }
    }

    #[test]
    fn each_kind_of_revocation_hits_what_it_names_and_nothing_else() {
        let (acme, globex) = (tenant("acme"), tenant("globex"));
        let (job, other_job) = (JobId::from_digest(&[1; 32]), JobId::from_digest(&[2; 32]));
        let mut known = Known::default();
        let mut said = claims(1, 100);
        said.names = vec![RevokedName::of_key("key1"), RevokedName::of_token("t1")];
        said.jobs = vec![(RevokedName::of_job(&acme, &job), 50)];
        said.tenants = BTreeMap::from([(RevokedName::of_tenant(&globex), (3, 70))]);
        assert!(known.take(said, None));

        let judge = |tenant: &TenantId, key_id: &str, epoch: u64, issued_at: u64, name: Name<'_>| {
            known.judge(&Subject { kid: "k", tenant, key_id, epoch, issued_at, is_submission: false, name }).err()
        };
        assert_eq!(judge(&acme, "key1", 0, 99, token("t2")), Some(Refusal::KeyRevoked));
        assert_eq!(judge(&acme, "key2", 0, 99, token("t1")), Some(Refusal::TokenRevoked));
        let made_with_it = Name::Token { id: "t2", parent: Some("t1") };
        assert_eq!(judge(&acme, "key2", 0, 99, made_with_it), Some(Refusal::TokenRevoked));
        assert_eq!(judge(&acme, "key2", 0, 99, token("t2")), None);
        assert_eq!(judge(&acme, "key2", 0, 50, Name::Job(&job)), Some(Refusal::JobRevoked));
        assert_eq!(judge(&acme, "key2", 0, 51, Name::Job(&job)), None, "submitted again afterwards");
        assert_eq!(judge(&acme, "key2", 0, 50, Name::Job(&other_job)), None);
        assert_eq!(judge(&globex, "key2", 3, 50, Name::Job(&job)), None, "another tenant's job of the same name");
        assert_eq!(judge(&globex, "key2", 2, 50, token("t2")), Some(Refusal::TenantCutOff));
        assert_eq!(judge(&globex, "key2", 3, 70, token("t2")), Some(Refusal::TokenRevoked), "all up to there");
        assert_eq!(judge(&globex, "key2", 3, 71, token("t2")), None, "a login later");
        assert_eq!(judge(&globex, "t1", 3, 71, token("key1")), None, "a key is no token");
    }

    #[test]
    fn an_older_statement_is_not_taken_and_a_withdrawn_key_stays_so() {
        let mut known = Known::default();
        let mut first = claims(5, 100);
        first.withdrawn_kids = vec!["k1".to_owned()];
        assert!(known.take(first, None));
        assert!(!known.take(claims(4, 200), None), "an earlier state, however fresh its signature");
        assert!(!known.take(claims(5, 99), None), "the same state, signed earlier");
        assert!(known.take(claims(5, 101), None), "the same state, signed again");
        assert!(known.take(claims(6, 101), None), "a later state");
        assert!(known.withdrawn.contains("k1"));
    }

    #[test]
    fn age_counts_from_the_signature_and_ends_at_the_bound() {
        let mut known = Known::default();
        assert!(known.fresh(300, 100).expect_err("nothing known").is_transient());
        assert!(known.take(claims(1, 100), None));
        assert_eq!(known.fresh(300, 399), Ok(()));
        assert!(known.fresh(300, 400).expect_err("stale").is_transient());
        assert_eq!(known.fresh(300, 90), Ok(()), "a clock that runs behind");
    }
}
