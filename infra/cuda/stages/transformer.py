"""transformers' Qwen3Model."""

import math
import time

import torch

from transformers import Qwen3Model
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()


def plain_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **_):
    """Causal attention as it is written down, some queries at a time: fused kernels are what is being checked."""
    group, length = query.shape[1] // key.shape[1], query.shape[2]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    positions = torch.arange(length, device=query.device)
    outputs = []
    for start in range(0, length, 256):
        end = min(start + 256, length)
        scores = query[:, :, start:end] @ key[:, :, :end].transpose(2, 3) * scaling
        hidden = positions[None, :end] > positions[start:end, None]
        outputs.append(scores.masked_fill(hidden, -math.inf).softmax(dim=-1) @ value[:, :, :end])
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


try:
    from transformers import AttentionInterface

    AttentionInterface.register("plain", plain_attention)
except ImportError:  # As it was called before.
    ALL_ATTENTION_FUNCTIONS["plain"] = plain_attention


class Transformers:
    """Padded on the right without a mask: in a causal model what follows a text's last token does not reach it, and
    attention is at its fastest."""

    def __init__(self, model_dir, device, dtype, attention, pad, size=1):
        self.name, self.device, self.pad, self.size = f"transformers {attention}", device, pad, size
        self.model = Qwen3Model.from_pretrained(str(model_dir), dtype=dtype, attn_implementation=attention).to(device).eval()

    def exact(self):
        """From now on in f32, of the same weights, with plain attention."""
        self.model = self.model.float()
        self.model.config._attn_implementation = "plain"
        return self

    def run(self, texts):
        """Seconds from ids on the host to vectors there."""
        began = time.perf_counter()
        self.forward(texts)
        return time.perf_counter() - began

    def forward(self, texts):
        """Unit vectors, in sub-batches of texts of like length."""
        order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
        vectors = [None] * len(texts)
        for start in range(0, len(order), self.size):
            places = order[start : start + self.size]
            ids = torch.full((len(places), len(texts[places[0]])), self.pad)
            for row, place in enumerate(places):
                ids[row, : len(texts[place])] = torch.tensor(texts[place])
            last = torch.tensor([len(texts[place]) - 1 for place in places], device=self.device)
            with torch.inference_mode():
                hidden = self.model(input_ids=ids.to(self.device), use_cache=False).last_hidden_state
                pooled = hidden[torch.arange(len(places), device=self.device), last].float()
                found = torch.nn.functional.normalize(pooled, dim=-1).cpu()
            for place, vector in zip(places, found):
                vectors[place] = vector
        return vectors

    def vectors(self, texts):
        size, self.size = self.size, 1
        found = torch.stack(self.forward(texts)).double()
        self.size = size
        return found

    def close(self):
        self.model = None
        if self.device == "cuda":
            torch.cuda.empty_cache()
