//! Which model exactly: one digest over everything that decides a vector.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::LoadError;

/// Large enough that system calls don't count, small enough for a cache.
const BUFFER_BYTES: usize = 1 << 20;

/// SHA-256, in hex, of the lines that `sha256sum config.json tokenizer.json <weights>` prints; so
/// `sha256sum ... | sha256sum` in the model's folder gives the same. Weights are in the order given.
pub(super) fn revision(dir: &Path, weights: &[String]) -> Result<String, LoadError> {
    let mut names = vec!["config.json", "tokenizer.json"];
    names.extend(weights.iter().map(String::as_str));
    // Shards side by side: one core hashes 1 to 2 GB/s, and the 8B model has 16 GB.
    let lines = names
        .into_par_iter()
        .map(|name| Ok(format!("{}  {name}\n", file_sha256(&dir.join(name))?)))
        .collect::<Result<Vec<_>, LoadError>>()?;
    Ok(hex(&Sha256::digest(lines.concat())))
}

pub(super) fn file_sha256(path: &Path) -> Result<String, LoadError> {
    let mut file = File::open(path).map_err(LoadError::read(path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match file.read(&mut buffer).map_err(LoadError::read(path))? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
