#!/usr/bin/env python3
"""Makes infra/models/mini, a small embedding model in Qwen3's shape, from nothing but apt and pip.

    python3 -m venv venv && venv/bin/pip install -r infra/models/train/requirements.txt
    nice -n 19 venv/bin/python infra/models/train/train.py all

Stages, each of which keeps what it made in the work folder and takes up again where it was stopped:

    data       fetch Debian packages, take texts from them               -> texts.jsonl, held-out.jsonl
    tokenizer  train the tokenizer on the texts                          -> model folder
    teacher    compute the teacher's vectors of the texts                -> labels/
    train      train the student                                         -> checkpoint.pt, model folder
    export     write the model folder from the last checkpoint (train does so at its end)
    evaluate   measure the model folder's files as they are on disk      -> evaluation.json
    card       write the model card with those figures                   -> README.md

Needs a Debian machine (apt-get, dpkg-deb), and 2 GB of disk.
"""

import argparse
import os
import pathlib

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["all", "data", "tokenizer", "teacher", "train", "export", "evaluate", "card"])
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "target" / "mini", help="work folder (%(default)s)")
    parser.add_argument("--out", type=pathlib.Path, default=HERE.parent / "mini", help="model folder (%(default)s)")
    parser.add_argument("--sample", type=pathlib.Path, default=ROOT / "worker" / "assets" / "sample",
                        help="folder of the bundled passages, kept out of training (%(default)s)")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--threads", type=int, default=2, help="threads, or processes of the teacher (%(default)s)")
    parser.add_argument("--held-out", type=int, default=2000, help="texts never trained on (%(default)s)")
    parser.add_argument("--texts", type=int, default=73728, help="texts to label and train on (%(default)s)")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=192, help="texts a step (%(default)s)")
    parser.add_argument("--steps", type=int, default=1700,
                        help="steps in all; may be changed when resuming before the decay begins (%(default)s)")
    return parser.parse_args()


def main():
    args = arguments()
    # A thread that waits must sleep: the machine may have other work.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch

    import bpe
    import teacher
    import texts

    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    if args.stage in ("all", "data") and not (args.work / "texts.jsonl").exists():
        texts.build(args.work, args.sample, args.seed, args.held_out)
    if args.stage in ("all", "tokenizer") and not (args.out / "tokenizer.json").exists():
        bpe.train(args.work, args.out, args.vocabulary)
    if args.stage in ("all", "teacher"):
        teacher.label(args.work, args.threads, args.texts)
    if args.stage in ("all", "train"):
        import student

        student.train(args)
    if args.stage == "export":
        import student

        student.export_checkpoint(args)
    if args.stage in ("all", "evaluate"):
        import evaluate

        evaluate.evaluate(args)
    if args.stage in ("all", "card"):
        import card

        card.write(args)


if __name__ == "__main__":
    main()
