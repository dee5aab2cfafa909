"""Copies the crates whose stock builds want an installed CUDA toolkit or the network, and edits the copies.

usage: cargo metadata --format-version 1 .. | patch_crates.py OUT CUTLASS

Each edit names the text it replaces and must find it exactly once, so that another version of a crate stops the build
here and not on a GPU. A crate whose copy is already as it should be is left alone: cargo then does not build it again.
"""

import filecmp
import json
import re
import shutil
import sys
from pathlib import Path

# The one kernel of Qwen3's head size in bf16, masked and unmasked; all 53 take hours.
KERNELS = ("flash_api", "flash_fwd_hdim128_bf16_sm80", "flash_fwd_hdim128_bf16_causal_sm80")

# What the engine never asks for, and each would double what the compiler has to make.
DISABLED = ("ALIBI", "DROPOUT", "LOCAL", "SOFTCAP", "UNEVEN_K")

DISPATCH = """void run_mha_fwd(Flash_fwd_params &params, cudaStream_t stream) {
  // A kernel that is not there must not become a wrong result.
  const bool local = !params.is_causal && (params.window_size_left >= 0 || params.window_size_right >= 0);
  if (!params.is_bf16 || params.d != 128 || params.block_table != nullptr || params.alibi_slopes_ptr != nullptr
      || params.mm_prefix_ranges != nullptr || params.softcap != 0.0 || local) {
    fprintf(stderr, "this build has attention for bf16 and heads of 128 values only, full or causal\\n");
    abort();
  }
  BOOL_SWITCH(params.is_causal, Is_causal, [&] {
    run_mha_fwd_<cutlass::bfloat16_t, 128, Is_causal>(params, stream);
  });
}

extern "C" void run_mha("""


def edit(path, *edits):
    """Applies (pattern, replacement) pairs; a pattern spans lines."""
    text = path.read_text()
    for pattern, replacement in edits:
        text, found = re.subn(pattern, lambda _: replacement, text, flags=re.DOTALL)
        if found != 1:
            sys.exit(f"patch_crates.py: {path.name}: found {found} times, expected once: {pattern}")
    path.write_text(text)


def candle_core(crate, _cutlass):
    # Libraries are looked for when the program runs: it is built, and says what it lacks, without any of them.
    edit(crate / "Cargo.toml", (r'"dynamic-linking"', '"dynamic-loading"'))


def candle_flash_attn(crate, cutlass):
    source = cutlass / "cutlass_library/source"
    includes = [source / "include", source / "tools/util/include"]
    for include in includes:
        if not include.is_dir():
            sys.exit(f"patch_crates.py: {include} is absent")
    kernels = "".join(f'    "kernels/{kernel}.cu",\n' for kernel in KERNELS)
    options = [f'.include_path("{include}")' for include in includes]
    options += [f'.arg("-DFLASHATTENTION_DISABLE_{name}")' for name in DISABLED]
    edit(
        crate / "build.rs",
        (r"const KERNEL_FILES: \[&str; \d+\] = \[.*?\];", f"const KERNEL_FILES: [&str; {len(KERNELS)}] = [\n{kernels}];"),
        # Cloning CUTLASS takes a network and git; a wheel has the same headers.
        (r"\.with_cutlass\(Some\(CUTLASS_COMMIT\)\)[^\n]*", "\n        ".join(options)),
        (r"const CUTLASS_COMMIT[^;]*;\n", ""),
    )
    edit(
        crate / "kernels/flash_api.cu",
        (r'#include "kernels\.h"', '#include <cstdio>\n#include <cstdlib>\n#include "kernels.h"'),
        (r'void run_mha_fwd\(Flash_fwd_params.*?extern "C" void run_mha\(', DISPATCH),
    )


CRATES = {"candle-core": candle_core, "candle-flash-attn": candle_flash_attn}


def same(left, right):
    found = filecmp.dircmp(left, right)
    if found.left_only or found.right_only or found.funny_files:
        return False
    _, changed, errors = filecmp.cmpfiles(left, right, found.common_files, shallow=False)
    return not changed and not errors and all(same(left / name, right / name) for name in found.common_dirs)


def main():
    out, cutlass = map(Path, sys.argv[1:])
    packages = json.load(sys.stdin)["packages"]
    for name, patch in CRATES.items():
        found = [Path(package["manifest_path"]).parent for package in packages if package["name"] == name]
        if len(found) != 1:
            sys.exit(f"patch_crates.py: {len(found)} versions of {name} are asked for")
        fresh, kept = out / f".{name}", out / name
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(found[0], fresh)
        patch(fresh, cutlass)
        if kept.exists() and same(fresh, kept):
            shutil.rmtree(fresh)
        else:
            shutil.rmtree(kept, ignore_errors=True)
            fresh.rename(kept)


if __name__ == "__main__":
    main()
