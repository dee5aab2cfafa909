"""A: what the machine does without the engine, by torch: the ceilings that the engine's rates are to be held against."""

import time

from .machine import FACTS

FP8_MAX = 448.0  # of e4m3
COPIES = [2**28, 2**30, 2**32]  # bytes
HEIGHTS = [2048, 8192, 32_768]
ATTENTION = [(64, 512), (16, 2048), (1, 32_768)]


def shapes(context):
    """Output and input width of each product of a layer of the 4B model."""
    if context.device == "cpu":
        return {"qkv": (96, 64), "o": (64, 64), "gate/up": (128, 64), "down": (64, 128)}
    return {"qkv": (6144, 2560), "o": (2560, 4096), "gate/up": (19_456, 2560), "down": (2560, 9728)}


class Timer:
    """Seconds of a call, from the second call on, over a while."""

    def __init__(self, context, torch):
        self.context, self.torch, self.cuda = context, torch, context.device == "cuda"

    def wait(self):
        if self.cuda:
            self.torch.cuda.synchronize()

    def __call__(self, call, seconds=0.25):
        """Mean seconds a call, and what the GPU looked like meanwhile."""
        call()
        self.wait()
        began = time.monotonic()
        call()
        self.wait()
        once = max(time.monotonic() - began, 1e-6)
        times = max(3, min(2000, int((seconds if self.cuda else 0.01) / once)))
        began = time.monotonic()
        for _ in range(times):
            call()
        self.wait()
        ended = time.monotonic()
        return (ended - began) / times, self.context.watch.facts(began, ended)


def run(context):
    torch = context.torch()
    timer = Timer(context, torch)
    context.watch
    for part in (copies, products, sustained, fp8, attention):
        if context.left() < 3:
            context.note(f"{part.__name__}: not measured, the time was up")
            continue
        try:
            part(context, torch, timer)
        except Exception as error:
            context.fail(f"{part.__name__}: {type(error).__name__}: {error}")
        if context.device == "cuda":
            torch.cuda.empty_cache()


