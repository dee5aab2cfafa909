"""Times `vecmill-worker embed` from exec to the first vector of one short line, beside a plain read of the weight files.

The read is the limit: every weight file once, in order, in blocks of 1 MiB, thrown away. It alternates with the starts.
Warm means that the files lie in the page cache; cold, that it was dropped before each turn, which takes root.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

program, model, turns = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3])
weights = sorted(model.glob("*.safetensors"))
gigabytes = sum(file.stat().st_size for file in weights) / 1e9
settings = {name: value for name, value in os.environ.items() if not name.startswith("VECMILL_")}


def read():
    block, began = bytearray(1 << 20), time.monotonic()
    for file in weights:
        with open(file, "rb", buffering=0) as data:
            while data.readinto(block):
                pass
    return time.monotonic() - began


def run(*arguments):
    return subprocess.Popen(
        [program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=settings
    )


def first_vector(dtype):
    began = time.monotonic()
    child = run("embed", "--model", "cold", "--model-dir", str(model), "--dtype", dtype)
    child.stdin.write("how do tides work?\n")
    child.stdin.flush()
    line = child.stdout.readline()
    took = time.monotonic() - began
    child.stdin.close()
    if child.wait() != 0 or '"embedding"' not in line:
        sys.exit(f"vecmill-worker embed --dtype {dtype} failed")
    return took


def parts(dtype):
    """Seconds to the first line of main, in loading, and in the first and second forward pass of a short text."""
    began = time.monotonic()
    run("--version").communicate()
    start = time.monotonic() - began
    child = run("bench", "--interactive", "--model", "cold", "--model-dir", str(model), "--dtype", dtype)
    ready = json.loads(child.stdout.readline())
    passes = []
    for _ in range(2):
        child.stdin.write(json.dumps({"texts": [[7] * 18 + [ready["end_token"]]]}) + "\n")
        child.stdin.flush()
        passes.append(json.loads(child.stdout.readline())["seconds"])
    child.stdin.close()
    child.wait()
    return start, ready["load_seconds"], *passes


def drop_caches():
    os.sync()
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("1")


def supported():
    for dtype in ("bf16", "f32"):
        child = subprocess.run(
            [program, "embed", "--model", "cold", "--model-dir", model, "--dtype", dtype],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, env=settings,
        )  # fmt: skip
        if child.returncode == 0:
            yield dtype
        else:
            print(f"without {dtype}: {child.stderr.strip()}")


def measure(caches, prepare, dtypes):
    reads, firsts = [], {dtype: [] for dtype in dtypes}
    for _ in range(turns):
        prepare()
        reads.append(read())
        for dtype in dtypes:
            prepare()
            firsts[dtype].append(first_vector(dtype))
    limit = statistics.median(reads)
    print(f"{caches} caches: the weights, {gigabytes:.2f} GB, are read in {limit:.2f} s ({gigabytes / limit:.1f} GB/s)")
    for dtype, took in firsts.items():
        median = statistics.median(took)
        print(
            f"  {dtype}: first vector after {median:.2f} s (best {min(took):.2f}), "
            f"{median / limit:.2f} x the time to read (goal 1.2)",
            flush=True,
        )


print(f"{model.name}: {len(weights)} weight files, {turns} turns")
dtypes = list(supported())
read()
measure("warm", lambda: None, dtypes)
for dtype in dtypes:
    start, load, first, second = parts(dtype)
    print(
        f"  where it goes, {dtype}, warm: start {start * 1e3:.0f} ms, load {load * 1e3:.0f} ms, "
        f"first text {first * 1e3:.0f} ms (the second {second * 1e3:.0f} ms)"
    )
try:
    drop_caches()
except OSError:
    print("cold caches: not measured, dropping them takes root")
else:
    measure("cold", drop_caches, dtypes)
