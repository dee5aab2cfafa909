"""Copies the crates whose stock builds want an installed CUDA toolkit or the network, and edits the copies.

usage: cargo metadata --format-version 1 .. | patch_crates.py OUT CUTLASS_35 CUTLASS_36

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

# One file holds both; of 58.
KERNELS_V3 = ("flash_api", "flash_fwd_hdim128_bf16_sm90")

# Crates that a build may do without.
OPTIONAL = {"candle-flash-attn-v3"}

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

# Continues the macro whose first line stores the result of a call.
CHECK = r"""const cudaError_t __err = EXPR;                                 \
    /* Without this the kernel's output would be what its memory held before. */ \
    if (__err != cudaSuccess) {                                     \
      fprintf(stderr, "FlashAttention: CUDA error (%s:%d): %s\n", __FILE__, __LINE__, cudaGetErrorString(__err)); \
      abort();                                                      \
    }                                                               \
"""

ABSENT = """#include <cstdio>
#include <cstdlib>

static void absent(const char *name) {
  fprintf(stderr, "this build has no kernels for quantized weights: %s\\n", name);
  abort();
}

"""

DISPATCH_V3 = """void run_mha_fwd_v3(Flash_fwd_params &params, cudaStream_t stream) {
    // A kernel that is not there must not become a wrong result.
    const bool local = !params.is_causal && (params.window_size_left >= 0 || params.window_size_right >= 0);
    if (!params.is_bf16 || params.d != 128 || params.cu_seqlens_q == nullptr || params.cu_seqlens_k == nullptr
        || params.alibi_slopes_ptr != nullptr || local) {
        fprintf(stderr, "this build has attention for bf16, heads of 128 values, packed texts only, full or causal\\n");
        abort();
    }
    run_mha_fwd_<cutlass::bfloat16_t, 128>(params, stream);
}

