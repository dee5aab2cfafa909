"""D: what each operation takes, by the worker's own marks on the GPU, and what that makes of the full model."""

import time

from .machine import FACTS
from .worker import Refused, bench, products

CASES = ["64x512", "mixed:32768:16..1008", "mixed:32768:16..4096", "1x4096+140x200", "shared:64x256+256", "16x32", "1x32"]
CASES_QUICK = ["64x512", "mixed:32768:16..4096"]
CASES_CPU = ["2x64", "mixed:256:16..128", "1x32"]
ONCE = ("layout", "embedding", "finish")
LAST = "last layer: "
# Ablations: what a setting does to one or two cases.
ABLATIONS = [
    (["--cuda-sharing", "never"], ["shared:64x256+256"]),
    # Where texts lie by what they begin with, attention is one launch for long and short ones.
    (["--cuda-sharing", "always"], ["mixed:32768:16..1008", "1x4096+140x200"]),
    (["--cuda-attention", "2"], ["64x512", "mixed:32768:16..4096"]),
    (["--dtype", "fp8"], ["64x512", "mixed:32768:16..4096"]),
    (["--cuda-products", "fastest"], ["64x512"]),
]


def run(context):
    layers = context.few_layers
    model_dir = context.model_dir(layers)
    cuda = context.device == "cuda"
    context.watch
    cases = CASES_CPU if not cuda else CASES_QUICK if context.quick else CASES
    flags = products(context, "invariant") if cuda else ["--cpu-path", "candle-f32"]
    found, facts, known = {}, {}, True
    try:
        began = time.monotonic()
        for measured in times(context, model_dir, flags, cases):
            now = time.monotonic()
            # A case is timed last of all that is done for it.
            facts[measured["case"]] = context.watch.facts(max(began, now - 0.5), now)
            found[measured["case"]], began = measured, now
            try:
                show(context, measured, layers)
            except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
                context.fail(f"{measured.get('case')}: {type(error).__name__}: {error}, in {str(measured)[:500]}")
    except Exception as error:
        context.fail(error)
        known = "'--times'" not in str(error)
    missing = [case for case in cases if case not in found] if known else []
    # One that it can't do, or does not know, is not to take the others with it.
    for case in missing if len(cases) > 1 else []:
        if context.left() < 8:
            context.note(f"{case}: not measured, the time was up")
            continue
        try:
            for measured in times(context, model_dir, flags, [case]):
                found[case] = measured
                show(context, measured, layers)
        except Exception as error:
            context.fail(f"{case}: {str(error)[:500]}")
    if found:
        context.table("All cases", ["case", "tokens", "rows computed", "ms", "sum of operations, ms", "accounted for, %", "tok/s",
                                    "TFLOP/s of operations' count", "memory used at most, MB", "predicted, MB", *FACTS],
                      [[*overview(measured), *facts.get(case, [None] * 3)] for case, measured in found.items()])
    if cuda and found and not context.quick:
        ablations(context, model_dir, found)


def times(context, model_dir, flags, cases):
    asked = [part for case in cases for part in ("--case", case)]
    return bench(context, model_dir, "--times", *flags, *asked, "--turns", 15 if context.device == "cuda" else 3)


def parts(measured):
    """Seconds of an ordinary layer, of the last one, and of what is done once a batch."""
    ordinary = last = once = 0.0
    for operation in measured["operations"]:
        name, seconds = operation["operation"], operation["seconds"]
        if name.startswith(LAST):
            last += seconds
        elif name in ONCE:
            once += seconds
        else:
            ordinary += seconds
    return ordinary, last, once


def show(context, measured, layers):
    deep = max(measured["layers"] - 1, 1)
    whole = measured["operations_seconds"]

    def rows():
        for operation in measured["operations"]:
            name, seconds = operation["operation"], operation["seconds"]
            times = deep if not name.startswith(LAST) and name not in ONCE else 1
            flop, moved = operation.get("flop") or 0, operation.get("bytes") or 0
            yield [name, operation["calls"], seconds / times * 1e3, 100 * seconds / whole if whole else None,
                   flop / seconds / 1e12 if flop and seconds else None, moved / seconds / 1e9 if moved and seconds else None]

    context.table(f"{measured['case']}: operations of {measured['layers']} layers, {measured['tokens']:,} tokens, "
                  f"path {measured['path']}",
                  ["operation", "calls", "ms a layer (once: ms)", "share, %", "TFLOP/s", "GB/s"], rows())
    ordinary, last, once = parts(measured)
    full = context.full_layers
    layer = ordinary / deep
    seconds = (full - 1) * layer + last + once
    context.note(f"{measured['case']}: a layer {layer * 1e3:.3f} ms, the last one {last * 1e3:.3f} ms, once a batch {once * 1e3:.3f} "
                 f"ms; so {full} layers take {seconds * 1e3:.1f} ms: {measured['tokens'] / seconds:,.0f} tok/s")
    if measured["case"] in ("64x512", "2x64"):
        context.figure(f"{measured['case']}, {full} layers by {measured['layers']}", measured["tokens"] / seconds, "tok/s")


def overview(measured):
    memory = measured.get("memory") or {}
    seconds, whole = measured["seconds_median"], measured["operations_seconds"]
    flop = sum(operation.get("flop") or 0 for operation in measured["operations"])
    high, predicted = memory.get("high_bytes"), memory.get("predicted_bytes")
    return [measured["case"], measured["tokens"], measured.get("rows"), seconds * 1e3, whole * 1e3, 100 * whole / seconds,
            measured["tokens"] / seconds, flop / seconds / 1e12, high and high / 1e6, predicted and predicted / 1e6]


def ablations(context, model_dir, found):
    def rows():
        for flags, cases in ABLATIONS:
            cases = [case for case in cases if case in found]
            if not cases or context.left() < 7:
                yield [" ".join(flags), None, None, None, "the time was up"]
                continue
            try:
                for measured in times(context, model_dir, flags, cases):
                    before = found[measured["case"]]["seconds_median"]
                    slow = sorted(measured["operations"], key=lambda one: -one["seconds"])[:4]
                    yield [" ".join(flags), measured["case"], measured["seconds_median"] * 1e3,
                           f"{measured['seconds_median'] / before - 1:+.1%}",
                           ", ".join(f"{one['operation']} {one['seconds'] * 1e3:.2f} ms" for one in slow)]
            except Refused as refused:
                # A build may lack a setting.
                yield [" ".join(flags), ", ".join(cases), None, None, f"refused: {str(refused)[-250:]}"]

    context.table("Other settings", ["setting", "case", "ms", "against the default", "what takes longest"], rows())
