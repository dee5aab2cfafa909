"""llama.cpp by its C interface: the same weights in GGUF, the texts of a batch as sequences side by side."""

import ctypes
import time

import gguf
import llama_cpp
import numpy as np
from safetensors import safe_open

from sizes import Sizes, weight_files

NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}
TYPES = {"f32": gguf.GGMLQuantizationType.F32, "bf16": gguf.GGMLQuantizationType.BF16}

# Tokens computed at once; keys and values are kept, so a text may be longer. Its default is 512.
UBATCHES = [512, 2048]


@llama_cpp.llama_log_callback
def silent(level, text, user_data):
    pass


def gguf_name(name):
    name = name.removeprefix("model.").removesuffix(".weight")
    if name in ("embed_tokens", "norm", "lm_head"):
        return {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}[name] + ".weight"
    _, layer, part = name.split(".", 2)
    return f"blk.{layer}.{NAMES[part]}.weight"


def write_gguf(model_dir, path, precision):
    """The checkpoint as GGUF, without a vocabulary: only ids go in. Norms are f32, as llama.cpp's own converter has it."""
    import torch

    sizes = Sizes(model_dir)
    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "qwen3")
    writer.add_block_count(sizes.layers)
    writer.add_context_length(sizes.tokens_max)
    writer.add_embedding_length(sizes.hidden)
    writer.add_feed_forward_length(sizes.inner)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.kv_heads)
    writer.add_key_length(sizes.head_dim)
    writer.add_value_length(sizes.head_dim)
    writer.add_rope_freq_base(sizes.rope_theta)
    writer.add_layer_norm_rms_eps(sizes.eps)
    writer.add_vocab_size(sizes.vocab)
    writer.add_tokenizer_model("none")
    for file in weight_files(model_dir):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():
                tensor = tensors.get_tensor(name)
                if tensor.dim() == 1 or precision == "f32":
                    writer.add_tensor(gguf_name(name), tensor.to(torch.float32).numpy())
                else:
                    bits = tensor.to(torch.bfloat16).view(torch.uint16).numpy()
                    writer.add_tensor(gguf_name(name), bits.view(np.uint8), raw_dtype=TYPES["bf16"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(path)


class LlamaCpp:
    ours = False

    def __init__(self, model_dir, scratch, precision, threads):
        self.name, self.precision, self.threads = f"llama.cpp {precision}", precision, threads
        path = scratch / f"{model_dir.name}-{precision}.gguf"
        if not path.exists() or path.stat().st_mtime < weight_files(model_dir)[0].stat().st_mtime:
            write_gguf(model_dir, path, precision)
        llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise RuntimeError(f"llama.cpp can't load {path}")
        self.hidden = llama_cpp.llama_model_n_embd(self.model)
        self.context, self.batch, self.way, self.opened = None, None, None, None

    def open(self, texts, together, ubatch):
        """A context for texts of these lengths, all at once or one after the other."""
        self.close_context()
        self.way = (together, ubatch)
        longest = max(map(len, texts))
        sequences = len(texts) if together else 1
        params = llama_cpp.llama_context_default_params()
        # Every sequence has the same room; llama.cpp wants multiples of 256.
        params.n_ctx = sequences * -(-longest // 256) * 256
        params.n_batch = params.n_ctx
        params.n_ubatch = min(ubatch, params.n_ctx)
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = self.threads
        params.embeddings = True
        params.pooling_type = llama_cpp.LLAMA_POOLING_TYPE_LAST
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        if self.precision == "f32":
            params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("llama.cpp can't make a context")
        self.opened, self.together = (self.way, list(map(len, texts))), together
        self.batch = llama_cpp.llama_batch_init(sum(map(len, texts)) if together else longest, 0, 1)
        self.strategy = ("all texts together" if together else "one by one") + f", micro-batch {ubatch}"

    def tune(self, texts):
        """Warms up, and settles on the fastest way for these texts."""
        took = {}
        for way in [(together, ubatch) for together in {len(texts) > 1, False} for ubatch in UBATCHES]:
            self.open(texts, *way)
            self.run(texts)
            took[way] = self.run(texts)[0]
        self.way = min(took, key=took.get)

    def run(self, texts):
        if self.opened != (self.way, list(map(len, texts))):
            self.open(texts, *self.way)
        groups = [texts] if self.together else [[text] for text in texts]
        took, vectors = 0, []
        for group in groups:
            # Filling llama.cpp's structure from Python is slow, and no fault of llama.cpp's: the clock stands.
            self.fill(group)
            began = time.perf_counter()
            vectors.append(self.decode(len(group)))
            took += time.perf_counter() - began
        return took, np.concatenate(vectors)

    def fill(self, texts):
        batch, at = self.batch, 0
        for sequence, text in enumerate(texts):
            for position, token in enumerate(text):
                batch.token[at] = token
                batch.pos[at] = position
                batch.n_seq_id[at] = 1
                batch.seq_id[at][0] = sequence
                batch.logits[at] = position + 1 == len(text)
                at += 1
        batch.n_tokens = at

    def decode(self, sequences):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), False)
        if llama_cpp.llama_decode(self.context, self.batch) != 0:
            raise RuntimeError("llama_decode failed")
        rows = [llama_cpp.llama_get_embeddings_seq(self.context, sequence) for sequence in range(sequences)]
        vectors = np.stack([np.ctypeslib.as_array(row, (self.hidden,)) for row in rows])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def close(self):
        self.close_context()
        llama_cpp.llama_model_free(self.model)

    def close_context(self):
        if self.batch is not None:
            llama_cpp.llama_batch_free(self.batch)
        if self.context:
            llama_cpp.llama_free(self.context)
        self.context, self.batch, self.opened = None, None, None
