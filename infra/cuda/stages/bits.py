"""Whether a text's vector has the same bits alone and in batches of every make."""

import math
import random
import struct
import time

from .model import random_texts
from .worker import products

LENGTHS = [1, 2, 3, 8, 31, 63, 64, 65, 127, 128, 129, 300, 513, 1024, 2048]
LENGTHS_QUICK = [1, 2, 31, 64, 65, 129, 300, 513, 2048]
# Those of a GPU whose bits are promised to be the same.
PATHS = ("hopper-bf16", "hopper-fp8", "cuda-bf16")
COLUMNS = ["each text", "batches", "vectors", "others", "lowest cosine"]


def bits_texts(context, cost, end):
    """Texts by what they are good for: of all lengths; of one length; families that begin alike, as queries with one
    instruction do, the last of each being all beginning; and others, to make batches of any size with."""
    cpu = context.device == "cpu"
    lengths = [1, 2, 31, 64, 65, 129] if cpu else LENGTHS_QUICK if context.quick else LENGTHS
    plain = random_texts(lengths, cost, end, seed=11)
    equal = random_texts([130] * 6 if cpu else [130] * 8 + [512] * 8, cost, end, seed=12)
    # Tokens of the beginning, and of what follows it.
    families = []
    for number, (shared, own) in enumerate([(19, [1, 5, 30, 64]), (128, [1, 40, 300]), (250, [3, 131, 700])]):
        beginning = random_texts([shared + 1], cost, end, seed=20 + number)[0][:-1]
        own = [min(length, 70) for length in own] if cpu else own
        tails = random_texts(own, cost, end, seed=30 + number)
        families.append([beginning + tail for tail in tails + [tails[0], [end]]])
    others = random_texts([17] * 20 if cpu else [200] * 150, cost, end, seed=13)
    return plain, equal, families, others


def bits_rounds(plain, equal, families, others):
    """All texts, how many of them are compared, and rounds: a name and batches, of places among all texts. What a batch
    may have to do with a text's bits: how many rows it has, in which order, what lies before and after the text, and
    which of the text's rows are computed for others too."""
    draw = random.Random(14)
    compared = plain + equal + sum(families, [])
    texts = compared + others
    starts = [len(plain) + len(equal) + sum(map(len, families[:number])) for number in range(len(families))]
    kin = [list(range(start, start + len(family))) for start, family in zip(starts, families)]
    everything = list(range(len(compared)))
    filling = list(range(len(compared), len(texts)))

    def shuffled(places):
        return draw.sample(places, len(places))

    def cut(places, size):
        return [places[start : start + size] for start in range(0, len(places), size)]

    same_length = list(range(len(plain), len(plain) + len(equal)))
    lengths = sorted({len(texts[place]) for place in same_length})
    by_length = [[place for place in same_length if len(texts[place]) == length] for length in lengths]
    # Each probe with more and more others.
    probes = [0, len(plain) // 2, kin[0][0], kin[0][2]]
    counts = [1, 2, 3, 5, 9, len(filling) // 4, len(filling) // 2, len(filling)]
    rounds = {
        "alone again": [[place] for place in everything],
        "all together": [everything],
        "all together, again": [everything],
        "in other orders": [shuffled(everything), everything[::-1]],
        "in pairs": cut(shuffled(everything), 2),
        "by fives": cut(shuffled(everything), 5),
        "of equal length": by_length + [batch for group in by_length for batch in cut(group, 3)],
        "with those that begin alike": [*kin, [place for family in kin for place in family]]
        + [pair for family in kin for pair in zip(family, family[1:])],
        "with none that begins alike": [[*places, 0, 1] for places in zip(*kin)],
        "among more and more others": [[probe, *filling[:count]] for probe in probes for count in counts],
        # Attention is launched apart for the two kinds.
        "a long one among many short ones": [[max(everything, key=lambda place: len(texts[place])), *filling],
                                             [*filling, max(everything, key=lambda place: len(texts[place]))]],
        "texts of one token": [[0], [0, 0], [0] * 9],
    }
    return texts, everything, rounds


def unlike(left, right):
    """How many values differ, and the cosine."""
    left, right = (struct.unpack(f"{len(bits) // 8}d", bits) for bits in (left, right))
    dot = sum(map(lambda a, b: a * b, left, right))
    norms = math.sqrt(sum(a * a for a in left) * sum(b * b for b in right))
    return sum(a != b for a, b in zip(left, right)), dot / norms if norms else math.nan


def compare(worker, texts, alone, name, batches, until):
    """A row of the table, and what is wrong if anything is."""
    seen, other, lowest, first, done = 0, 0, 1.0, None, 0
    for batch in batches:
        if time.monotonic() > until:
            break
        done += 1
        for place, found in zip(batch, worker.bits([texts[place] for place in batch])):
            if place >= len(alone):
                continue
            seen += 1
            if found != alone[place]:
                values, cosine = unlike(found, alone[place])
                first = first or (f"{name}: the text of {len(texts[place])} tokens, in a batch of {len(batch)} texts and "
                                  f"{sum(len(texts[other]) for other in batch)} tokens, has {values} values of "
                                  f"{len(found) // 8} that it does not have alone (cosine {cosine:.9f})")
                other, lowest = other + 1, min(lowest, cosine)
    count = f"{done} of {len(batches)}: the time was up" if done < len(batches) else done
    row = [name, count, seen, other or "none", f"{lowest:.9f}" if other else None]
    return row, first and f"{first}; {other} of {seen} vectors differ"


def run(context, model_dir, cost, worker, flags=None):
    """With a worker whose bits are promised to be the same; then with one that was started anew; and, for comparison, with
    one that promises nothing. `flags` are what another kind of worker than the default was started with."""
    end, until, wrong, others = worker.ready["end_token"], context.deadline, [], []
    path = worker.ready["path"]
    if context.device == "cuda" and path not in PATHS:
        context.fail(f"the worker, which promises the same bits, calls its path {path} and not {' or '.join(PATHS)}")
    texts, everything, rounds = bits_rounds(*bits_texts(context, cost, end))
    context.say(f"bits of {len(everything)} texts, each alone")
    alone = [worker.bits([texts[place]])[0] for place in everything]

    def rows(worker, names, before, promised):
        for name in names:
            row, found = compare(worker, texts, alone, before + name, rounds[name], until)
            others.append(0 if row[3] == "none" else row[3])
            yield row
            if promised and row[1] != len(rounds[name]):
                context.fail(f"{before}{name}: not all batches were compared, the time was up")
            if promised and found:
                wrong.append(found)
                context.fail(found)

    lengths = [len(texts[place]) for place in everything]
    title = f"The same bits, {path}: {len(lengths)} texts of {min(lengths)} to {max(lengths):,} tokens, against each alone"
    context.table(title, COLUMNS, rows(worker, rounds, "", True))
    worker.close()
    anew = context.worker(model_dir, *(flags or products(context, "invariant")))
    context.table(f"The same bits after a restart, {path}", COLUMNS,
                  rows(anew, ("all together", "alone again"), "after a restart: ", True))
    anew.close()
    context.figure(f"vectors with other bits, {path}", sum(others))
    if context.device == "cuda" and not flags and context.left() > 8:
        fastest = context.worker(model_dir, *products(context, "fastest"))
        if fastest.ready["path"] != f"{path}-fastest":
            context.fail(f"with --cuda-products fastest the worker calls its path {fastest.ready['path']}")
        names = ("all together", "all together, again", "in pairs", "with those that begin alike")
        context.table("For comparison, the fastest products, of which nothing is promised", COLUMNS,
                      rows(fastest, names, "", False))
        fastest.close()
