"""Vecmill's engine against its peers: the same weights, the same token ids, the same cores, in turns within one run.

Every case is a batch. Each engine warms up and settles on its fastest way for the batch; then rounds follow, each a turn
of every engine, in an order that rotates. A turn is from token ids in memory to unit vectors in memory: nobody
tokenizes. Figures are medians over the rounds. GFLOP/s counts what the batch needs (the layers' matrix products and
causal attention; in the last layer of unpooled tokens keys and values only), not what an engine does: padding earns
nothing. The share is of the best that PyTorch reaches here in a plain product of a layer's shape, in that precision.

Only Vecmill leaves out what the last layer need not compute. That is worth more the fewer layers there are, so each
ratio is given for the layers that were run and, scaled by the count of operations, for the 28 of the 0.6B model;
--layers 28 measures that (2 GB a precision and engine, and 7 times as long).
"""

import argparse
import json
import os
import pathlib
import re
import resource
import statistics
import subprocess
import sys
import time

import numpy as np

from sizes import Sizes

ENGINES = ["ours-f32", "ours-bf16", "torch-f32", "torch-bf16", "llama-f32", "llama-bf16"]
CASES = ["16x128", "4x512", "1x2048", "mixed:2048:32..512", "1x32768"]

# Cores that others may keep busy. Above it even ratios are off: a thread that waits for others loses more than one that
# does not.
LOAD_HIGH = 0.25

# Tokens above which a text takes minutes.
LONG, WARM_UP_TOKENS = 8192, 2048

# Layers of the 0.6B model.
DEPTH = 28

GOLDEN = 0.618033988749895


def lengths_of(case):
    """As `vecmill-worker bench` reads cases."""
    if equal := re.fullmatch(r"(\d+)x(\d+)", case):
        return [int(equal[2])] * int(equal[1])
    mixed = re.fullmatch(r"mixed:(\d+):(\d+)\.\.(\d+)", case)
    if not mixed:
        raise argparse.ArgumentTypeError(f"{case}: write TEXTSxTOKENS or mixed:TOTAL:LEAST..MOST")
    left, least, most = map(int, mixed.groups())
    lengths, turn = [], 1
    while left > 0:
        length = least + int(turn * GOLDEN % 1 * (most - least + 1))
        lengths.append(min(length, left))
        left, turn = left - lengths[-1], turn + 1
    return lengths


