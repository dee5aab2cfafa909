"""F: NVIDIA's own tools on a short pass: compute-sanitizer for what kernels read and write, ncu for how near they come to what
the GPU can do.

compute-sanitizer's initcheck is not among them: it reports all of what cuBLASLt's products have written as never written, at
the first kernel that reads it."""

import csv
import io
import os
import re
import shutil
import signal
import subprocess

from .worker import command, environment, products

PLACES = ["/usr/local/cuda/bin", "/opt/nvidia/nsight-compute", "/usr/local/cuda/compute-sanitizer"]


def tool(name):
    found = shutil.which(name)
    for place in PLACES if not found else []:
        for folder, _, files in os.walk(place):
            if name in files and os.access(os.path.join(folder, name), os.X_OK):
                return os.path.join(folder, name)
    return found


def run(context):
    if context.device == "cpu":
        context.note("not on a CPU")
        return
    # Small weights first: what a worker tries out while it loads takes long under a tool.
    small, two = context.model_dir(2, "small"), context.model_dir(2)
    few = context.model_dir(context.few_layers)
    for part in (lambda: sanitized(context, small, "memcheck", "small layers", 20), lambda: profiled(context, few, 35),
                 lambda: sanitized(context, two, "memcheck", "layers of the model", 25)):
        try:
            part()
        except Exception as error:
            context.fail(f"{type(error).__name__}: {error}")


def limited(context, arguments, seconds):
    """Standard output and error of a program and its exit code, None if it had to be killed."""
    log = context.state / "tool.log"
    with open(log, "wb") as out:
        # A group of its own: what it has started is to end with it. Should this process be killed, so is all of its group,
        # and these end by the time limit that they are given here.
        process = subprocess.Popen(["timeout", "--signal=KILL", str(max(int(seconds), 1)), *arguments], stdin=subprocess.DEVNULL,
                                   stdout=out, stderr=subprocess.STDOUT, env=environment(), process_group=0)
        try:
            status = process.wait(timeout=seconds + 1)
        except subprocess.TimeoutExpired:
            status = None
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    return (None if status in (137, -9) else status), log.read_text(errors="replace")


def flags(context, model_dir, case, turns):
    return command(context, "bench", model_dir, *products(context, "invariant"), "--case", case, "--turns", turns)


def sanitized(context, model_dir, tool_name, what, seconds):
    name = f"{tool_name}, two {what}"
    seconds = min(seconds, context.left())
    if seconds < 8:
        context.note(f"{name}: not run, the time was up")
        return
    sanitizer = tool("compute-sanitizer")
    if not sanitizer:
        context.fail("compute-sanitizer is not there")
        return
    context.say(f"compute-sanitizer {name}")
    status, said = limited(context, [sanitizer, "--tool", tool_name, "--error-exitcode", "9",
                                     *flags(context, model_dir, "2x100", 1)], seconds)
    if context.out:
        with open(context.out / f"{tool_name}.txt", "a") as file:
            file.write(f"{name}\n{said[:2_000_000]}\n")
    lines = said.splitlines()
    total = next((line.strip("= ") for line in reversed(lines) if "ERROR SUMMARY" in line), None)
    context.figure(f"compute-sanitizer {name}", total if total else
                   f"not finished in {seconds:.0f} s" if status is None else f"ended with exit code {status}")
    errors = [line.strip("= ") for line in lines if line.startswith("=========") and "ERROR SUMMARY" not in line
              and "COMPUTE-SANITIZER" not in line]
    if (total and " 0 errors" not in total) or status not in (0, None):
        context.fail(f"compute-sanitizer {name}: {total}, exit code {status}; " + (" / ".join(errors[:12]) or said[-1000:]))
    elif errors:
        context.note(f"{name}: {' / '.join(errors[:6])}")


def profiled(context, model_dir, seconds):
    seconds = min(seconds, context.left())
    if seconds < 10:
        context.note("ncu: not run, the time was up")
        return
    ncu = tool("ncu")
    if not ncu:
        context.fail("ncu is not there")
        return
    context.say("ncu")
    # `bench` says when the case begins: what a worker tries out while it loads would be hundreds of kernels. Of each kernel
    # and shape one is enough.
    arguments = [ncu, "--clock-control", "none", "--section", "SpeedOfLight", "--csv", "--page", "raw", "--print-units", "base",
                 "--profile-from-start", "off", "--filter-mode", "per-launch-config", "--launch-count", "1"]
    status, said = limited(context, [*arguments, *flags(context, model_dir, "64x512", 2)], seconds)
    rows = kernels(said)
    if context.out:
        (context.out / "ncu.csv").write_text(said[:8_000_000])
    if not rows:
        context.fail(f"ncu gave no kernels (exit code {status}): {said[-1500:]}")
        return
    context.table("ncu on 64x512: each kernel once, clocks as they are",
                  ["kernel", "grid", "block", "ms", "memory, % of its most", "SMs, % of their most", "DRAM, %"], rows)


def kernels(said):
    """Rows of a table from ncu's raw page: a line of names, one of units, and one for each kernel."""
    lines = said.splitlines()
    start = next((number for number, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return []
    table = list(csv.reader(io.StringIO("\n".join(line for line in lines[start:] if line.startswith('"')))))
    names, found = table[0], []

    def column(pattern):
        return next((place for place, name in enumerate(names) if re.search(pattern, name)), None)

    duration = column("gpu__time_duration")
    units = table[1] if len(table) > 1 else []
    places = [column(r"memory_throughput.*pct"), column(r"sm__throughput.*pct"), column(r"dram_+throughput.*pct")]
    grid, block, name = column("Grid Size"), column("Block Size"), column("Kernel Name")
    scale = 1e-6
    if duration is not None and duration < len(units):
        scale = {"ns": 1e-6, "nsecond": 1e-6, "us": 1e-3, "usecond": 1e-3, "ms": 1.0, "msecond": 1.0, "s": 1e3, "second": 1e3}.get(
            units[duration], 1e-6)
    for row in table[1:]:
        if len(row) != len(names) or not row[0].isdigit():
            continue

        def number(place):
            try:
                return float(row[place].replace(",", ""))
            except (TypeError, ValueError, IndexError):
                return None

        took = number(duration)
        found.append([row[name][:90] if name is not None else None, row[grid] if grid is not None else None,
                      row[block] if block is not None else None, took and took * scale, *map(number, places)])
    return sorted(found, key=lambda row: -(row[3] or 0))
