"""I: transformers, in turns with the worker."""

import contextlib
import statistics
import time

from .exact import distances
from .machine import FACTS
from .model import PUBLISHED_FLOPS, Cost, mixed_lengths, random_texts
from .worker import products

SUB_BATCH = 16
TURNS_MIN = 3


def run(context):
    torch = context.torch()
    from .transformer import Transformers

    model_dir, cuda = context.model_dir(), context.device == "cuda"
    cost = Cost(model_dir)
    context.watch
    worker = context.worker(model_dir, *products(context, "invariant"))
    end = worker.ready["end_token"]
    peer = Transformers(model_dir, context.device, torch.bfloat16, "sdpa", end, SUB_BATCH)
    context.say("transformers is loaded")
    for part in (turns, profile, compare):
        try:
            part(context, torch, worker, peer, cost, end)
        except Exception as error:
            context.fail(f"{part.__name__}: {type(error).__name__}: {error}")
            if cuda:
                with contextlib.suppress(Exception):
                    torch.cuda.empty_cache()
    worker.close()


def turns(context, torch, worker, peer, cost, end):
    cuda = context.device == "cuda"
    cases = {"64x512": [512] * 64, "mixed 16..1008": mixed_lengths(32_768, 16, 1008)} if cuda else {
        "2x64": [64] * 2, "mixed 16..128": mixed_lengths(256, 16, 128)}

    def rows():
        for number, (name, lengths) in enumerate(cases.items()):
            if context.left() < 5:
                yield [name, None, None, None, None, None, *[None] * 3]
                continue
            texts = random_texts(lengths, cost, end, seed=100 + number)
            ours, theirs = [], []
            worker.run(texts), peer.run(texts)
            began = time.monotonic()
            until = began + min(8 if cuda else 0.3, context.left() / 3)
            while len(ours) < TURNS_MIN or time.monotonic() < until:
                ours.append(worker.run(texts))
                theirs.append(peer.run(texts))
            tokens, left, right = sum(lengths), statistics.median(ours), statistics.median(theirs)
            context.figure(f"{name}: transformers", tokens / right, f"tok/s, the worker {right / left:.2f} x that")
            yield [name, len(ours), tokens / left, tokens / right, f"{right / left:.2f} x",
                   100 * cost.flop(lengths) / right / PUBLISHED_FLOPS, *context.watch.facts(began, time.monotonic())]

    context.table(f"{peer.name} in bf16, sub-batches of {SUB_BATCH} of like length, no mask, in turns with the worker",
                  ["batch", "turns", "worker, tok/s", "transformers, tok/s", "the worker is faster by",
                   "transformers, % of 989 TFLOP/s", *FACTS], rows())


def compare(context, torch, worker, peer, cost, end):
    """All layers: errors of rounding have more room than in a few. The last part: transformers is in f32 afterwards."""
    lengths = [1, 64, 300, 1024, 2048] if context.device == "cuda" else [1, 64, 300]
    texts = random_texts(lengths, cost, end, seed=300)
    ours = torch.tensor(worker.vectors(texts), dtype=torch.float64)
    theirs = peer.vectors(texts)
    worker.close()
    exact = peer.exact().vectors(texts)
    left, right = distances(ours, exact).tolist(), distances(theirs, exact).tolist()
    context.table(f"Cosines with transformers in f32, {cost.layers} layers", ["tokens", "worker", "transformers bf16 SDPA"],
                  [[length, f"{1 - a:.7f}", f"{1 - b:.7f}"] for length, a, b in zip(lengths, left, right)])
    context.figure("lowest cosine with f32, all layers", f"{1 - max(left):.6f}", f"(transformers in bf16 {1 - max(right):.6f})")
    if not max(left) <= max(2 * max(right), 1e-4):
        context.fail(f"the worker's lowest cosine with f32 is {1 - max(left):.6f}, transformers' in bf16 {1 - max(right):.6f}")


def profile(context, torch, worker, peer, cost, end):
    if context.left() < 5:
        context.note("profile: not made, the time was up")
        return
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    cuda = context.device == "cuda"
    texts = random_texts([512] * SUB_BATCH if cuda else [64] * 2, cost, end, seed=301)
    peer.run(texts)
    with profiler(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiled:
        peer.run(texts)
    rows = []
    for event in profiled.key_averages():
        # Named otherwise in older versions.
        device = getattr(event, "self_device_time_total", getattr(event, "self_cuda_time_total", 0))
        spent = device if cuda else event.self_cpu_time_total
        if spent and (not cuda or "CUDA" in str(getattr(event, "device_type", "CUDA"))):
            rows.append([event.key[:110], event.count, spent / 1e3])
    rows.sort(key=lambda row: -row[2])
    whole = sum(row[2] for row in rows)
    context.table(f"transformers on {len(texts)} texts: the 15 kernels that take longest", ["kernel", "calls", "ms", "share, %"],
                  [[*row, 100 * row[2] / whole] for row in rows[:15]])
