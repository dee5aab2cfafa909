"""Times `vecmill submit` on generated corpora, with its peak memory, beside what any submitter must at least do.

The limit: the file read and hashed once (SHA-256), and every line parsed and compressed once. The peer of the same run is
that in Python's C-coded json, hashlib and zlib (level 1), on one core and without any upload.
"""

import hashlib
import json
import os
import random
import sys
import time
import zlib

program, folder, *sizes = sys.argv[1:]
words = "tide river copper lamp queue lane grant chunk vector tenant signal harbour winter engine paper stone".split()
peaks = []
for rows in map(int, sizes):
    path = f"{folder}/{rows}.jsonl"
    source = random.Random(rows)
    with open(path, "w") as out:
        for row in range(rows):
            out.write(json.dumps({"id": f"row-{row}", "text": " ".join(source.choices(words, k=8))}) + "\n")
    size = os.path.getsize(path)

    began = time.monotonic()
    digest, compressor = hashlib.sha256(), zlib.compressobj(1)
    with open(path, "rb") as lines:
        for line in lines:
            digest.update(line)
            compressor.compress(json.dumps(json.loads(line)).encode())
    peer = time.monotonic() - began

    began = time.monotonic()
    child = os.posix_spawn(program, [program, "submit", path, "--json", "--dimensions", "64"], os.environ)
    _, status, usage = os.wait4(child, 0)
    took = time.monotonic() - began
    if status != 0:
        sys.exit(f"vecmill submit failed: {status}")
    peaks.append(usage.ru_maxrss / 1024)
    print(
        f"{rows:>9} texts, {size / 1e6:.0f} MB: {took:.2f} s, {rows / took:,.0f} texts/s, {size / took / 1e6:.0f} MB/s, "
        f"peak {peaks[-1]:.0f} MiB, {usage.ru_utime + usage.ru_stime:.2f} s of CPU; "
        f"Python's parse, hash and compress alone {peer:.2f} s: {peer / took:.2f} x its speed",
        flush=True,
    )
if len(peaks) > 1:
    print(f"peak memory, largest over smallest corpus: {peaks[-1] / peaks[0]:.2f} (1.00 is flat)")
