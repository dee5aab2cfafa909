"""What the files on disk are worth, through transformers' own Qwen3Model, in f32."""

import json

import numpy as np
import torch
import torch.nn.functional as F
import transformers

import bpe
import student
import teacher


def load(folder):
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    assert type(model).__name__ == "Qwen3Model"
    return model, bpe.load(folder)


@torch.inference_mode()
def embed(model, tokenizer, texts, instruction=None):
    """One by one in batches of equal length: nothing is padded, nothing cut."""
    if instruction:
        texts = [f"Instruct: {instruction}\nQuery:{text}" for text in texts]
    ids = [encoding.ids[-bpe.TOKENS_MAX:] for encoding in tokenizer.encode_batch(texts)]
    out = torch.empty(len(ids), student.HIDDEN)
    by_length = {}
    for i, row in enumerate(ids):
        by_length.setdefault(len(row), []).append(i)
    for rows in by_length.values():
        states = model(input_ids=torch.tensor([ids[i] for i in rows]), use_cache=False).last_hidden_state
        out[rows] = states[:, -1]
    return out


def pearson(a, b):
    return float(np.corrcoef(a, b)[0, 1])


def spearman(a, b):
    return pearson(a.argsort().argsort(), b.argsort().argsort())


def hits(queries, passages, right):
    """Share of queries with a right passage at the first place, and among the first five."""
    order = (queries @ passages.T).argsort(dim=1, descending=True)[:, :5].tolist()
    first = sum(row[0] in good for row, good in zip(order, right))
    five = sum(bool(set(row) & good) for row, good in zip(order, right))
    return {"hit_at_1": round(first / len(right), 4), "hit_at_5": round(five / len(right), 4)}


def cut(vectors, width):
    return F.normalize(vectors[:, :width], dim=-1)


def evaluate(args):
    model, tokenizer = load(args.out)
    entries = [json.loads(line) for line in (args.work / "held-out.jsonl").read_text().splitlines()]
    wanted = torch.from_numpy(teacher.held_out_labels(args.work))
    texts = [entry["text"] for entry in entries]
    made = embed(model, tokenizer, texts)

    # Pairs: random ones, nearly all of them far apart, and each text with its nearest eight by the teacher.
    rng = np.random.default_rng(args.seed)
    count = len(texts)
    a, b = rng.integers(0, count, (2, 20000))
    a, b = a[a != b], b[a != b]
    similar = wanted @ wanted.T
    similar.fill_diagonal_(-2)
    near = similar.topk(8, dim=1).indices.numpy()
    near_a, near_b = np.repeat(np.arange(count), 8), near.reshape(-1)
    passage = np.array([entry["role"] == "passage" for entry in entries])

    corpus = [json.loads(line) for line in (args.sample / "corpus.jsonl").read_text().splitlines()]
    asked = [json.loads(line) for line in (args.sample / "queries.jsonl").read_text().splitlines()]
    number = {entry["id"]: i for i, entry in enumerate(corpus)}
    right = [{number[name] for name in entry["relevant"]} for entry in asked]
    # Teacher and student are English.
    english = [i for i, entry in enumerate(asked) if plain_english(entry["query"])]
    passages = embed(model, tokenizer, [entry["text"] for entry in corpus])
    plain = embed(model, tokenizer, [entry["query"] for entry in asked])
    instructed = embed(model, tokenizer, [entry["query"] for entry in asked], student.DEFAULT_TASK)
    judge = teacher.Teacher()
    teacher_passages = judge.embed([entry["text"] for entry in corpus])
    teacher_queries = judge.embed([entry["query"] for entry in asked])

    def search(queries, documents):
        some = {**hits(queries, documents, right)}
        some["english"] = hits(queries[english], documents, [right[i] for i in english])
        return some

    result = {
        "training": json.loads((args.work / "training.json").read_text()),
        "held_out": {"texts": count, "random_pairs": len(a), "near_pairs": len(near_a)},
        "bundled": {"passages": len(corpus), "queries": len(asked), "english_queries": len(english)},
        "teacher": {"dimensions": 384, "bundled": search(teacher_queries, teacher_passages)},
        "student": {},
    }
    both_a, both_b = np.concatenate([a, near_a]), np.concatenate([b, near_b])
    for width in student.DIMENSIONS:
        vectors = cut(made, width)
        figures = {}
        for name, (x, y) in {"random_pairs": (a, b), "near_pairs": (near_a, near_b), "all_pairs": (both_a, both_b)}.items():
            mine = (vectors[x] * vectors[y]).sum(1).numpy()
            its = (wanted[x] * wanted[y]).sum(1).numpy()
            figures[name] = {"spearman": round(spearman(mine, its), 4), "pearson": round(pearson(mine, its), 4)}
        own = vectors @ vectors.T
        own.fill_diagonal_(-2)
        figures["teachers_nearest_in_first_8"] = round(float((own.topk(8, dim=1).indices == similar.argmax(1)[:, None]).any(1).float().mean()), 4)
        figures["bundled_plain"] = search(cut(plain, width), cut(passages, width))
        figures["bundled_instructed"] = search(cut(instructed, width), cut(passages, width))
        result["student"][str(width)] = figures
        print(width, json.dumps(figures), flush=True)
    print("teacher", json.dumps(result["teacher"]))
    (args.out / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n")


def plain_english(text):
    """Good enough for the bundled queries: ASCII, and a word that English sentences have."""
    common = {"the", "what", "how", "why", "is", "in", "of", "a", "to", "that", "which", "without", "my", "historical"}
    return text.isascii() and bool(common & set(text.lower().replace("?", "").split())) and not text.startswith(
        ("Wie ", "Funktion ", "Warum "))
