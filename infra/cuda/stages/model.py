"""Random weights, texts of random ids, and what a batch of them costs."""

import json
import math
import os
import pathlib
import random
import shutil
import struct
import subprocess
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor

# layers, hidden, query heads, key heads, inner width of the MLP, vocabulary. Heads have 128 values. The vocabulary is
# cut: it is only looked up. The published 4B model has 151,665.
SHAPES = {
    "4b": (36, 2560, 32, 8, 9728, 32_768),
    "0.6b": (28, 1024, 16, 8, 3072, 32_768),
    "small": (3, 256, 4, 2, 512, 1024),
}
TOKENS_MAX = 40_960
PUBLISHED_FLOPS = 989e12  # dense bf16 of an H100 SXM, as NVIDIA states it


def layers_of(args):
    return args.layers or SHAPES[args.shape][0]


def sizes_of(shape, layers):
    _, hidden, heads, kv_heads, inner, vocab = SHAPES[shape]
    return dict(layers=layers, hidden=hidden, heads=heads, kv_heads=kv_heads, inner=inner, vocab=vocab)


def weight_plan(layers, hidden, heads, kv_heads, inner, vocab):
    """Name, shape, center and amplitude of each tensor, as `vecmill-worker random-model` makes them: activations keep
    their size, and different texts get clearly different vectors."""

    def product(rows, columns, gain=1.0):
        return (rows, columns), 0.0, gain * math.sqrt(3 / columns)

    def norm(width):
        return (width,), 1.0, 0.25

    query, key = heads * 128, kv_heads * 128
    yield "embed_tokens.weight", (vocab, hidden), 0.0, 1.0
    for number in range(layers):
        layer = {
            "input_layernorm": norm(hidden),
            "self_attn.q_proj": product(query, hidden),
            "self_attn.k_proj": product(key, hidden),
            "self_attn.v_proj": product(key, hidden),
            "self_attn.q_norm": norm(128),
            "self_attn.k_norm": norm(128),
            "self_attn.o_proj": product(hidden, query, 4.0),
            "post_attention_layernorm": norm(hidden),
            "mlp.gate_proj": product(inner, hidden),
            "mlp.up_proj": product(inner, hidden),
            "mlp.down_proj": product(hidden, inner),
        }
        for part, plan in layer.items():
            yield f"layers.{number}.{part}.weight", *plan
    yield "norm.weight", *norm(hidden)


def bytes_needed(sizes):
    return 2 * sum(math.prod(plan[1]) for plan in weight_plan(**sizes))


def work_folder(args):
    """A new folder with room for the weights of all stages."""
    few = min(4, layers_of(args))
    needed = bytes_needed(sizes_of(args.shape, layers_of(args))) + 2 * bytes_needed(sizes_of(args.shape, few))
    parents = [pathlib.Path("/dev/shm"), pathlib.Path(tempfile.gettempdir()), pathlib.Path.cwd()]
    for parent in parents:
        if parent.is_dir() and os.access(parent, os.W_OK) and shutil.disk_usage(parent).free > 1.1 * needed + 1e9:
            break
    else:
        parent = max((parent for parent in parents if parent.is_dir()), key=lambda one: shutil.disk_usage(one).free)
    return pathlib.Path(tempfile.mkdtemp(prefix="vecmill-check-", dir=parent))


def folder(context, layers=None, shape=None):
    """A folder with random weights of so many layers, written by whichever stage is the first to need it."""
    args = context.args
    layers = layers or layers_of(args)
    if args.model_dir and layers == layers_of(args) and not shape:
        return args.model_dir
    shape = shape or args.shape
    path = args.work / f"{shape}-{layers}-layers"
    if not (path / "config.json").is_file():
        sizes = sizes_of(shape, layers)
        context.say(f"writing {bytes_needed(sizes) / 1e9:.1f} GB of random weights to {path}")
        args.work.mkdir(parents=True, exist_ok=True)
        # Whole or not at all: a stage may be killed while it writes.
        made = pathlib.Path(tempfile.mkdtemp(prefix="unfinished-", dir=args.work))
        try:
            write(context, sizes, made)
            os.replace(made, path)
        finally:
            shutil.rmtree(made, ignore_errors=True)
        context.say("written")
    return path