def copies(context, torch, timer):
    def rows():
        for size in [2**20] if context.device == "cpu" else COPIES:
            source = torch.randn(size // 2, device=context.device, dtype=torch.bfloat16)
            target = torch.empty_like(source)
            seconds, facts = timer(lambda: target.copy_(source))
            rate = 2 * size / seconds / 1e9
            yield [f"copy of {size / 2**20:,.0f} MiB", seconds * 1e3, rate, *facts]
            best.append(rate)
        source = torch.randn(size // 2, device=context.device, dtype=torch.bfloat16)
        seconds, facts = timer(lambda: source.mul_(1.0))
        yield ["the same, in place", seconds * 1e3, 2 * size / seconds / 1e9, *facts]

    best = []
    context.table("Memory, read and written", ["what", "ms", "GB/s", *FACTS], rows())
    context.figure("copy", max(best), "GB/s")


def products(context, torch, timer):
    rates = {}

    def rows():
        for height in [64, 128] if context.device == "cpu" else HEIGHTS:
            whole = [0.0, 0.0]
            for name, (outer, inner) in shapes(context).items():
                left = torch.randn(height, inner, device=context.device, dtype=torch.bfloat16)
                right = torch.randn(outer, inner, device=context.device, dtype=torch.bfloat16).mul_(inner**-0.5)
                out = torch.empty(height, outer, device=context.device, dtype=torch.bfloat16)
                seconds, facts = timer(lambda: torch.mm(left, right.T, out=out))
                flop = 2 * height * outer * inner
                whole = [whole[0] + flop, whole[1] + seconds]
                yield [name, f"{outer} x {inner}", height, seconds * 1e3, flop / seconds / 1e12, *facts]
            rates[height] = whole[0] / whole[1] / 1e12
            yield ["all four", None, height, whole[1] * 1e3, rates[height], None, None, None]

    context.table("bf16 products, torch.mm", ["weights", "N x K", "M", "ms", "TFLOP/s", *FACTS], rows())
    context.figure("four bf16 products in short runs", rates[max(rates)], "TFLOP/s")


def sustained(context, torch, timer):
    """All four of a layer, in turns, as long as it takes for power and heat to settle."""
    height, seconds = (64, 0.2) if context.device == "cpu" else (HEIGHTS[-1], 4 if context.quick else 10)
    seconds = min(seconds, max(context.left() - 12, 1))
    calls, flop = [], 0
    for outer, inner in shapes(context).values():
        left = torch.randn(height, inner, device=context.device, dtype=torch.bfloat16)
        right = torch.randn(outer, inner, device=context.device, dtype=torch.bfloat16).mul_(inner**-0.5)
        out = torch.empty(height, outer, device=context.device, dtype=torch.bfloat16)
        calls.append((left, right.T, out))
        flop += 2 * height * outer * inner

    def rows():
        began = last = time.monotonic()
        done = 0
        # A row every two seconds shows what settling does.
        while time.monotonic() < began + seconds:
            for _ in range(10):
                for left, right, out in calls:
                    torch.mm(left, right, out=out)
            timer.wait()
            done += 10
            now = time.monotonic()
            if now - last >= 2 or now >= began + seconds:
                rates.append(flop * done / (now - last) / 1e12)
                yield [f"{last - began:.0f} to {now - began:.0f}", rates[-1], *context.watch.facts(last, now)]
                last, done = now, 0

    rates = []
    context.table(f"The four bf16 products of a layer, M = {height}, without a pause", ["s", "TFLOP/s", *FACTS], rows())
    if rates:
        context.figure("four bf16 products, sustained", rates[-1], "TFLOP/s")


def fp8(context, torch, timer):
    if context.device == "cpu":
        context.note("fp8: not on a CPU")
        return
    kind, height = torch.float8_e4m3fn, HEIGHTS[-1]
    rates = {}

    def rows():
        for name, (outer, inner) in shapes(context).items():
            left = torch.randn(height, inner, device="cuda", dtype=torch.bfloat16)
            right = torch.randn(outer, inner, device="cuda", dtype=torch.bfloat16)
            exact = left[:256].float() @ right.float().T
            for scales in ("a tensor", "a row"):
                dims = dict(dim=1, keepdim=True) if scales == "a row" else {}
                left_scale = (left.abs().amax(**dims).float() / FP8_MAX)
                right_scale = (right.abs().amax(**dims).float() / FP8_MAX)
                left8, right8 = (left.float() / left_scale).to(kind), (right.float() / right_scale).to(kind)
                # A column for each of the second matrix's rows: it is given turned.
                right_scale = right_scale.reshape(1, -1) if scales == "a row" else right_scale
                for fast in (True, False):
                    label = f"{scales}, {'fast' if fast else 'exact'} sums"
                    try:
                        def call():
                            return torch._scaled_mm(left8, right8.T, scale_a=left_scale, scale_b=right_scale,
                                                    out_dtype=torch.bfloat16, use_fast_accum=fast)

                        found = call()[:256].float()
                        error = ((found - exact).norm() / exact.norm()).item()
                        seconds, facts = timer(call, 0.2)
                    except Exception as refused:
                        yield [name, label, None, None, None, f"{type(refused).__name__}: {str(refused)[:100]}", None, None]
                        continue
                    flop = 2 * height * outer * inner
                    whole = rates.setdefault(label, [0, 0.0])
                    rates[label] = [whole[0] + flop, whole[1] + seconds]
                    yield [name, label, seconds * 1e3, flop / seconds / 1e12, error, *facts]
            del left, right, exact, left8, right8
        for label, (flop, seconds) in rates.items():
            yield ["all four", label, seconds * 1e3, flop / seconds / 1e12, None, None, None, None]

    context.table(f"fp8 (e4m3) products, torch._scaled_mm, M = {height}",
                  ["weights", "a scale for", "ms", "TFLOP/s", "relative error", *FACTS], rows())
    for label, (flop, seconds) in rates.items():
        if "fast" in label:
            context.figure(f"four fp8 products, {label}", flop / seconds / 1e12, "TFLOP/s")


def attention(context, torch, timer):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    cuda = context.device == "cuda"
    cases, heads = (ATTENTION, 32) if cuda else ([(2, 32)], 4)
    backends = {"flash": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION} if cuda else {
        "math": SDPBackend.MATH}

    def rows():
        for texts, length in cases:
            for name, backend in backends.items():
                label = f"{texts}x{length}"
                try:
                    query = torch.randn(texts, heads, length, 128, device=context.device, dtype=torch.bfloat16)
                    # Eight heads of keys and values, each for a quarter of the queries'.
                    key, value = (torch.randn(texts, heads // 4, length, 128, device=context.device, dtype=torch.bfloat16)
                                  .repeat_interleave(4, dim=1) for _ in range(2))
                    with sdpa_kernel(backend):
                        seconds, facts = timer(lambda: torch.nn.functional.scaled_dot_product_attention(
                            query, key, value, is_causal=True), 0.3)
                except Exception as refused:
                    yield [label, name, None, None, f"{type(refused).__name__}: {str(refused)[:100]}", None, None]
                    continue
                flop = 4 * texts * heads * 128 * (length * (length + 1) // 2)
                yield [label, name, seconds * 1e3, flop / seconds / 1e12, *facts]

    context.table(f"Causal attention, {heads} heads of 128, torch's SDPA", ["texts", "by", "ms", "TFLOP/s", *FACTS], rows())
