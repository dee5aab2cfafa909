//! With feature `cuda`, compiles the engine's kernels to PTX, which the driver of any GPU from that generation on takes.

use std::env;
use std::path::Path;
use std::process::Command;

const KERNELS: &str = "src/engine/cuda/kernels.cu";

fn main() {
    println!("cargo::rerun-if-changed={KERNELS}");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    // The same variables that candle's crates go by.
    let nvcc = setting("NVCC").unwrap_or_else(|| "nvcc".to_owned());
    // bf16 begins with 80, Ampere; FP8, which only comes with FlashAttention 3, would be emulated before 89.
    let least = if env::var_os("CARGO_FEATURE_FLASH_ATTENTION_3").is_some() { "90" } else { "80" };
    let capability = setting("CUDA_COMPUTE_CAP").map_or(least.to_owned(), |given| given.replace('.', ""));
    let digits = capability.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    let status = Command::new(&nvcc)
        .args(["--ptx", "-O3", "-std=c++17", "-Werror=all-warnings"])
        .arg(format!("-arch=compute_{digits}"))
        .arg("-o")
        .arg(Path::new(&out).join("kernels.ptx"))
        .arg(KERNELS)
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{nvcc} could not compile {KERNELS} ({status})"),
        Err(error) => panic!("feature cuda needs NVIDIA's compiler; {nvcc} does not start ({error}): set NVCC"),
    }
}

fn setting(name: &str) -> Option<String> {
    println!("cargo::rerun-if-env-changed={name}");
    env::var(name).ok().filter(|value| !value.is_empty())
}
