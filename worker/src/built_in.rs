//! The model in the box: `infra/models/mini`, carried by the program, so that a first look and the tests need no download
//! and yet get vectors that mean something.

use std::io;
use std::path::{Path, PathBuf};

/// The name under which it is served.
pub const BUILT_IN_MODEL: &str = "vecmill/mini";

/// The files, as `infra/models/train` wrote them.
const FILES: [(&str, &[u8]); 6] = [
    ("config.json", include_bytes!("../../infra/models/mini/config.json")),
    ("tokenizer.json", include_bytes!("../../infra/models/mini/tokenizer.json")),
    ("model.safetensors", include_bytes!("../../infra/models/mini/model.safetensors")),
    ("modules.json", include_bytes!("../../infra/models/mini/modules.json")),
    ("1_Pooling/config.json", include_bytes!("../../infra/models/mini/1_Pooling/config.json")),
    ("config_sentence_transformers.json", include_bytes!("../../infra/models/mini/config_sentence_transformers.json")),
];

/// Writes the model to a folder of `cache`, which appears complete or not at all, and gives the folder. One that is there
/// is taken if it holds the same bytes.
///
/// # Errors
/// The folder can't be written.
pub(crate) fn unpack(cache: &Path) -> io::Result<PathBuf> {
    let dir = cache.join("mini");
    if holds(&dir) {
        return Ok(dir);
    }
    std::fs::create_dir_all(cache)?;
    let fresh = tempfile::Builder::new().prefix(".mini-").tempdir_in(cache)?;
    for (name, bytes) in FILES {
        let path = fresh.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap_or(fresh.path()))?;
        std::fs::write(path, bytes)?;
    }
    // Another version's, or somebody else's who is as far: a folder can't be replaced in one step, but one that others
    // have mapped may be moved away.
    if dir.exists() {
        let old = tempfile::Builder::new().prefix(".mini-").tempdir_in(cache)?;
        match std::fs::rename(&dir, old.path().join("mini")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    match std::fs::rename(fresh.path(), &dir) {
        // The folder has its new name: there is nothing left for the guard to remove.
        Ok(()) => _ = fresh.keep(),
        Err(_) if holds(&dir) => {}
        Err(error) => return Err(error),
    }
    Ok(dir)
}

fn holds(dir: &Path) -> bool {
    FILES.iter().all(|(name, bytes)| std::fs::read(dir.join(name)).is_ok_and(|found| found == *bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_written_once_and_repaired() {
        let cache = tempfile::tempdir().expect("a folder");
        let dir = unpack(cache.path()).expect("written");
        let config = dir.join("config.json");
        let written = std::fs::metadata(&config).expect("there").modified().expect("a time");
        assert_eq!(unpack(cache.path()).expect("there"), dir);
        assert_eq!(std::fs::metadata(&config).expect("there").modified().expect("a time"), written, "left alone");

        std::fs::write(dir.join("model.safetensors"), b"cut short").expect("writable");
        unpack(cache.path()).expect("written again");
        assert!(holds(&dir));
        let names: Vec<_> = std::fs::read_dir(cache.path()).expect("there").collect();
        assert_eq!(names.len(), 1, "nothing is left behind");
    }
}
