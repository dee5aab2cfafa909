"""C: whether the worker's vectors are right, and whether each text's has the same bits in every batch."""

import math
import random

from . import bits
from .model import Cost, random_texts, readable
from .pipeline import embed
from .transformer import Transformers
from .worker import log_summary, products

COSINE_ALWAYS = 0.9999  # the bound of the engine's own tests in bf16, for shallow models
FACTOR = 2.0
# e4m3 keeps four bits of a value where bf16 keeps eight: each product is off by some 4 %, and a vector by less.
COSINE_FP8 = 0.995
LENGTHS = [1, 2, 3, 8, 31, 63, 64, 65, 127, 128, 129, 300, 513, 1024, 2048]
LENGTHS_QUICK = [1, 2, 31, 64, 65, 129, 300, 513, 2048]
LENGTHS_CPU = [1, 2, 31, 64, 65, 129, 300]
# Texts of like length, up to so many tokens: rounding adds up differently in short and in long ones.
CLASSES = [16, 96, 256, 768, 2048, math.inf]
# What the log of a worker says about its choice of algorithms.
CHOICES = ("algorithm", "plan", "product")


def class_of(length):
    return next(most for most in CLASSES if length <= most)


def run(context):
    layers = context.few_layers
    model_dir = context.model_dir(layers)
    context.torch()
    cost = Cost(model_dir)
    log = "vecmill_worker::engine=info,vecmill_worker::embedder=error"
    worker = context.worker(model_dir, *products(context, "invariant"), log=log)
    context.note(f"the worker was loaded in {worker.ready['load_seconds']:.1f} s and computes in {worker.ready['dtype']}, path "
                 f"{worker.ready['path']}; {layers} layers")
    for said in log_summary(worker, CHOICES):
        context.note(f"worker: {said[:300]}")

    def attempt(part, *given):
        """One that fails is no reason to leave the next one out."""
        try:
            return part(context, model_dir, cost, *given)
        except Exception as error:
            context.fail(f"{part.__module__.split('.')[-1]}: {type(error).__name__}: {error}")
            return None

    known = attempt(references, worker.ready["end_token"])
    if known:
        attempt(exactness, worker, *known)

    def same_bits(context, model_dir, cost):
        ended = worker.process.poll() is not None
        bits.run(context, model_dir, cost,
                 context.worker(model_dir, *products(context, "invariant"), log=log) if ended else worker)

    attempt(same_bits)
    worker.close()
    attempt(in_fp8, known)


def in_fp8(context, model_dir, cost, known):
    """The same of the worker that computes most products in FP8: what that costs in exactness, and the same bits. `known` is
    what `references` gives."""
    import torch

    if context.device == "cpu":
        context.note("FP8: not on a CPU")
        return
    if context.left() < 12 or not known:
        context.note("FP8: not measured, the time was up" if known else "FP8: there is no reference to measure it by")
        return
    flags = ["--dtype", "fp8"]
    worker = context.worker(model_dir, *flags)
    texts, reference, _ = known
    found = vectors(worker, texts)
    apart = distances(found, reference)

    def rows():
        for kind in sorted({class_of(len(text)) for text in texts}):
            places = [place for place, text in enumerate(texts) if class_of(len(text)) == kind]
            some = [len(texts[place]) for place in places]
            yield [f"{min(some)} to {max(some):,}", len(places), f"{1 - apart[places].max():.7f}", f"{1 - apart[places].mean():.7f}"]

    context.table(f"{worker.ready['path']}: cosines with transformers in f32 with plain attention",
                  ["tokens", "texts", "lowest", "mean"], rows())
    context.figure("lowest cosine with f32, FP8", f"{1 - apart.max():.7f}", f"(required {COSINE_FP8})")
    if not torch.isfinite(found).all():
        context.fail("FP8: vectors have values that are not finite")
    if apart.max() > 1 - COSINE_FP8:
        context.fail(f"FP8: a text has a cosine of {1 - apart.max():.6f} with the reference, below {COSINE_FP8}")
    if ((found @ reference.T).argmax(dim=1) != torch.arange(len(texts))).any():
        context.fail("FP8: vectors are nearest to other texts' references")
    bits.run(context, model_dir, cost, worker, flags)


def distances(left, right):
    import torch

    return 1 - torch.nn.functional.cosine_similarity(left, right, dim=-1)


def vectors(worker, texts):
    import torch

    return torch.tensor(worker.vectors(texts), dtype=torch.float64)


def peers(context, model_dir, texts, end):
    """The reference's vectors, and those of transformers in bf16."""
    import torch

    context.say("transformers, bf16, SDPA")
    model = Transformers(model_dir, context.device, torch.bfloat16, "sdpa", end)
    theirs = model.vectors(texts)
    context.say("reference: transformers, f32, plain attention")
    reference = model.exact().vectors(texts)
    model.close()
    return reference, theirs


