//! The job contract: what a producer writes and a worker reads, and the other way round.
//!
//! Everything that crosses a process border is a type in this module, carries a version, and is read with
//! unknown versions refused. The crates on both sides use these types; nothing is described twice.

mod chunk;
mod embed;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod inputs;
mod layout;
mod manifest;
mod message;
mod outcome;
mod spec;
mod usage;

pub use chunk::{
    CHUNK_OBJECT_BYTES_MAX, CHUNK_ROWS_MAX, CHUNK_TEXT_BYTES_MAX, ChunkError, ChunkRow, ChunkWriter, ID_BYTES_MAX,
    RowInput, TEXT_BYTES_MAX, read_chunk,
};
pub use embed::{
    EMBED_INPUTS_MAX, EMBED_REQUEST_BYTES_MAX, EMBED_TOKENS_MAX, EmbedAnswer, EmbedError, EmbedRefusal, EmbedRequest,
    RefusalKind,
};
pub use inputs::{EmbedInput, EmbedInputs, InputFault, embed_cost};
pub use layout::{JobKeys, chunk_of_key, entry_of_key, job_of_key, refusal_key, short, tenant_jobs_prefix};
pub use manifest::{CHUNKS_MAX, ChunkEntry, Input, MANIFEST_BYTES_MAX, Manifest, ManifestError, TEXT_PER_CHUNK_BYTE};
pub use message::{ATTEMPT_HEADER, ChunkMessage, MESSAGE_BYTES_MAX, MessageError, REASON_HEADER, RUNG_HEADER};
pub use outcome::{Cancelled, ChunkResult, DeadChunk, FinalManifest, Outcome, PartEntry, Paused, RowError, Submission};
pub use spec::{Dtype, INSTRUCTION_BYTES_MAX, JobSpec, MODEL_BYTES_MAX, Precision, SpecError, Truncate};
pub use usage::{USAGE_DAYS, usage_field, usage_key};
pub use vecmill_signer::claims::RunId;

/// The version of every document in this module. A reader refuses any other: a later version comes with
/// its own reader, never with a guess.
pub const CONTRACT_VERSION: u32 = 1;
