"""A model folder's sizes, and what a batch costs in them."""

import json


def weight_files(model_dir):
    return sorted(model_dir.glob("model*.safetensors"))


class Sizes:
    def __init__(self, model_dir):
        config = json.loads((model_dir / "config.json").read_text())
        self.layers = config["num_hidden_layers"]
        self.hidden, self.inner = config["hidden_size"], config["intermediate_size"]
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.head_dim, self.vocab = config["head_dim"], config["vocab_size"]
        self.tokens_max, self.eps = config["max_position_embeddings"], config["rms_norm_eps"]
        rope = config.get("rope_parameters") or config
        self.rope_theta = float(rope["rope_theta"])

    def matrices(self, lengths, layers=None):
        """FLOP of the layers' matrix products that a batch needs: q, k, v, o, gate, up, down; in the last layer keys and
        values of every token, and all else of the pooled one only."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        keys_values, rest = 2 * self.hidden * key, self.hidden * (2 * query + 3 * self.inner)
        tokens, texts, layers = sum(lengths), len(lengths), layers or self.layers
        return 2 * ((layers - 1) * (keys_values + rest) * tokens + keys_values * tokens + rest * texts)

    def attention(self, lengths, layers=None):
        """FLOP of causal attention that a batch needs: scores and weighted values, of what each query sees."""
        seen = sum(length * (length + 1) // 2 for length in lengths)
        return 4 * self.heads * self.head_dim * (((layers or self.layers) - 1) * seen + sum(lengths))

    def needed(self, lengths, layers=None):
        return self.matrices(lengths, layers) + self.attention(lengths, layers)

    def depth_bonus(self, lengths, layers):
        """How much more the last layer's saving is worth at this depth than at `layers`. An engine that has it is
        faster here by this factor over one that has not, compared with what both would be there."""
        grown = self.needed(lengths, layers) / self.needed(lengths)
        return grown / (layers / self.layers)
