"""H: the worker's own path from lines of text to vectors in JSON, by `embed`: reading, tokenizing and writing beside the
GPU's work."""

import json
import os
import subprocess
import time

from .machine import FACTS
from .model import readable
from .report import gathered, read
from .worker import LOAD_S, Process, command, environment

INSTRUCTION = "Instruct: Given a web search query, retrieve relevant passages that answer the query. Query: "


def embed(context, model_dir, lines):
    """Vectors of a few lines."""
    done = subprocess.run(command(context, "embed", model_dir, "--format", "lines"), input="\n".join(lines) + "\n",
                          capture_output=True, text=True, env=environment(), timeout=max(min(LOAD_S, context.left()), 5))
    if done.returncode != 0:
        raise RuntimeError(f"embed ended with {done.returncode}: {done.stderr[-2000:]}")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    if [row["index"] for row in rows] != list(range(len(lines))):
        raise RuntimeError(f"embed gave {len(rows)} rows for {len(lines)} lines, or in another order")
    return [row["embedding"] for row in rows]


def known_rate(context):
    """Tokens a second that the full model's stage has found, if it ran before; else a guess."""
    for figure in gathered(read(context.state / "G.jsonl"))["figures"]:
        if figure["name"] in ("64x512", "2x64") and isinstance(figure["value"], (int, float)):
            return figure["value"]
    return 70_000 if context.device == "cuda" else 5000


def mark(number):
    """Seven letters that no other line begins with: lines that are alike in their words share next to nothing."""
    number = (number * 2_654_435_761 + 97) % 2**32
    return "".join("abcdefghijklmnop"[number >> 4 * place & 15] for place in range(7))


def run(context):
    model_dir = context.model_dir()
    cuda = context.device == "cuda"
    lines, ids = readable(model_dir, 500 if cuda else 20, 150)
    tokens = list(map(len, ids))
    context.watch
    seconds = 1 if not cuda else 5 if context.quick else 9

    def rows():
        for number, (name, beginning) in enumerate([("lines that begin differently", None),
                                                    ("lines that begin with one instruction", INSTRUCTION)]):
            left = context.left() / (2 - number)
            if left < 8 and cuda:
                context.note(f"{name}: not measured, the time was up")
                continue
            yield [name, *measure(context, model_dir, lines, tokens, beginning, seconds, left)]

    context.table("`embed`, lines of text to vectors in JSON on standard output",
                  ["what", "lines", "tokens a line", "lines of its last part", "s", "tok/s", "GPU busy, %", *FACTS], rows())
    context.note("The first quarter is left out: loading, and kernels' first use. Tokens are counted as if none were shared. Busy "
                 "is the share of time in which a kernel ran, as the driver sees it over up to a second.")


def measure(context, model_dir, lines, tokens, beginning, seconds, left):
    more = len(beginning) if beginning else 8  # a token is a byte there, and a mark has seven and a space
    each = [count + more for count in tokens]
    copies = max(2, int(known_rate(context) * seconds * 4 / 3 / sum(each)) + 1)
    total = len(lines) * copies
    text = context.state / "lines.txt"
    with open(text, "w") as file:
        for copy in range(copies):
            # Another word behind the instruction in each copy: equal texts would be computed once.
            file.writelines(f"{beginning}{copy} {line}\n" if beginning else f"{mark(copy * len(lines) + place)} {line}\n"
                            for place, line in enumerate(lines))
    context.say(f"embed: {total:,} lines of {sum(each) / len(each):.0f} tokens on average")
    with open(text, "rb") as source:
        process = Process(context, command(context, "embed", model_dir, "--format", "lines"), source, text=False)
    until, seen, timeline = time.monotonic() + left, 0, []
    stopped = False
    # Not to wait for a read that never ends.
    os.set_blocking(process.process.stdout.fileno(), False)
    while True:
        try:
            block = os.read(process.process.stdout.fileno(), 1 << 20)
        except BlockingIOError:
            if time.monotonic() > until:
                stopped = True
                process.kill()
                break
            time.sleep(0.002)
            continue
        if not block:
            break
        seen += block.count(b"\n")
        timeline.append((time.monotonic(), seen))
        if time.monotonic() > until:
            stopped = True
            process.kill()
            break
    text.unlink()
    if not stopped:
        status = process.end()
        if status != 0 or seen != total:
            raise RuntimeError(f"embed ended with {status} and gave {seen} rows for {total} lines.{process.last_words()}")
    elif seen < 10:
        raise RuntimeError(f"embed gave {seen} rows in {left:.0f} s.{process.last_words()}")
    else:
        context.note(f"embed{' with shared beginnings' if beginning else ''} was stopped after {left:.0f} s, with {seen:,} rows of {total:,}")
    begun, from_row = next((at, count) for at, count in timeline if count >= seen / 4)
    ended = timeline[-1][0]
    counted = sum(each[row % len(lines)] for row in range(from_row, seen))
    found = counted / max(ended - begun, 1e-9)
    context.figure("embed" + (", shared beginnings" if beginning else ""), found, "tok/s")
    return [total, sum(each) / len(each), seen - from_row, ended - begun, found, context.watch.busy(begun, ended),
            *context.watch.facts(begun, ended)]
