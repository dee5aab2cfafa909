//! What a job left on S3, read back and held against what it must be.

use std::{collections::HashSet, path::Path, time::Duration};

use vecmill_producer::{
    contract::{ChunkResult, FinalManifest, JobKeys, Manifest, Outcome, RunId, chunk_of_key, short},
    life::{EndState, Ledger, RunView},
    part,
    store::Store,
};
use vecmill_signer::claims::Digest;
use vecmill_worker::{
    audit::{AuditRecord, Decision},
    engine::Tokenizer,
};

use crate::{Tenant, eventually};

/// More than any object of the tests has.
const OBJECT_BYTES_MAX: usize = 64 << 20;

/// One stored vector.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredRow {
    /// The chunk whose part it is in.
    pub chunk: u32,
    /// The text's id.
    pub id: String,
    /// The vector.
    pub vector: Vec<f32>,
    /// The text's tokens.
    pub tokens: u32,
}

/// The exact tokens of each text, as the model in `model` counts them.
pub fn count_tokens(model: &Path, texts: &[(String, String)]) -> Vec<u32> {
    let tokenizer = Tokenizer::load(model).expect("the model's tokenizer");
    texts.iter().map(|(_, text)| tokenizer.encode(text, None).expect("tokens").len() as u32).collect()
}

/// The numbers of a run's finished chunks: those that have ended and were not given up.
pub async fn done_chunks(store: &Store, keys: &JobKeys) -> HashSet<u32> {
    let ended = store.list(&keys.ended_prefix(), None).await.expect("a listing");
    let dead = store.list(&keys.dead_prefix(), None).await.expect("a listing");
    let dead: HashSet<_> = dead.iter().map(|object| chunk_of_key(&object.key)).collect();
    let done = ended.iter().map(|object| chunk_of_key(&object.key)).filter(|chunk| !dead.contains(chunk));
    done.flatten().collect()
}

/// Waits until some chunks of a job are done, but not all; gives how many.
///
/// # Panics
/// When the job ends before anybody could look: it has too few chunks for this test.
pub async fn in_mid_job(store: &Store, keys: &JobKeys) -> usize {
    let chunks = document::<Manifest>(store, &keys.manifest()).await.chunks.len();
    let done = eventually("some chunks are done", Duration::from_secs(60), || async {
        let done = done_chunks(store, keys).await.len();
        (done > 0).then_some(done)
    })
    .await;
    assert!(done < chunks, "all {chunks} chunks were done before the test could look: it needs more of them");
    done
}

