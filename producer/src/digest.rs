//! SHA-256 over a stream, with its length.

use sha2::{Digest as _, Sha256};
use vecmill_signer::claims::Digest;

/// Hashes and counts bytes as they pass.
#[derive(Default)]
pub struct Hasher {
    sha256: Sha256,
    bytes: u64,
}

impl Hasher {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    /// The number of bytes and their SHA-256.
    pub fn finish(self) -> (u64, Digest) {
        (self.bytes, Digest::from_bytes(self.sha256.finalize().into()))
    }
}