def references(context, model_dir, cost, end):
    """Texts, their vectors by the reference, and by transformers in bf16."""
    lengths = LENGTHS_CPU if context.device == "cpu" else LENGTHS_QUICK if context.quick else LENGTHS
    # Two of each length: the bound is taken from their worst. Of one token there is one: the end.
    texts = random_texts([length for length in lengths for _ in range(1 if length == 1 else 2)], cost, end, seed=1)
    return texts, *peers(context, model_dir, texts, end)


def exactness(context, model_dir, cost, worker, texts, reference, theirs):
    import torch

    end, theirs = worker.ready["end_token"], distances(theirs, reference)
    context.say("the worker")
    ours = vectors(worker, texts)
    if not torch.isfinite(ours).all():
        context.fail("vectors have values that are not finite")
    apart = distances(ours, reference)
    allowed = {}
    for length, distance in zip(map(len, texts), theirs.tolist()):
        kind = class_of(length)
        allowed[kind] = max(allowed.get(kind, 1 - COSINE_ALWAYS), FACTOR * distance)

    def rows():
        for kind, bound in allowed.items():
            places = [place for place, text in enumerate(texts) if class_of(len(text)) == kind]
            some = [len(texts[place]) for place in places]
            yield [f"{min(some)} to {max(some):,}", len(places), f"{1 - apart[places].max():.7f}", f"{1 - apart[places].mean():.7f}",
                   f"{1 - theirs[places].max():.7f}", f"{1 - theirs[places].mean():.7f}", f"{1 - bound:.7f}"]

    context.table("Cosines with transformers in f32 with plain attention",
                  ["tokens", "texts", "worker, lowest", "mean", "transformers bf16 SDPA, lowest", "mean", "required"], rows())
    for length, distance in zip(map(len, texts), apart.tolist()):
        bound = allowed[class_of(length)]
        if not distance <= bound:
            context.fail(f"a text of {length} tokens has a cosine of {1 - distance:.6f} with the reference, below {1 - bound:.6f}")
    context.figure("lowest cosine with f32", f"{1 - apart.max():.7f}", f"(transformers in bf16 {1 - theirs.max():.7f})")
    similar = ours @ reference.T
    nearest = similar.argmax(dim=1)
    if (nearest != torch.arange(len(texts))).any():
        context.fail(f"vectors are nearest to other texts' references: {nearest.tolist()}")
    others = similar.masked_fill(torch.eye(len(texts), dtype=torch.bool), -1).max().item()
    context.note(f"the nearest reference of another text has a cosine of {others:.4f}")

    def same(what, left, right, lengths):
        found = distances(left, right)
        context.note(f"{what}: cosine {1 - found.max():.7f} or better" + (", the same bits" if torch.equal(left, right) else ""))
        for length, distance in zip(lengths, found.tolist()):
            # A length that the table does not have is held against its nearest.
            bound = allowed.get(class_of(length)) or min(allowed.values())
            if not distance <= bound:
                context.fail(f"{what}: a text of {length} tokens has a cosine of {1 - distance:.6f}, below {1 - bound:.6f}")

    def alone(texts):
        return torch.cat([vectors(worker, [text]) for text in texts])

    lengths = list(map(len, texts))
    same("the same batch again", vectors(worker, texts), ours, lengths)
    same("alone and among others", alone(texts), ours, lengths)
    order = list(range(len(texts)))
    random.Random(2).shuffle(order)
    same("in another order", vectors(worker, [texts[place] for place in order]), ours[torch.tensor(order)],
         [lengths[place] for place in order])
    equal = random_texts([130] * 8, cost, end, seed=3)
    same("eight of equal length, and alone", vectors(worker, equal), alone(equal), list(map(len, equal)))
    # Two families of a common beginning, a pair of equal texts, and one that is another's beginning.
    draw = random.Random(4)
    beginnings = [random_texts([length], cost, end, seed=5 + length)[0][:-1] for length in (96, 9)]
    family = [beginning + random_texts([draw.randrange(1, 90)], cost, end, seed=7 + number)[0]
              for beginning in beginnings for number in range(6)]
    family += [family[0], beginnings[0] + [end]]
    same("texts that begin alike, and alone", vectors(worker, family), alone(family), list(map(len, family)))
    context.say("from lines of text")
    lines, ids = readable(model_dir, 40 if context.device == "cuda" else 8, 200)
    embedded = torch.tensor(embed(context, model_dir, lines), dtype=torch.float64)
    same("from lines of text by `embed`, and from their ids", embedded, vectors(worker, ids), list(map(len, ids)))