def write(context, sizes, path):
    torch = context.torch()
    generator = torch.Generator(context.device).manual_seed(1)
    header, place, plans = {"__metadata__": {"format": "pt"}}, 0, list(weight_plan(**sizes))
    for name, shape, _, _ in plans:
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [place, place + size]}
        place += size
    packed = json.dumps(header).encode()
    packed += b" " * (-len(packed) % 8)
    # By several threads: what takes long is not to draw the values but to put them into the file. Not too far ahead.
    room = threading.Semaphore(8)

    def put(file, at, values):
        try:
            data = memoryview(values.view(torch.uint8).numpy()).cast("B")
            while data:
                count = os.pwrite(file, data, at)
                data, at = data[count:], at + count
        finally:
            room.release()

    file = os.open(path / "model.safetensors", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.pwrite(file, struct.pack("<Q", len(packed)) + packed, 0)
        os.truncate(file, 8 + len(packed) + place)
        with ThreadPoolExecutor(4) as pool:
            written = []
            for name, shape, center, amplitude in plans:
                values = torch.rand(shape, generator=generator, device=context.device)
                values = values.mul_(2 * amplitude).add_(center - amplitude).bfloat16().cpu().flatten()
                room.acquire()
                written.append(pool.submit(put, file, 8 + len(packed) + header[name]["data_offsets"][0], values))
            for one in written:
                one.result()
    finally:
        os.close(file)
    config = {
        "architectures": ["Qwen3Model"], "model_type": "qwen3", "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 256, "eos_token_id": 256, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": sizes["hidden"], "initializer_range": 0.02, "intermediate_size": sizes["inner"],
        "max_position_embeddings": TOKENS_MAX, "max_window_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"], "num_hidden_layers": sizes["layers"],
        "num_key_value_heads": sizes["kv_heads"], "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 1_000_000,
        "sliding_window": None, "tie_word_embeddings": True, "use_cache": True, "use_sliding_window": False,
        "vocab_size": sizes["vocab"], "torch_dtype": "bfloat16",
    }
    # A tokenizer whose tokens are bytes, with the end token behind them.
    made = path / "tokenizer-from"
    from . import worker

    subprocess.run([context.args.program, "random-model", made, "--shape", "tiny"], check=True, timeout=60,
                   env=worker.environment(), stdout=subprocess.DEVNULL)
    (made / "tokenizer.json").rename(path / "tokenizer.json")
    shutil.rmtree(made)
    (path / "config.json").write_text(json.dumps(config, indent=1))


class Cost:
    """What a batch needs, counted from config.json as `vecmill-worker bench` does: in the last layer keys and values of
    every token, and all else of each text's last token only."""

    def __init__(self, model_dir):
        config = json.loads((model_dir / "config.json").read_text())
        self.layers, self.hidden = config["num_hidden_layers"], config["hidden_size"]
        self.inner, self.vocab = config["intermediate_size"], config["vocab_size"]
        self.query = config["num_attention_heads"] * config["head_dim"]
        self.key = config["num_key_value_heads"] * config["head_dim"]
        self.tokens_max = config["max_position_embeddings"]

    def flop(self, lengths):
        keys_values, rest = 2 * self.hidden * self.key, self.hidden * (2 * self.query + 3 * self.inner)
        tokens, texts = sum(lengths), len(lengths)
        matrices = 2 * ((self.layers - 1) * (keys_values + rest) * tokens + keys_values * tokens + rest * texts)
        seen = sum(length * (length + 1) // 2 for length in lengths)
        return matrices + 4 * self.query * ((self.layers - 1) * seen + tokens)


def random_texts(lengths, cost, end, seed):
    """Ids that no two texts share from the first token on, so that each is computed whole."""
    draw = random.Random(seed)
    most = min(cost.vocab, end)
    return [[int(draw.random() * most) for _ in range(length - 1)] + [end] for length in lengths]


def mixed_lengths(total, least, most):
    """As `vecmill-worker bench --case mixed:..` draws them."""
    lengths, left, place = [], total, 1
    while left > 0:
        length = min(left, least + int(place * 0.618_033_988_749_895 % 1 * (most - least + 1)))
        lengths.append(length)
        left, place = left - length, place + 1
    return lengths


def readable(model_dir, count, words):
    """Lines of words and their ids, by the tokenizer that lies beside the weights."""
    from tokenizers import Tokenizer

    draw = random.Random(6)
    syllables = ["ka", "lo", "mi", "ter", "en", "su", "ra", "ve", "no", "dis"]
    lines = [" ".join("".join(draw.choices(syllables, k=draw.randrange(1, 4)))
                      for _ in range(draw.randrange(1, words))) for _ in range(count)]
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    return lines, [tokenizer.encode(line).ids for line in lines]