/// Checks everything that a completed job of `texts` must have left, and nothing else: each row once and in input
/// order, exact token counts, one audit record a chunk, digests that agree with the bytes, one word on what computed each
/// part, the summary and `_SUCCESS`.
/// Gives the rows in input order.
///
/// # Panics
/// At the first thing that is not so.
pub async fn check_completed(
    store: &Store,
    keys: &JobKeys,
    tenant: &Tenant,
    model: &Path,
    texts: &[(String, String)],
) -> Vec<StoredRow> {
    let manifest: Manifest = document(store, &keys.manifest()).await;
    let summary: FinalManifest = document(store, &keys.final_manifest()).await;
    assert!(store.exists(&keys.success()).await.expect("an answer"), "there is no _SUCCESS");
    assert_eq!(manifest.rows, texts.len() as u64, "rows of the manifest");
    assert_eq!((summary.rows, summary.failed), (manifest.rows, 0), "rows and failures of the summary");
    assert!(summary.dead.is_empty(), "dead chunks: {:?}", summary.dead);
    let chunks: Vec<u32> = (0..manifest.chunk_count()).collect();
    assert_eq!(summary.parts.iter().map(|part| part.chunk).collect::<Vec<_>>(), chunks, "the summary's parts");

    let ledger = Ledger::new(store.clone(), &tenant.id, &manifest.job);
    let job = ledger.head().await.expect("an answer").expect("a ledger").job;
    let (at, run) = (job.at(), job.run.as_ref().expect("a run"));
    let end = run.end.as_ref().expect("an end");
    assert_eq!((end.state, end.rows, end.tokens), (EndState::Completed, summary.rows, summary.tokens), "the end");
    assert_eq!(end.summary, Digest::of(&object(store, &keys.final_manifest()).await), "the end names the summary");
    let view = RunView::open(store, keys, run, manifest.chunk_count()).await.expect("an answer");
    // Exactly these objects: a part, an audit record, a record for each chunk. Where it was taken up again, an earlier run may have
    // left more than counts.
    if at.run == 1 {
        assert_eq!(numbers(store, &keys.parts_prefix()).await, chunks, "parts");
        assert_eq!(numbers(store, keys.audit_prefix()).await, chunks, "audit records");
        assert_eq!(numbers(store, &keys.ended_prefix()).await, chunks, "records");
    }

    let mut rows = Vec::new();
    for (entry, listed) in manifest.chunks.iter().zip(&summary.parts) {
        let chunk = listed.chunk;
        let part = keys.object(&listed.path);
        let bytes = store.get(&part, OBJECT_BYTES_MAX).await.expect("an answer").expect("a part");
        let of_run = keys.of_run(RunId { run: view.inherited().run_of(chunk).unwrap_or(at.run), ..at });
        let done = result(store, &of_run, chunk).await;
        let audit: AuditRecord = document(store, &of_run.audit(chunk, &short(&listed.sha256))).await;
        let stored = part::decode(bytes.clone()).expect("a part");
        let vectors: Vec<u8> = stored.iter().flat_map(|(_, vector, _)| vector).flat_map(|x| x.to_le_bytes()).collect();
        let tokens: u64 = stored.iter().map(|(_, _, tokens)| u64::from(*tokens)).sum();

        assert_eq!(done.part.as_ref(), Some(&listed.path), "the part's place in the summary");
        assert_eq!(stored.len(), entry.rows as usize, "rows in part {chunk}");
        assert_eq!((done.rows, done.failed, done.tokens), (entry.rows, 0, tokens), "done record of chunk {chunk}");
        assert_eq!((listed.rows, listed.failed, listed.tokens), (entry.rows, 0, tokens), "summary of chunk {chunk}");
        assert_eq!((audit.rows, audit.failed, audit.tokens), (entry.rows, 0, tokens), "audit of chunk {chunk}");
        assert_eq!(done.part_sha256, Digest::of(&bytes), "the done record's digest of part {chunk}");
        assert_eq!(listed.sha256, Digest::of(&bytes), "the summary's digest of part {chunk}");
        assert_eq!(listed.bytes, bytes.len() as u64, "the summary's size of part {chunk}");
        assert_eq!(
            done.vectors_sha256,
            Digest::of(&vectors),
            "the done record's digest of the vectors of chunk {chunk}"
        );
        assert_eq!(
            audit.output_sha256,
            Some(Digest::of(&vectors)),
            "the audit's digest of the vectors of chunk {chunk}"
        );
        assert_eq!(audit.input_sha256, Some(entry.sha256), "the audit's digest of chunk {chunk}");
        assert_eq!(audit.decision, Decision::Embedded, "audit of chunk {chunk}");
        let compute = audit.compute.map(|path| path.to_string());
        assert!(compute.as_ref().is_some_and(|path| summary.compute.contains(path)), "what computed chunk {chunk}");
        assert_eq!((&done.compute, &listed.compute), (&compute, &compute), "what computed chunk {chunk}");
        assert_eq!(audit.tenant.as_ref(), Some(&tenant.id), "the tenant in the audit of chunk {chunk}");
        assert_eq!((audit.job.as_ref(), audit.chunk), (Some(&manifest.job), Some(chunk)), "audit of chunk {chunk}");
        rows.extend(stored.into_iter().map(|(id, vector, tokens)| StoredRow { chunk, id, vector, tokens }));
    }
    let counted = count_tokens(model, texts);
    assert_eq!(summary.tokens, counted.iter().map(|&tokens| u64::from(tokens)).sum::<u64>(), "tokens of the summary");
    assert_eq!(rows.len(), texts.len(), "rows in all parts");
    for ((row, (id, _)), tokens) in rows.iter().zip(texts).zip(counted) {
        assert_eq!((&row.id, row.tokens), (id, tokens), "a row in its place, with its tokens");
    }
    rows
}

/// What a chunk came to in a run.
///
/// # Panics
/// When it is not done.
pub async fn result(store: &Store, keys: &JobKeys, chunk: u32) -> ChunkResult {
    match document(store, &keys.ended(chunk)).await {
        Outcome::Done(result) => *result,
        Outcome::Dead(dead) => panic!("chunk {chunk} was given up: {dead:?}"),
    }
}

async fn object(store: &Store, key: &str) -> Vec<u8> {
    store.get(key, OBJECT_BYTES_MAX).await.expect("an answer").unwrap_or_else(|| panic!("{key} is not there")).to_vec()
}

/// The audit record of a chunk.
///
/// # Panics
/// When there is not exactly one.
pub async fn audit_record(store: &Store, keys: &JobKeys, chunk: u32) -> AuditRecord {
    let objects = store.list(keys.audit_prefix(), None).await.expect("a listing");
    let of_chunk: Vec<_> = objects.iter().filter(|object| chunk_of_key(&object.key) == Some(chunk)).collect();
    let [object] = of_chunk[..] else { panic!("audit records of chunk {chunk}: {of_chunk:?}") };
    let lines = store.get(&object.key, OBJECT_BYTES_MAX).await.expect("an answer").expect("an audit record");
    let lines: Vec<&[u8]> = lines.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).collect();
    assert_eq!(lines.len(), 1, "records in the audit object of chunk {chunk}");
    serde_json::from_slice(lines[0]).expect("an audit record")
}

/// A JSON document that must be there.
pub async fn document<T: serde::de::DeserializeOwned>(store: &Store, key: &str) -> T {
    let read = store.get_json(key, OBJECT_BYTES_MAX).await.expect("an answer");
    read.unwrap_or_else(|| panic!("{key} is not there"))
}

/// The chunk numbers of the objects under a prefix, in listing order. An object without one is listed as the largest.
async fn numbers(store: &Store, prefix: &str) -> Vec<u32> {
    let objects = store.list(prefix, None).await.expect("a listing");
    objects.iter().map(|object| chunk_of_key(&object.key).unwrap_or(u32::MAX)).collect()
}
