"""G: the full model's speed, from ids on the host to vectors there, one batch after the other."""

import statistics
import time

from .machine import FACTS
from .model import PUBLISHED_FLOPS, Cost, mixed_lengths, random_texts
from .worker import Refused, products

TURNS_MIN = 3
COLUMNS = ["batch", "tokens", "turns", "tok/s", "first and last fifth", "TFLOP/s", "of 989, %", "of a product in the same run, %",
           "that product, TFLOP/s", *FACTS]
# Settings that only newer workers have, and two cases that show what each is for.
ABLATIONS = [
    (["--dtype", "fp8"], ["64x512", "mixed 16..1008", "1x32768"]),
    (["--cuda-attention", "2"], ["64x512", "1x32768"]),
    (["--cuda-sharing", "never"], ["64x(256+256)"]),
    (["--cuda-sharing", "always"], ["mixed 16..1008"]),
]


class Product:
    """A large bf16 product: what the machine really does, as it is now."""

    def __init__(self, context, torch):
        self.size, self.times = (8192, 10) if context.device == "cuda" else (256, 2)
        # Random: zeros take less power, and let the clock run higher than any model can.
        self.left, self.right = (torch.randn(self.size, self.size, device=context.device).bfloat16() for _ in range(2))
        self.out = torch.empty_like(self.left)
        self.torch, self.wait = torch, torch.cuda.synchronize if context.device == "cuda" else lambda: None
        self.measure()

    def measure(self):
        """FLOP/s."""
        self.torch.mm(self.left, self.right, out=self.out)
        self.wait()
        began = time.perf_counter()
        for _ in range(self.times):
            self.torch.mm(self.left, self.right, out=self.out)
        self.wait()
        return self.times * 2 * self.size**3 / (time.perf_counter() - began)


def cases_of(context):
    """Lengths, and seconds to measure for."""
    if context.device == "cpu":
        return {"2x64": ([64] * 2, 0.5), "mixed 16..128": (mixed_lengths(256, 16, 128), 0.2)}
    cases = {
        "64x512": ([512] * 64, 8 if context.quick else 20),
        "mixed 16..1008": (mixed_lengths(32_768, 16, 1008), 5),
        "mixed 16..4096": (mixed_lengths(32_768, 16, 4096), 4),
        "256x128": ([128] * 256, 4),
        "16x2048": ([2048] * 16, 4),
        "1x32768": ([32_768], 4),
        "16x32": ([32] * 16, 1),
        "1x32": ([32], 1),
    }
    few = ("64x512", "mixed 16..1008", "mixed 16..4096", "1x32")
    return {name: cases[name] for name in few} if context.quick else cases


def texts_of(name, lengths, cost, end):
    if name == "64x(256+256)":
        beginning = random_texts([257], cost, end, seed=99)[0][:-1]
        return [beginning + tail for tail in random_texts([256] * 64, cost, end, seed=98)]
    return random_texts(lengths, cost, end, seed=100 + len(lengths))


