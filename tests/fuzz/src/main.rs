//! One reader under libFuzzer: that which `VECMILL_FUZZ_TARGET` names. Everything else is libFuzzer's own to take from its
//! arguments.
#![no_main]

use std::panic;
use std::sync::{LazyLock, Mutex};

use vecmill_producer::fuzz as producer;
use vecmill_signer::fuzz as signer;

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let targets = || signer::TARGETS.iter().chain(producer::TARGETS);
    let name = std::env::var("VECMILL_FUZZ_TARGET").unwrap_or_default();
    let Some((_, target)) = targets().find(|(known, _)| *known == name) else {
        let known: Vec<_> = targets().map(|(name, _)| *name).collect();
        eprintln!("VECMILL_FUZZ_TARGET is {name:?}; it must be one of {}", known.join(", "));
        std::process::exit(2)
    };
    // libFuzzer's own hook would end the program at a panic that the reader catches, as that of Parquet does.
    panic::set_hook(Box::new(|panic| {
        *LAST_PANIC.lock().expect("no panic here") = panic.to_string();
    }));
    *target
});

static LAST_PANIC: Mutex<String> = Mutex::new(String::new());

libfuzzer_sys::fuzz_target!(init: { LazyLock::force(&TARGET); }, |input: &[u8]| {
    if panic::catch_unwind(|| TARGET(input)).is_err() {
        eprintln!("{}", LAST_PANIC.lock().expect("no panic here"));
        std::process::abort();
    }
});
