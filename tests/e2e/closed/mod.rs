//! What a stranger or a tenant sends must not stop, slow or outspend another: each attack that once did, as a test.

mod batches;
mod embeddings;
mod inputs;
mod signer;
