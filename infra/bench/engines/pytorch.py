"""sentence-transformers on PyTorch: its modules and its padding, sorted by length into sub-batches as `encode` does."""

import time

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Normalize, Pooling, Transformer
from transformers.utils import logging

logging.disable_progress_bar()

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}

# Texts of a sub-batch. 32 is sentence-transformers' default; smaller ones waste less padding on mixed lengths.
BATCH_SIZES = [32, 8, 4, 1]


class SentenceTransformers:
    ours = False

    def __init__(self, model_dir, precision, threads):
        self.name, self.precision = f"sentence-transformers {precision}", precision
        torch.set_num_threads(threads)
        kwargs = {"dtype": DTYPES[precision], "attn_implementation": "sdpa"}
        transformer = Transformer(str(model_dir), model_kwargs=kwargs)
        config = transformer.model.config
        # No text is ever continued: a cache of keys and values would cost it time.
        config.use_cache = False
        self.pad, self.layers = config.eos_token_id, config.num_hidden_layers
        pooling = Pooling(config.hidden_size, pooling_mode="lasttoken")
        self.model = SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu").eval()
        self.size, self.strategy = BATCH_SIZES[0], ""

    def tune(self, texts):
        """Warms up, and settles on the fastest sub-batches for these texts."""
        took = {}
        for self.size in sorted({min(size, len(texts)) for size in BATCH_SIZES}):
            self.run(texts)
            if len(texts) > 1:
                took[self.size] = self.run(texts)[0]
        self.size = min(took, key=took.get, default=1)
        self.strategy = f"sub-batches of {self.size}"

    @torch.inference_mode()
    def run(self, texts):
        began = time.perf_counter()
        order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
        vectors = [None] * len(texts)
        for start in range(0, len(order), self.size):
            places = order[start : start + self.size]
            longest = len(texts[places[0]])
            ids = torch.full((len(places), longest), self.pad)
            mask = torch.zeros((len(places), longest), dtype=torch.int64)
            for row, place in enumerate(places):
                ids[row, : len(texts[place])] = torch.tensor(texts[place])
                mask[row, : len(texts[place])] = 1
            embedded = self.model({"input_ids": ids, "attention_mask": mask})["sentence_embedding"]
            for place, vector in zip(places, embedded.float().numpy()):
                vectors[place] = vector
        vectors = np.stack(vectors)
        return time.perf_counter() - began, vectors

    def close(self):
        pass


class Products:
    """What the machine does in matrix products of a layer's shape: the best that an engine of that precision can do."""

    ROWS, INNER, COLUMNS = 2048, 1024, 3072

    def __init__(self):
        self.operands = {
            precision: (
                torch.randn(self.ROWS, self.INNER).to(dtype),
                torch.randn(self.COLUMNS, self.INNER).to(dtype),
            )
            for precision, dtype in DTYPES.items()
        }

    @torch.inference_mode()
    def measure(self):
        """FLOP/s in each precision, the best of a few products."""
        rates = {}
        for precision, (left, right) in self.operands.items():
            torch.nn.functional.linear(left, right)
            took = []
            for _ in range(5):
                began = time.perf_counter()
                torch.nn.functional.linear(left, right)
                took.append(time.perf_counter() - began)
            rates[precision] = 2 * self.ROWS * self.INNER * self.COLUMNS / min(took)
        return rates
