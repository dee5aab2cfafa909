"""The student: Qwen3's layers, small. Trained to have the teacher's geometry at 32, 64, 128 and 256 dimensions.

Two processes of one thread each train together, each on its half of every batch; gradients are averaged. On a busy
machine that loses less than one process of two threads, which wait for each other hundreds of times a step.
"""

import json
import math
import time

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

import bpe
import teacher

DIMENSIONS = (32, 64, 128, 256)
HIDDEN, FFN, HEADS, KV_HEADS, HEAD = 256, 768, 4, 2, 64
THETA, EPS = 1_000_000.0, 1e-6

# Tokens of a text that the student sees in training; about the teacher's 256.
TOKENS_TRAINED = 320
# Texts of a batch that lie close together for the teacher: without them nearly all pairs would be far ones.
GROUP = 16
INSTRUCTED = 0.2
TEMPERATURE = 0.05
WARMUP, DECAY = 40, 0.35
RATE = 6e-3
SAVE_EVERY = 50
DEFAULT_TASK = "Given a web search query, retrieve relevant passages that answer the query"


class Norm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), EPS)


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs, bias=False)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.o_proj = linear(HIDDEN, HEADS * HEAD), linear(HEADS * HEAD, HIDDEN)
        self.k_proj, self.v_proj = linear(HIDDEN, KV_HEADS * HEAD), linear(HIDDEN, KV_HEADS * HEAD)
        self.q_norm, self.k_norm = Norm(HEAD), Norm(HEAD)

    def forward(self, x, cos, sin):
        rows, length, _ = x.shape

        def turned(y):
            first, second = y.chunk(2, -1)
            return y * cos + torch.cat((-second, first), -1) * sin

        q = turned(self.q_norm(self.q_proj(x).view(rows, length, HEADS, HEAD)).transpose(1, 2))
        k = turned(self.k_norm(self.k_proj(x).view(rows, length, KV_HEADS, HEAD)).transpose(1, 2))
        v = self.v_proj(x).view(rows, length, KV_HEADS, HEAD).transpose(1, 2)
        k, v = (y.repeat_interleave(HEADS // KV_HEADS, 1) for y in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).reshape(rows, length, HEADS * HEAD))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = linear(HIDDEN, FFN), linear(HIDDEN, FFN), linear(FFN, HIDDEN)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn, self.mlp = Attention(), Mlp()
        self.input_layernorm, self.post_attention_layernorm = Norm(HIDDEN), Norm(HIDDEN)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Student(nn.Module):
    """Parameters are named as transformers' Qwen3Model names them."""

    def __init__(self, vocabulary, layers):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.norm = Norm(HIDDEN)

    def forward(self, tokens, lengths):
        """Texts are padded on the right, which a causal model does not see; the state of each last token is returned."""
        x = self.embed_tokens(tokens)
        if torch.is_autocast_enabled("cpu"):
            x = x.to(torch.bfloat16)
        angles = torch.outer(torch.arange(tokens.shape[1]), THETA ** (-torch.arange(0, HEAD, 2) / HEAD))
        angles = torch.cat((angles, angles), -1)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x[torch.arange(len(tokens)), lengths - 1].float())

    def embed(self, ids, most_tokens=4096):
        """States of any number of texts, those of like length together."""
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        parts, start = [], 0
        while start < len(order):
            end = start + 1
            while end < len(order) and (end - start + 1) * len(ids[order[end]]) <= most_tokens:
                end += 1
            rows = [ids[i] for i in order[start:end]]
            lengths = torch.tensor([len(row) for row in rows])
            tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
            parts.append(self(tokens, lengths))
            start = end
        back = torch.empty(len(order), dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(len(order))
        return torch.cat(parts)[back]


def projection(labels):
    """[384, 256]: the teacher's main directions, most important first, so that a cut of the target is the best cut."""
    labels = torch.from_numpy(labels).float()
    values, vectors = torch.linalg.eigh(labels.T @ labels / len(labels))
    order = values.argsort(descending=True)[:HIDDEN]
    print(f"the first {HIDDEN} of {len(values)} directions hold {values[order].sum() / values.sum():.4f} of the variance")
    return vectors[:, order]


@torch.no_grad()
def initialise(model, tokenizer, directions):
    """Begins as a bag of words: each token's vector is the teacher's own for its text, and the first two layers'
    attention carries the mean of them to the last token, one half of the dimensions each. Training goes on from there.
    """
    for name, weight in model.named_parameters():
        if weight.dim() == 2 and "embed" not in name:
            small = 0.1 if "o_proj" in name or "down_proj" in name else 0.7
            weight.normal_(0, small / math.sqrt(weight.shape[1]))
    pieces = [tokenizer.decode([i], skip_special_tokens=False).strip() or "." for i in range(model.embed_tokens.num_embeddings)]
    vectors = teacher.Teacher(low_precision=True).embed(pieces) @ directions
    vectors = F.normalize(vectors - vectors.mean(0), dim=-1) * math.sqrt(HIDDEN) * 0.5
    model.embed_tokens.weight.copy_(vectors)
    for special in bpe.SPECIAL:
        model.embed_tokens.weight[tokenizer.token_to_id(special)].normal_(0, 0.05)
    for half, layer in enumerate(model.layers[:2]):
        attention = layer.self_attn
        attention.q_norm.weight.fill_(0.5)
        attention.v_proj.weight.mul_(0.1)
        for kv in range(KV_HEADS):
            for i in range(HEAD):
                dimension = (half * KV_HEADS + kv) * HEAD + i
                attention.v_proj.weight[kv * HEAD + i, dimension] += 1
                for head in range(HEADS // KV_HEADS):
                    attention.o_proj.weight[dimension, (kv * HEADS // KV_HEADS + head) * HEAD + i] += 0.7


def neighbourhoods(labels, seed, size):
    """Sorts the texts into many small clusters, by the teacher."""
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(labels).float()
    centers = labels[rng.choice(len(labels), max(1, len(labels) // size), replace=False)]
    for _ in range(3):
        nearest = torch.cat([(part @ centers.T).argmax(1) for part in labels.split(8192)])
        centers = F.normalize(torch.zeros_like(centers).index_add_(0, nearest, labels), dim=-1)
    return nearest.numpy()


def epoch_order(nearest, seed):
    """All texts in random groups of neighbours."""
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(nearest))
    shuffled = shuffled[np.argsort(nearest[shuffled], kind="stable")]
    groups = [shuffled[i:i + GROUP] for i in range(0, len(shuffled) - GROUP + 1, GROUP)]
    return np.concatenate([groups[i] for i in rng.permutation(len(groups))])


def loss_of(states, target, projected):
    """Distance to the teacher's projected vector; and at each width, to its similarities with the rest of the batch."""
    total, report = 0.0, {}
    others = ~torch.eye(len(target), dtype=torch.bool)
    wanted = (target @ target.T)[others].view(len(target), -1)
    wanted_share = F.softmax(wanted / TEMPERATURE, -1)
    for width in DIMENSIONS:
        cut = F.normalize(states[:, :width], dim=-1)
        regression = 1 - (cut * F.normalize(projected[:, :width], dim=-1)).sum(-1).mean()
        similar = (cut @ cut.T)[others].view(len(target), -1)
        ranking = F.kl_div(F.log_softmax(similar / TEMPERATURE, -1), wanted_share, reduction="batchmean")
        absolute = F.mse_loss(similar, wanted)
        weight = 1.0 if width == HIDDEN else 0.4
        total = total + weight * (0.4 * ranking + 5 * absolute)
        if width == HIDDEN:
            total = total + 3 * regression
        report[width] = (regression.item(), ranking.item(), absolute.item())
    return total, report


def rate(step, steps):
    """Up, level, and in the last part down to nothing. The level part does not depend on the number of steps."""
    return min(1.0, (step + 1) / WARMUP, (steps - step) / max(1, DECAY * steps))


def agreed_steps(args, workers):
    """A file `steps` in the work folder changes the number of steps while training runs, for machines that are shared.
    All processes take the first one's reading."""
    path = args.work / "steps"
    steps = torch.tensor([int(path.read_text()) if path.exists() else args.steps])
    if workers > 1:
        dist.broadcast(steps, 0)
    return steps.item()


def worker(rank, workers, args):
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    if workers > 1:
        dist.init_process_group("gloo", init_method=f"file://{args.work / 'meeting'}", rank=rank, world_size=workers)
    labels = teacher.labels(args.work)[:args.texts]
    texts = teacher.read(args.work, "texts.jsonl")[:len(labels)]
    tokenizer = bpe.load(args.out)
    directions = projection(labels)
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    nearest = neighbourhoods(labels, args.seed, 48)
    model = Student(tokenizer.get_vocab_size(), args.layers)
    matrices = [w for n, w in model.named_parameters() if w.dim() == 2 and "embed" not in n]
    rest = [w for n, w in model.named_parameters() if w.dim() != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=RATE, momentum=0.95, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    path, step, seconds, processor = args.work / "checkpoint.pt", 0, 0.0, 0.0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(optimizers, saved["optimizers"]):
            optimizer.load_state_dict(state)
        step, seconds, processor = saved["step"], saved["seconds"], saved.get("processor", 0.0)
    else:
        initialise(model, tokenizer, directions)
    if rank == 0:
        print(f"{sum(w.numel() for w in model.parameters())} parameters, {len(texts)} texts, "
              f"{sum(map(len, ids)) / len(ids):.1f} tokens each; step {step} of {args.steps}", flush=True)
    per_worker = args.batch // workers
    per_epoch = len(texts) // GROUP * GROUP // args.batch
    epoch, order = -1, None
    end = tokenizer.token_to_id(bpe.END)
    instructions = [tokenizer.encode(f"Instruct: {task}\nQuery:", add_special_tokens=False).ids for task in tasks()]
    began, tokens_seen = time.monotonic(), 0
    while step < args.steps:
        if step % 10 == 0:
            args.steps = agreed_steps(args, workers)
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            order = epoch_order(nearest, args.seed + epoch)
        place = step % per_epoch * args.batch + rank * per_worker
        chosen = order[place:place + per_worker]
        rng = np.random.default_rng((args.seed, step, rank))
        rows = []
        for i in chosen:
            row = ids[i]
            if len(row) < 40 and rng.random() < INSTRUCTED:
                # The default instruction as often as all others together. The label is the plain text's.
                row = instructions[0 if rng.random() < 0.5 else rng.integers(len(instructions))] + row
            rows.append(row if len(row) <= TOKENS_TRAINED else row[:TOKENS_TRAINED - 1] + [end])
        target = F.normalize(torch.from_numpy(labels[chosen]).float(), dim=-1)
        with torch.autocast("cpu", torch.bfloat16):
            states = model.embed(rows, 2048)
        loss, report = loss_of(states.float(), target, target @ directions)
        loss.backward()
        if workers > 1:
            parameters = list(model.parameters())
            flat = torch.cat([w.grad.flatten() for w in parameters])
            dist.all_reduce(flat)
            for w, part in zip(parameters, flat.split([w.numel() for w in parameters])):
                w.grad.copy_(part.view_as(w) / workers)
        torch.nn.utils.clip_grad_norm_(rest, 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = RATE * rate(step, args.steps)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        tokens_seen += sum(map(len, rows))
        if rank == 0 and (step % 10 == 0 or step == 1):
            took = time.monotonic() - began
            numbers = "  ".join(f"{w}: " + " ".join(f"{x:.3f}" for x in report[w]) for w in (32, 256))
            print(f"step {step}  loss {loss.item():.3f}  {numbers}  {workers * tokens_seen / took:.0f} tokens/s "
                  f"{seconds + took:.0f} s", flush=True)
        if rank == 0 and (step % SAVE_EVERY == 0 or step == args.steps):
            state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": step,
                     "steps": args.steps, "batch": args.batch, "texts": len(texts),
                     "seconds": seconds + time.monotonic() - began, "processor": processor + time.process_time()}
            torch.save(state, path.with_suffix(".new"))
            path.with_suffix(".new").rename(path)
    if rank == 0:
        export_checkpoint(args)
    if workers > 1:
        dist.barrier()
        dist.destroy_process_group()


def tasks():
    from texts import INSTRUCTIONS
    return INSTRUCTIONS


def train(args):
    (args.work / "meeting").unlink(missing_ok=True)
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=worker, args=(rank, args.threads, args)) for rank in range(1, args.threads)]
    for process in others:
        process.start()
    worker(0, args.threads, args)
    for process in others:
        process.join()


def export_checkpoint(args):
    """Writes the model folder from the last checkpoint, of a training that may still run."""
    saved = torch.load(args.work / "checkpoint.pt", weights_only=True)
    model = Student(saved["model"]["embed_tokens.weight"].shape[0], args.layers)
    model.load_state_dict(saved["model"])
    facts = {name: round(saved[name]) for name in ("step", "steps", "batch", "texts", "seconds", "processor") if name in saved}
    (args.work / "training.json").write_text(json.dumps({"seed": args.seed, **facts}) + "\n")
    print(f"checkpoint: {facts}")
    export(args, model)


def export(args, model):
    """The folder in the layout of Qwen/Qwen3-Embedding-0.6B: transformers and sentence-transformers load it, too."""
    out = args.out
    tensors = {name: weight.detach().to(torch.float16).contiguous() for name, weight in model.state_dict().items()}
    assert all(torch.isfinite(weight).all() for weight in tensors.values())
    save_file(tensors, str(out / "model.safetensors"), metadata={"format": "pt"})
    end = bpe.load(out).token_to_id(bpe.END)
    write = lambda name, value: (out / name).write_text(json.dumps(value, indent=2) + "\n")
    write("config.json", {
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": end, "eos_token_id": end, "head_dim": HEAD, "hidden_act": "silu", "hidden_size": HIDDEN,
        "initializer_range": 0.02, "intermediate_size": FFN, "max_position_embeddings": bpe.TOKENS_MAX,
        "max_window_layers": len(model.layers), "model_type": "qwen3", "num_attention_heads": HEADS,
        "num_hidden_layers": len(model.layers), "num_key_value_heads": KV_HEADS, "rms_norm_eps": EPS,
        "rope_scaling": None, "rope_theta": int(THETA), "sliding_window": None, "tie_word_embeddings": True,
        "torch_dtype": "float16", "use_cache": False, "use_sliding_window": False,
        "vocab_size": model.embed_tokens.num_embeddings,
    })
    write("modules.json", [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ])
    (out / "1_Pooling").mkdir(exist_ok=True)
    write("1_Pooling/config.json", {
        "word_embedding_dimension": HIDDEN, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False,
        "pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False,
        "pooling_mode_weightedmean_tokens": False, "pooling_mode_lasttoken": True, "include_prompt": True,
    })
    write("config_sentence_transformers.json", {
        "prompts": {"query": f"Instruct: {DEFAULT_TASK}\nQuery:", "document": ""},
        "default_prompt_name": None, "similarity_fn_name": "cosine",
    })
    print(f"{out}: {sum(p.stat().st_size for p in out.rglob('*') if p.is_file())} bytes", flush=True)
