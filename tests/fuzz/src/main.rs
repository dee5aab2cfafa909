//! One reader under libFuzzer: that which `VECMILL_FUZZ_TARGET` names. Everything else is libFuzzer's own to take from its
//! arguments.
#![no_main]

use std::sync::LazyLock;

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let targets = || vecmill_signer::fuzz::TARGETS.iter().chain(vecmill_producer::fuzz::TARGETS);
    let name = std::env::var("VECMILL_FUZZ_TARGET").unwrap_or_default();
    let Some((_, target)) = targets().find(|(known, _)| *known == name) else {
        let known: Vec<_> = targets().map(|(name, _)| *name).collect();
        eprintln!("VECMILL_FUZZ_TARGET is {name:?}; it must be one of {}", known.join(", "));
        std::process::exit(2)
    };
    *target
});

libfuzzer_sys::fuzz_target!(init: { LazyLock::force(&TARGET); }, |input: &[u8]| TARGET(input));
