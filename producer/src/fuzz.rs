//! What every reader of a stranger's bytes must keep to, whatever they are. `infra/fuzz` feeds these with inputs that reach ever
//! more of the code; the tests feed them with what lies in `tests/fuzz/kept`.

use crate::contract::fuzz as contract;
use crate::gateway::fuzz as gateway;
use crate::read::fuzz as read;

/// Reads an input, and panics where what comes of it is not as it must be.
pub type Target = fn(&[u8]);

/// Readers by name.
pub const TARGETS: &[(&str, Target)] = &[
    ("chunk", contract::chunk),
    ("chunk_text", contract::chunk_text),
    ("compressed", read::compressed),
    ("embed", contract::embed),
    ("inputs", contract::inputs),
    ("manifest", contract::manifest),
    ("message", contract::message),
    ("multipart", gateway::multipart),
    ("parquet", read::parquet),
    ("parquet_footer", read::parquet_footer),
    ("rows", read::rows),
];

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Good inputs to begin from, and such as have shown a fault, here or in a library.
    #[test]
    fn every_input_that_is_kept_is_read_or_refused() {
        for (name, target) in super::TARGETS {
            let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/kept").join(name);
            let mut inputs = 0;
            for input in std::fs::read_dir(&kept).unwrap_or_else(|error| panic!("{}: {error}", kept.display())) {
                target(&std::fs::read(input.expect("an entry").path()).expect("a file"));
                inputs += 1;
            }
            assert!(inputs > 0, "{}", kept.display());
        }
    }
}