def run(context):
    torch = context.torch()
    model_dir = context.model_dir()
    cost, product = Cost(model_dir), Product(context, torch)
    context.watch
    worker = context.worker(model_dir, *products(context, "invariant"))
    context.note(f"loaded in {worker.ready['load_seconds']:.1f} s ({worker.started_s:.1f} s with its start); computes in "
                 f"{worker.ready['dtype']}, path {worker.ready['path']}; {cost.layers} layers")
    end, found = worker.ready["end_token"], {}

    def rows():
        cases = cases_of(context)
        for name, (lengths, seconds) in cases.items():
            if context.left() < 2:
                yield [name, sum(lengths), None, None, "the time was up", *[None] * 7]
                continue
            try:
                yield case(name, lengths, min(seconds, max(context.left() - 2, 0.5)))
            except Exception as error:
                context.fail(f"{name}: {type(error).__name__}: {error}")
                if worker.process.poll() is not None:
                    return

    def case(name, lengths, seconds):
        texts = texts_of(name, lengths, cost, end)
        context.say(name)
        worker.run(texts)
        rates, took = [product.measure()], []
        began = time.monotonic()
        until, again = began + seconds, began + seconds / 2
        while len(took) < TURNS_MIN or time.monotonic() < until:
            took.append(worker.run(texts))
            if time.monotonic() > again:
                # In the middle: what comes before and after is without a pause.
                rates.append(product.measure())
                again = until + 1e9
        ended = time.monotonic()
        rates.append(product.measure())
        seconds, tokens, rate = statistics.median(took), sum(lengths), statistics.median(rates)
        fifth = max(len(took) // 5, 1)
        firsts, lasts = (tokens / statistics.median(part) for part in (took[:fifth], took[-fifth:]))
        flops = cost.flop(lengths) / seconds
        found[name] = (tokens / seconds, flops)
        if name in ("64x512", "2x64", "mixed 16..1008", "mixed 16..4096", "1x32768"):
            context.figure(name, tokens / seconds, "tok/s")
        elif name == "1x32":
            context.figure("a single query of 32 tokens", seconds * 1e3, "ms")
        return [name, tokens, len(took), tokens / seconds, f"{firsts:,.0f} and {lasts:,.0f}", flops / 1e12,
                100 * flops / PUBLISHED_FLOPS, 100 * flops / rate, rate / 1e12, *context.watch.facts(began, ended)]

    context.table(f"The full model, {cost.layers} layers: median of turns, nothing overlapped with the next batch", COLUMNS, rows())
    goals(context, found)
    for part in (price_of_bits, ablations):
        try:
            part(context, model_dir, cost, worker)
        except Exception as error:
            context.fail(f"{part.__name__}: {type(error).__name__}: {error}")
    worker.close()


def goals(context, found):
    if context.args.shape != "4b" or context.args.layers not in (None, 36) or "64x512" not in found:
        return
    rate, flops = found["64x512"]

    def rows():
        yield ["64x512, 60 % of 989 TFLOP/s", "82,200 tok/s", f"{rate:,.0f} tok/s, {flops / PUBLISHED_FLOPS:.1%}", rate >= 82_200]
        yield ["64x512, 58.4 %", "80,000 tok/s", f"{rate:,.0f} tok/s", rate >= 80_000]
        if "mixed 16..1008" in found:
            share = found["mixed 16..1008"][0] / rate
            yield ["mixed 16..1008, of the rate at equal lengths", "97 %", f"{share:.1%}", share >= 0.97]
        if "mixed 16..4096" in found:
            share = found["mixed 16..4096"][1] / flops
            yield ["mixed 16..4096, of the FLOP/s at equal lengths", "95 %", f"{share:.1%}", share >= 0.95]
        if "1x32768" in found:
            yield ["1x32768", "35,000 tok/s", f"{found['1x32768'][0]:,.0f} tok/s", found["1x32768"][0] >= 35_000]

    context.table("Goals", ["what", "goal", "found", "reached"], rows())


def turns(workers, texts, seconds):
    """Median seconds of each worker, in turns."""
    took = [[] for _ in workers]
    for worker in workers:
        worker.run(texts)
    until = time.monotonic() + seconds
    while len(took[0]) < TURNS_MIN or time.monotonic() < until:
        for worker, times in zip(workers, took):
            times.append(worker.run(texts))
    return [statistics.median(times) for times in took]


def lengths_of(context, names):
    if context.device == "cpu":
        return {"2x64": [64] * 2}
    known = {"64x512": [512] * 64, "mixed 16..1008": mixed_lengths(32_768, 16, 1008), "64x(256+256)": [512] * 64,
             "mixed 16..4096": mixed_lengths(32_768, 16, 4096), "16x32": [32] * 16, "1x32": [32], "1x32768": [32_768]}
    return {name: known[name] for name in names}


def price_of_bits(context, model_dir, cost, worker):
    """What the promise of the same bits costs."""
    if context.left() < 20 and context.device == "cuda":
        context.note("the price of the same bits: not measured, the time was up")
        return
    fastest = context.worker(model_dir, *products(context, "fastest"))

    def rows():
        for name, lengths in lengths_of(context, ["64x512", "mixed 16..1008", "mixed 16..4096", "16x32", "1x32"]).items():
            if context.left() < 3:
                yield [name, None, None, "the time was up"]
                continue
            texts = texts_of(name, lengths, cost, worker.ready["end_token"])
            ours, theirs = turns([worker, fastest], texts, 0.3 if context.device == "cpu" or len(texts) * len(texts[0]) < 1000 else 3)
            yield [name, sum(lengths) / ours, sum(lengths) / theirs, f"{ours / theirs - 1:+.1%}"]

    context.table("The price of the same bits, in turns", ["batch", "invariant, tok/s", "fastest, tok/s", "invariant takes longer by"],
                  rows())
    fastest.close()


def ablations(context, model_dir, cost, worker):
    """Each setting against the default, in turns."""
    if context.device == "cpu":
        return

    def rows():
        for flags, names in ABLATIONS:
            setting = " ".join(flags)
            # A worker has to be loaded for each.
            if context.left() < worker.started_s + 6:
                yield [setting, None, None, None, "the time was up"]
                continue
            try:
                other = context.worker(model_dir, *flags)
            except Refused as refused:
                yield [setting, None, None, None, f"refused: {str(refused)[-250:]}"]
                continue
            for name, lengths in lengths_of(context, names).items():
                texts = texts_of(name, lengths, cost, worker.ready["end_token"])
                default, theirs = turns([worker, other], texts, 2)
                yield [setting, name, sum(lengths) / default, sum(lengths) / theirs, f"{default / theirs - 1:+.1%}"]
            other.close()

    context.table("Other settings, in turns", ["setting", "batch", "default, tok/s", "with it, tok/s", "it is faster by"], rows())
