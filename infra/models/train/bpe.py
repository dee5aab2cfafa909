"""The tokenizer: byte-level BPE in the form of Qwen2's and Qwen3's, trained on the texts."""

import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

# What Qwen2 and Qwen3 split at, before bytes are merged.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
END = "<|endoftext|>"
SPECIAL = [END, "<|im_start|>", "<|im_end|>"]


TOKENS_MAX = 2048


def train(work, folder, vocabulary):
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary - len(SPECIAL), show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    with open(work / "texts.jsonl") as lines:
        bpe.train_from_iterator((json.loads(line)["text"] for line in lines), trainer)
    # As in Qwen's, the special tokens come after the others.
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    end = bpe.token_to_id(END)
    bpe.post_processor = processors.Sequence([
        processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        processors.TemplateProcessing(single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, end)]),
    ])
    folder.mkdir(parents=True, exist_ok=True)
    bpe.save(str(folder / "tokenizer.json"), pretty=False)
    added = {str(bpe.token_to_id(token)): {"content": token, "lstrip": False, "normalized": False, "rstrip": False,
                                           "single_word": False, "special": True} for token in SPECIAL}
    settings = {
        "add_prefix_space": False, "added_tokens_decoder": added, "additional_special_tokens": SPECIAL[1:],
        "bos_token": None, "clean_up_tokenization_spaces": False, "eos_token": END, "errors": "replace",
        "model_max_length": TOKENS_MAX, "pad_token": END, "padding_side": "left", "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    print(f"tokenizer: {bpe.get_vocab_size()} tokens, end token {end}")
    return bpe


def load(folder):
    return Tokenizer.from_file(str(folder / "tokenizer.json"))