extern "C" void run_mha_v3("""

LAUNCH_V3 = """void run_mha_fwd_hdim128(Flash_fwd_params &params, cudaStream_t stream) {
    // The stock code takes a smaller block of queries when the longest text of a batch is short. A text's result must
    // not depend on its neighbours: the block is settled by the mask alone. Without a mask there is one query a text.
    // 128 keys at a time in both: for the stock 176 CUTLASS has eleven small products where one large would do.
    BOOL_SWITCH(params.is_causal, Is_causal, [&] {
        constexpr static int kNumMmaWGs = Is_causal ? 2 : 1;
        run_flash_fwd<
            Flash_fwd_kernel_traits<128, kNumMmaWGs * 64, 128, 4 + kNumMmaWGs * 4, 2, false, 1, T>,
            Is_causal,
            false,
            flash::VarSeqLenTraits,
            flash::VarSeqLenTraits
        >(params, stream);
    });
}
"""

# Each thread stores rows that other warps put into shared memory. The stock code makes one warp wait for them, which is
# enough where that warp alone stores the whole block; with packed texts all of them store.
EPILOGUE_V3 = """TiledCopyO gmem_tiled_copy_O;
            if constexpr (Seqlen_traits::UseVarSeqLen) {
                cutlass::arch::NamedBarrier::sync(NumMmaThreads, static_cast<int>(FwdNamedBarriers::ValueEmpty) /*id*/);
            }
            Tensor sO_out ="""


def edit(path, *edits):
    """Applies (pattern, replacement) pairs; a pattern spans lines."""
    text = path.read_text()
    for pattern, replacement in edits:
        text, found = re.subn(pattern, lambda _: replacement, text, flags=re.DOTALL)
        if found != 1:
            sys.exit(f"patch_crates.py: {path.name}: found {found} times, expected once: {pattern}")
    path.write_text(text)


def candle_core(crate):
    # Libraries are looked for when the program runs: it is built, and says what it lacks, without any of them.
    edit(crate / "Cargo.toml", (r'"dynamic-linking"', '"dynamic-loading"'))


def candle_kernels(crate):
    # Products with quantized weights, which Qwen3-Embedding has none of, take the compiler longer than all the rest.
    names = re.findall(r"pub fn (\w+)\(", (crate / "src/ffi.rs").read_text())
    absent = "".join(f'extern "C" void {name}() {{ absent("{name}"); }}\n' for name in names)
    (crate / "src/absent.cu").write_text(ABSENT + absent)
    edit(
        crate / "build.rs",
        (r"let mut moe_sources = vec!\[.*?\];", 'let mut moe_sources = vec!["src/absent.cu"];'),
        (r'"mmq_\*\.cu"\]', '"mmq_*.cu", "absent.cu"]'),
    )


def build_script(crate, kernels, folder, cutlass, settings):
    """Has the crate's build script compile these kernels and no other, with CUTLASS from `cutlass`."""
    source = cutlass / "cutlass_library/source"
    includes = [source / "include", source / "tools/util/include"]
    for include in includes:
        if not include.is_dir():
            sys.exit(f"patch_crates.py: {include} is absent")
    names = "".join(f'    "{folder}{kernel}.cu",\n' for kernel in kernels)
    settings = [f'.include_path("{include}")' for include in includes] + settings
    edit(
        crate / "build.rs",
        (r"const KERNEL_FILES: [^=]* = &?\[\n.*?\n\];", f"const KERNEL_FILES: &[&str] = &[\n{names}];"),
        # Cloning CUTLASS takes a network and git; a wheel has the same headers.
        (r"\.with_cutlass\(Some\(CUTLASS_COMMIT\)\)[^\n]*", "\n        ".join(settings)),
        (r"const CUTLASS_COMMIT[^;]*;\n", ""),
    )


def candle_flash_attn(crate, cutlass):
    build_script(crate, KERNELS, "kernels/", cutlass, [f'.arg("-DFLASHATTENTION_DISABLE_{name}")' for name in DISABLED])
    edit(
        crate / "kernels/flash_api.cu",
        (r'#include "kernels\.h"', '#include <cstdio>\n#include <cstdlib>\n#include "kernels.h"'),
        (r'void run_mha_fwd\(Flash_fwd_params.*?extern "C" void run_mha\(', DISPATCH),
    )
    edit(
        crate / "kernels/error.h",
        (r"#pragma once\n", "#pragma once\n\n#include <cstdio>\n#include <cstdlib>\n"),
        (r"const cudaError_t __err = EXPR; *\\\n", CHECK),
    )
    # `exit` would run the handlers of a CUDA context that has just failed.
    edit(
        crate / "kernels/hardware_info.h",
        (r"#include <cstdio>", "#include <cstdio>\n#include <cstdlib>"),
        (r"exit\(1\);", "abort();"),
    )


def candle_flash_attn_v3(crate, cutlass):
    # Left to itself the build takes a kernel's earlier object, whatever has changed in the headers.
    build_script(crate, KERNELS_V3, "", cutlass, ['.watch(["hkernel"])'])
    # The stock script names files that don't exist, for which cargo would run it each time.
    edit(
        crate / "build.rs",
        (r"cargo:rerun-if-changed=kernels/\*\*\.h\".*?kernels/\*\*\.cpp", "cargo:rerun-if-changed=hkernel"),
    )
    kernels = crate / "hkernel"
    edit(
        kernels / "flash_api.cu",
        (r'#include "flash\.h"', '#include <cstdio>\n#include <cstdlib>\n#include "flash.h"'),
        (r'void run_mha_fwd_v3\(Flash_fwd_params.*?extern "C" void run_mha_v3\(', DISPATCH_V3),
    )
    edit(kernels / "flash_fwd_launch_template.h", (r"void run_mha_fwd_hdim128\(.*?\n}\n", LAUNCH_V3))
    edit(kernels / "epilogue_fwd_sm90_tma.hpp", (r"TiledCopyO gmem_tiled_copy_O;\n +Tensor sO_out =", EPILOGUE_V3))
    edit(kernels / "utils.h", (r"exit\(1\);", "abort();"))
    # What these two inherit from takes a second parameter in CUTLASS 3.6.
    unpacked = [f"SM90_TMA_LOAD_{name}PAGED_OP" for name in ("", "MULTICAST_")]
    edit(
        kernels / "copy_paged_sm90_tma_cutlass36.hpp",
        *((f"TMA_LOAD_Unpack<{name}>", f"TMA_LOAD_Unpack<{name}, NumBitsPerTMA>") for name in unpacked),
    )


def same(left, right):
    found = filecmp.dircmp(left, right)
    if found.left_only or found.right_only or found.funny_files:
        return False
    _, changed, errors = filecmp.cmpfiles(left, right, found.common_files, shallow=False)
    return not changed and not errors and all(same(left / name, right / name) for name in found.common_dirs)


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    out, cutlass_35, cutlass_36 = map(Path, sys.argv[1:])
    crates = {
        "candle-core": candle_core,
        "candle-kernels": candle_kernels,
        "candle-flash-attn": lambda crate: candle_flash_attn(crate, cutlass_35),
        "candle-flash-attn-v3": lambda crate: candle_flash_attn_v3(crate, cutlass_36),
    }
    packages = json.load(sys.stdin)["packages"]
    for name, patch in crates.items():
        found = [Path(package["manifest_path"]).parent for package in packages if package["name"] == name]
        fresh, kept = out / f".{name}", out / name
        shutil.rmtree(fresh, ignore_errors=True)
        if not found and name in OPTIONAL:
            # The copy of an earlier build would be offered to cargo as a replacement of nothing.
            shutil.rmtree(kept, ignore_errors=True)
            continue
        if len(found) != 1:
            sys.exit(f"patch_crates.py: {len(found)} versions of {name} are asked for")
        shutil.copytree(found[0], fresh)
        patch(fresh)
        if kept.exists() and same(fresh, kept):
            shutil.rmtree(fresh)
        else:
            shutil.rmtree(kept, ignore_errors=True)
            fresh.rename(kept)


if __name__ == "__main__":
    main()
