"""E: cuBLASLt's algorithms for each shape of weights, by the worker."""

import json
import time

from .machine import FACTS
from .worker import Refused, bench

COLUMNS = ["weights", "precision", "M", "fastest, TFLOP/s", "which", "its bits", "in one piece and for all heights, TFLOP/s", "which",
           "its bits", "used, TFLOP/s", "which", "its bits", "algorithms", "different bits", *FACTS]


def described(one):
    """An algorithm in a few letters."""
    found = [f"#{one.get('id')}", f"tile {one.get('tile')}", f"stages {one.get('stages')}", f"cluster {one.get('cluster')}"]
    # -1: it has none.
    for key, usual in (("option", (0, -1)), ("pieces", (0, 1, -1)), ("reduction", (0, -1))):
        if one.get(key) is not None and one[key] not in usual:
            found.append(f"{key} {one[key]}")
    if one.get("workspace"):
        found.append(f"{one['workspace'] / 2**20:.0f} MiB")
    return " ".join(found)


def key(one):
    """The same algorithm at another height."""
    return tuple(one.get(part) for part in ("id", "tile", "stages", "option", "cluster", "pieces", "reduction"))


class Letters:
    """A letter for each digest, in the order in which they come."""

    def __init__(self):
        self.known = {}

    def __call__(self, digest):
        if digest is None:
            return None
        number = self.known.setdefault(digest, len(self.known))
        return chr(ord("A") + number) if number < 26 else f"#{number}"


def run(context):
    # Of the weights only their sizes are asked for.
    model_dir = context.model_dir(context.few_layers)
    raw = open((context.out or context.state) / "products.jsonl", "w")
    seen, letters = [], {}
    context.watch

    def rows():
        began = time.monotonic()
        for found in bench(context, model_dir, "--products"):
            raw.write(json.dumps(found) + "\n")
            raw.flush()
            try:
                yield [*row(found), *context.watch.facts(began, time.monotonic())]
                began = time.monotonic()
            except (KeyError, TypeError, ValueError, IndexError) as error:
                context.fail(f"{type(error).__name__}: {error}, in {str(found)[:300]}")
                continue
            seen.append(found)

    def row(found):
        named = letters.setdefault((found["weights"], found["precision"]), Letters())
        first = [found["weights"], found["precision"], found["height"]]
        algorithms = found.get("algorithms") or []
        if not algorithms:
            return [*first, None, found.get("note") or "none", *[None] * 9]
        algorithms.sort(key=lambda one: one["milliseconds"])
        bits = [named(one.get("bits")) for one in algorithms]
        steady = next((one for one in algorithms if one.get("in_one_piece") and one.get("all_heights")), None)
        used = next((one for one in algorithms if one.get("used")), None)

        def cells(one):
            return [one["tflops"], described(one), named(one.get("bits"))] if one else [None, None, None]

        return [*first, *cells(algorithms[0]), *cells(steady), *cells(used), len(algorithms), len(set(bits))]

    try:
        context.table("cuBLASLt's algorithms by the worker", COLUMNS, rows())
    except Refused as refused:
        # A CPU may say that it has no such thing; a worker that does not know the question ends otherwise.
        if context.device == "cuda" or "exit code 1." not in str(refused):
            raise
        context.note(refused)
        return
    finally:
        raw.close()
        if seen:
            compared(context, seen, letters)
            best(context, seen)
            totals(context, seen)
    if not seen:
        context.fail("the worker said nothing of its products")


def groups(seen):
    found = {}
    for one in seen:
        found.setdefault((one["weights"], one["precision"]), []).append(one)
    return found


def compared(context, seen, letters):
    """Whether bits depend on the algorithm, and on the height."""

    def rows():
        for (weights, precision), heights in groups(seen).items():
            named = letters[weights, precision]
            digests, across = set(), {}
            for one in heights:
                for algorithm in one.get("algorithms") or []:
                    digests.add(algorithm.get("bits"))
                    across.setdefault(key(algorithm), {})[one["height"]] = named(algorithm.get("bits"))
            several = {name: found for name, found in across.items() if len(found) > 1}
            moving = [found for found in several.values() if len(set(found.values())) > 1]
            used = {one["height"]: named(algorithm.get("bits")) for one in heights
                    for algorithm in one.get("algorithms") or [] if algorithm.get("used")}
            example = ", ".join(f"M {height}: {letter}" for height, letter in sorted(moving[0].items())) if moving else None
            yield [weights, precision, len(across), len(digests), f"{len(moving)} of {len(several)}", example,
                   ", ".join(f"{height}: {letter}" for height, letter in sorted(used.items())) or None]

    context.table("Bits of the same rows", ["weights", "precision", "algorithms", "different bits over all of them and all heights",
                                            "algorithms whose bits depend on the height", "for example", "used, by height"], rows())


def best(context, seen):
    """The three fastest at the greatest height, by the bits they give."""

    def rows():
        for (weights, precision), heights in groups(seen).items():
            one = max(heights, key=lambda one: one["height"])
            for algorithm in (one.get("algorithms") or [])[:3]:
                yield [weights, precision, one["height"], algorithm["tflops"], algorithm["milliseconds"], described(algorithm),
                       algorithm.get("rank"), algorithm.get("waves"), algorithm.get("in_one_piece"), algorithm.get("all_heights")]

    context.table("The three fastest at the greatest height", ["weights", "precision", "M", "TFLOP/s", "ms", "which",
                                                               "place in cuBLASLt's order", "waves", "in one piece", "all heights"], rows())


def totals(context, seen):
    """What the products of a layer come to."""
    for precision in dict.fromkeys(one["precision"] for one in seen):
        tallest = [max(heights, key=lambda one: one["height"]) for (_, kind), heights in groups(seen).items() if kind == precision]
        if not all(one.get("algorithms") for one in tallest):
            continue
        flop = sum(2 * one["outer"] * one["inner"] * one["height"] for one in tallest)
        for name, wanted in (("fastest", lambda one: True), ("used", lambda one: one.get("used"))):
            chosen = [next((each for each in one["algorithms"] if wanted(each)), None) for one in tallest]
            if all(chosen) and (seconds := sum(each["milliseconds"] for each in chosen) / 1e3):
                context.figure(f"{precision} products, {name}", flop / seconds / 1e12, "TFLOP/s")