def arguments():
    parser = argparse.ArgumentParser(
        prog="infra/bench/engine", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-dir", type=pathlib.Path, help="a checkpoint; by default a seeded random one of 0.6B's shape")
    parser.add_argument("--layers", type=int, help="layers of the random model (4)")
    parser.add_argument("--long-layers", type=int, help="its layers for texts above 8,192 tokens (2)")
    parser.add_argument("--case", action="append", metavar="CASE", help=f"a batch; several times; by default {' '.join(CASES)}")
    parser.add_argument("--engines", default=",".join(ENGINES), help=f"which, by commas: {','.join(ENGINES)}")
    parser.add_argument("--rounds", type=int, help="rounds of each case (7); of texts above 8,192 tokens a third")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of each engine (all cores)")
    parser.add_argument("--quick", action="store_true", help="two layers, two rounds, no long text: does it work at all")
    parser.add_argument("--json", type=pathlib.Path, help="where the figures go, too")
    parser.add_argument("--program", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=pathlib.Path, required=True, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.layers = args.layers or (2 if args.quick else 4)
    args.long_layers = args.long_layers or 2
    args.rounds = args.rounds or (2 if args.quick else 7)
    args.case = args.case or (CASES[:-1] if args.quick else CASES)
    args.engines = args.engines.split(",")
    if unknown := [engine for engine in args.engines if engine not in ENGINES]:
        parser.error(f"--engines: there is no {unknown[0]}")
    args.lengths = {case: lengths_of(case) for case in args.case}
    return args


def random_model(args, layers):
    path = args.scratch / f"random-{layers}-layers"
    subprocess.run(
        [args.program, "random-model", path, "--shape", "realistic", "--layers", str(layers)], check=True
    )
    return path


def start(engine, model_dir, args):
    family, precision = engine.split("-")
    if family == "ours":
        from ours import Ours

        return Ours(args.program, model_dir, precision, args.threads)
    if family == "torch":
        from pytorch import SentenceTransformers

        return SentenceTransformers(model_dir, precision, args.threads)
    from llama import LlamaCpp

    return LlamaCpp(model_dir, args.scratch, precision, args.threads)


def start_all(model_dir, args):
    engines = []
    for engine in args.engines:
        try:
            engines.append(start(engine, model_dir, args))
        except (RuntimeError, ImportError, OSError) as error:
            print(f"without {engine}: {error}", flush=True)
    return engines


def busy_cores(engines=(), seconds=1.0):
    """Cores that others keep busy while these engines have nothing to do."""
    own = [os.getpid(), *(engine.process.pid for engine in engines if engine.ours)]

    def ticks():
        fields = [int(field) for field in pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        stats = (pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid in own)
        return sum(fields) - fields[3] - fields[4] - sum(int(stat[11]) + int(stat[12]) for stat in stats)

    before = ticks()
    time.sleep(seconds)
    return max(0, ticks() - before) / os.sysconf("SC_CLK_TCK") / seconds


def machine():
    cpu = re.search(r"^model name\s*: (.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = int(re.search(r"MemTotal:\s*(\d+)", pathlib.Path("/proc/meminfo").read_text())[1]) / 2**20
    return {
        "cpu": cpu[1] if cpu else os.uname().machine,
        "cores": os.cpu_count(),
        "memory_gib": round(memory),
        "load": os.getloadavg()[0],
        "others_busy_cores": round(busy_cores(), 2),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def too_busy(found):
    return found["others_busy_cores"] > LOAD_HIGH


def random_texts(lengths, sizes, end):
    generator = np.random.default_rng(sum(lengths) + len(lengths))
    return [[*generator.integers(0, end, length - 1).tolist(), end] for length in lengths]


def measure(case, engines, products, sizes, end, args):
    lengths = args.lengths[case]
    texts = random_texts(lengths, sizes, end)
    long = max(lengths) > LONG
    rounds = max(1, args.rounds // 3) if long else args.rounds
    running, skipped = [], []

    def attempt(engine, do):
        """Engines that can't go on, for want of memory most of all, leave; the others don't suffer."""
        try:
            return do()
        except (RuntimeError, MemoryError, OSError) as error:
            skipped.append((engine.name, str(error).strip().splitlines()[-1]))
            running.remove(engine)

    for engine in engines:
        running.append(engine)
        # Nobody has a choice of ways for one long text, and a shorter one warms up as well.
        attempt(engine, lambda: engine.tune([text[-WARM_UP_TOKENS:] for text in texts] if long else texts))
    took = {engine.name: [] for engine in engines}
    vectors, busy, rates = {}, [], []
    for turn in range(rounds):
        busy.append(busy_cores(engines, 0.5))
        rates.append(products.measure())
        first = turn % max(len(running), 1)
        for engine in running[first:] + running[:first]:
            # The threads of the one before may spin a little for more work.
            time.sleep(0.2)
            if done := attempt(engine, lambda: engine.run(texts)):
                took[engine.name].append(done[0])
                vectors[engine.name] = done[1]
    return {
        "case": case, "texts": len(texts), "tokens": sum(lengths), "layers": sizes.layers, "rounds": rounds,
        "others_busy_cores": round(statistics.median(busy), 2),
        "products": {precision: max(rate[precision] for rate in rates) for precision in rates[0]},
        "skipped": skipped, "depth_bonus": sizes.depth_bonus(lengths, DEPTH),
        "engines": [figures(engine, took[engine.name], vectors, lengths, sizes) for engine in running],
    }  # fmt: skip


def figures(engine, took, vectors, lengths, sizes):
    median = statistics.median(took)
    reference = vectors.get("sentence-transformers f32")
    cosine = least_cosine(vectors[engine.name], reference) if reference is not None else None
    return {
        "engine": engine.name, "precision": engine.precision, "ours": engine.ours, "strategy": engine.strategy,
        "seconds": took, "tokens_per_second": sum(lengths) / median, "tokens_per_second_best": sum(lengths) / min(took),
        "flops_matrices": sizes.matrices(lengths) / median, "flops": sizes.needed(lengths) / median,
        "cosine_least": cosine,
    }  # fmt: skip


def least_cosine(vectors, reference):
    # Some peers normalize in bf16, and so not quite.
    vectors, reference = vectors.astype(np.float64), reference.astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(reference, axis=1)
    return float(((vectors * reference).sum(axis=1) / lengths).min())


def say(case):
    rates = ", ".join(f"{precision} {rate / 1e9:.0f}" for precision, rate in case["products"].items())
    print(
        f"\n{case['case']}: {case['texts']} texts, {case['tokens']} tokens, {case['layers']} layers, {case['rounds']} "
        f"rounds, others kept {case['others_busy_cores']:.2f} cores busy{' (TOO BUSY)' * too_busy(case)}; "
        f"plain products in GFLOP/s: {rates}"
    )
    print(f"  {'engine':26} {'tok/s':>8} {'best':>8} {'GFLOP/s':>8} {'share':>6} {'cosine':>9}  way")
    for row in case["engines"]:
        share = row["flops"] / case["products"][row["precision"]]
        cosine = f"{row['cosine_least']:.6f}" if row["cosine_least"] is not None else ""
        print(
            f"  {row['engine']:26} {row['tokens_per_second']:8.0f} {row['tokens_per_second_best']:8.0f} "
            f"{row['flops'] / 1e9:8.1f} {share:6.0%} {cosine:>9}  {row['strategy']}"
        )
    for name, reason in case["skipped"]:
        print(f"  {name:26} skipped: {reason}")
    for precision in ("f32", "bf16"):
        of_it = [row for row in case["engines"] if row["precision"] == precision]
        ours = [row for row in of_it if row["ours"]]
        peers = [row for row in of_it if not row["ours"]]
        if ours and peers:
            best = max(peers, key=lambda row: row["tokens_per_second"])
            ratio = ours[0]["tokens_per_second"] / best["tokens_per_second"]
            at_28 = ratio / case["depth_bonus"]
            case[f"ratio_{precision}"], case[f"ratio_{precision}_at_{DEPTH}_layers"] = ratio, at_28
            each = ", ".join(
                f"{ours[0]['tokens_per_second'] / row['tokens_per_second'] / case['depth_bonus']:.2f} x {row['engine']}"
                for row in peers
            )
            print(f"  {precision}: {ratio:.2f} x the best peer ({best['engine']}); at {DEPTH} layers {at_28:.2f} x ({each})")
    sys.stdout.flush()


def leave_memory():
    """Makes an allocation that the machine has no memory for fail, instead of the machine."""
    available = int(re.search(r"MemAvailable:\s*(\d+)", pathlib.Path("/proc/meminfo").read_text())[1]) * 1024
    mapped = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (mapped + int(available * 0.9), resource.RLIM_INFINITY))


def main():
    args = arguments()
    found = machine()
    print(
        f"{found['cpu']}, {found['cores']} cores, {found['memory_gib']} GiB, {args.threads} threads an engine, "
        f"load {found['load']:.2f}, {found['date']}"
    )
    if too_busy(found):
        print(f"WARNING: others keep {found['others_busy_cores']} cores busy: these figures won't come out again")
    from pytorch import Products

    leave_memory()
    products, results = Products(), []
    groups = {}
    for case, lengths in args.lengths.items():
        model = args.model_dir or random_model(args, args.long_layers if max(lengths) > LONG else args.layers)
        groups.setdefault(model, []).append(case)
    for model, cases in groups.items():
        sizes = Sizes(model)
        end = json.loads((model / "config.json").read_text())["eos_token_id"]
        engines = start_all(model, args)
        try:
            for case in cases:
                results.append(measure(case, engines, products, sizes, end, args))
                say(results[-1])
        finally:
            for engine in engines:
                engine.close()
        del engines
    path = args.json or args.scratch / f"engine-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps({"machine": found, "cases": results}, indent=1) + "\n")
    print(f"figures: {path}")


if __name__ == "__main__":
    main()
