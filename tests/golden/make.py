#!/usr/bin/env python3
"""Makes the golden vectors: transformers' Qwen3Model, f32 on the CPU, on the weights that
worker/src/engine/synthetic writes. The weights are computed here a second time, from the description there, so that
neither a fault in writing them nor one in reading them can hide.

    python3 -m venv venv && venv/bin/pip install numpy torch transformers
    venv/bin/python tests/golden/make.py            # rewrites tests/golden/*.json

Needed again only when synthetic models change (their FORMAT) or a case is added. Last made with the versions that each
file names.
"""

import json
import math
import pathlib

import numpy as np
import torch
import transformers

SEED = 2026
LENGTHS = [1, 2, 3, 5, 8, 16, 31, 63, 64, 65, 127, 128, 129, 300, 513, 1024, 2048]
END = 256

# Each shape has what the others lack.
SHAPES = {
    # As 0.6B: tied, one file, no prefix; heads x head_dim is not hidden (1.5 times).
    "wide_heads": dict(layers=3, hidden=64, intermediate=160, heads=6, kv_heads=2, head_dim=16, vocab=300,
                       tokens_max=4096, tied=True, shards=1, model_prefix=False, stored="f32"),
    # As 8B: an output head, prefix; every query head has its own keys, and heads x head_dim is below hidden.
    "untied": dict(layers=2, hidden=96, intermediate=128, heads=2, kv_heads=2, head_dim=32, vocab=257,
                   tokens_max=2048, tied=False, shards=1, model_prefix=True, stored="f16"),
    # As 4B: shards with an index, bf16, prefix; one key head for all query heads.
    "sharded": dict(layers=4, hidden=64, intermediate=192, heads=4, kv_heads=1, head_dim=64, vocab=257,
                    tokens_max=8192, tied=True, shards=3, model_prefix=True, stored="bf16"),
}

U64 = np.uint64


def mix(bits):
    bits = (bits ^ (bits >> U64(30))) * U64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> U64(27))) * U64(0x94D049BB133111EB)
    return bits ^ (bits >> U64(31))


def fnv1a(name):
    value = 0xCBF29CE484222325
    for byte in name.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def bits(name, count):
    with np.errstate(over="ignore"):
        key = mix(np.array([SEED ^ fnv1a(name)], dtype=U64))
        return mix(key + np.arange(1, count + 1, dtype=U64) * U64(0x9E3779B97F4A7C15))


def uniform(name, count):
    return (bits(name, count) >> U64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)


def token_ids(length):
    ids = (bits(f"tokens.{length}", length) >> U64(40)) % U64(END)
    return [int(i) for i in ids[:-1]] + [END]


def plan(name, dims):
    """Center and amplitude of a tensor, as Shape::tensors has them."""
    if "norm" in name:
        return np.float32(1), np.float32(0.25)
    if name == "embed_tokens.weight":
        return np.float32(0), np.float32(1)
    gain = np.float32(4 if "o_proj" in name else 1)
    return np.float32(0), gain * np.float32(math.sqrt(3.0 / dims[1]))


def tensor(name, dims, stored):
    center, amplitude = plan(name, dims)
    values = center + amplitude * uniform(name, math.prod(dims))
    assert values.dtype == np.float32
    on_disk = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[stored]
    return torch.from_numpy(values.reshape(dims)).to(on_disk).to(torch.float32)


def model(shape):
    config = transformers.Qwen3Config(
        vocab_size=shape["vocab"], hidden_size=shape["hidden"], intermediate_size=shape["intermediate"],
        num_hidden_layers=shape["layers"], num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"], head_dim=shape["head_dim"], hidden_act="silu",
        max_position_embeddings=shape["tokens_max"], rms_norm_eps=1e-6, rope_theta=1_000_000.0,
        attention_bias=False, use_sliding_window=False, tie_word_embeddings=shape["tied"],
    )
    config._attn_implementation = "eager"
    made = transformers.Qwen3Model(config).to(torch.float32).eval()
    wanted = {name: tuple(value.shape) for name, value in made.state_dict().items()}
    made.load_state_dict({name: tensor(name, dims, shape["stored"]) for name, dims in wanted.items()}, strict=True)
    theta = getattr(config, "rope_parameters", None) or {"rope_theta": config.rope_theta}
    assert theta["rope_theta"] == 1_000_000.0, "an older or newer transformers names it otherwise"
    return made


@torch.inference_mode()
def vector(made, length):
    hidden = made(input_ids=torch.tensor([token_ids(length)]), use_cache=False).last_hidden_state[0, -1]
    unit = torch.nn.functional.normalize(hidden.double(), dim=0)
    return [float(f"{value:.7e}") for value in unit]


def main():
    torch.manual_seed(0)
    folder = pathlib.Path(__file__).parent
    for name, shape in SHAPES.items():
        made = model(shape)
        cases = [{"length": n, "vector": vector(made, n)} for n in LENGTHS if n <= shape["tokens_max"]]
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        golden = {"made_with": versions, "seed": SEED, "shape": shape, "cases": cases}
        lines = ",\n  ".join(json.dumps(case) for case in cases)
        golden["cases"] = "CASES"
        text = json.dumps(golden, indent=1).replace('"CASES"', f"[\n  {lines}\n ]")
        (folder / f"{name}.json").write_text(text + "\n")
        print(f"{name}: {len(cases)} vectors")


if __name__ == "__main__":
    main()
