#!/usr/bin/env python3
"""Train the demo model: tokenizer, data, weights, all from a seed.

    python -m tools.demo_model.train --out OUT --corpora ../shared/data/corpora/gutenberg --device cuda --compile

Writes a Hugging Face folder: bfloat16 weights, config, tokenizer, chat template, and train.jsonl with the course of the
training. --minutes bounds the training itself; the start (processes, tokenizer, compiling) comes on top. A run with
--steps instead sees the same data and rates each time. From --nvfp4-from of the way on, the model computes with weights
rounded to NVFP4, so that it is at home in them when they are stored so.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from . import checkpoint
from .bpe import Vocabulary
from .bpe import train as train_tokenizer
from .data import books, dialogue, held_out
from .dialogue import segments
from .evaluate import GROUPS, answers, scores
from .feed import Feed, Step, Targets, step_of
from .model import DemoModel, borders, initialize
from .optimizer import Optimizer
from .shape import SHAPES

WARM, FLOOR = 0.02, 0.02
"""Share of the way with a growing rate; the last rate over the highest"""
BALANCE, DRAFT = 0.01, 0.3
"""Weights of the losses for even experts and of the MTP head"""
TOKENIZER_DIALOGUES = 40_000


def make_tokenizer(out: Path, size: int, seed: int, corpora: Path | None) -> None:
    rng = random.Random(f"tokenizer {seed}")
    texts = ["".join(text for text, _ in segments(dialogue(rng))) for _ in range(TOKENIZER_DIALOGUES)]
    pieces = [text[i : i + 3000] for text in books(corpora)[0] for i in range(0, len(text), 12_000)]
    for marker in (
        "<|im_start|>",
        "<|im_end|>",
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "<tool_response>",
        "</tool_response>",
    ):
        texts = [text.replace(marker, "\n") for text in texts]
    train_tokenizer(iter(texts + pieces), size, out)


def rate(progress: float, highest: float) -> float:
    if progress < WARM:
        return highest * (0.02 + 0.98 * progress / WARM)
    along = min(1.0, (progress - WARM) / (1 - WARM))
    return highest * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * along)))


def cross_entropy(model: DemoModel, hidden: torch.Tensor, wanted: Targets) -> torch.Tensor:
    logits = model.logits(hidden.flatten(0, 1)[wanted.at]).float()
    return (F.cross_entropy(logits, wanted.ids, reduction="none") * wanted.weights).sum()


def losses(model: DemoModel, step: Step) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(next token, token after it, imbalance of the experts per layer)."""
    at = borders(step.number, model.shape)
    hidden, uneven = model.hidden(step.ids, at)
    drafted, more = model.draft(step.ids, hidden, at)
    return (
        cross_entropy(model, hidden, step.next),
        cross_entropy(model, drafted, step.after),
        (uneven + more) / (model.shape.num_hidden_layers + 1),
    )


def train(args: argparse.Namespace) -> dict[str, float]:
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    shape = SHAPES[args.shape]
    if not (out / "tokenizer.json").is_file():
        make_tokenizer(out, shape.vocab_size, args.seed, args.corpora)
    vocabulary = Vocabulary(out / "tokenizer.json")
    if vocabulary.size != shape.vocab_size:
        raise SystemExit(
            f"{out / 'tokenizer.json'} has {vocabulary.size} entries, the shape {shape.vocab_size}; remove the file"
        )
    feed = Feed(out / "tokenizer.json", args.corpora, args.seed, args.workers, args.batch, args.length)
    try:
        return loop(args, vocabulary, feed)
    finally:
        feed.close()


def loop(args: argparse.Namespace, vocabulary: Vocabulary, feed: Feed) -> dict[str, float]:
    device = torch.device(args.device)
    torch.set_float32_matmul_precision("high")
    torch.backends.cuda.enable_cudnn_sdp(False)  # masks of our own are the business of the memory-efficient kernel
    shape, dtype = SHAPES[args.shape], torch.bfloat16 if device.type == "cuda" else torch.float32
    model = DemoModel(shape, dtype)
    initialize(model, args.seed)
    model.to(device)
    plain = DemoModel(shape, dtype).to(device)
    optimizer = Optimizer(model)
    layers = [*model.model.layers, *model.mtp.layers]
    if args.compile:
        for layer in layers:
            layer.compile(dynamic=False)
    count = sum(p.numel() for p in model.parameters())
    test = [made for kinds in GROUPS.values() for made in held_out(args.seed, args.test, kinds)]
    log = (args.out / "train.jsonl").open("w", encoding="utf-8")

    def note(**values: object) -> None:
        line = json.dumps(
            {key: round(value, 5) if isinstance(value, float) else value for key, value in values.items()}
        )
        print(line, flush=True)
        print(line, file=log, flush=True)

    def score() -> dict[str, float]:
        plain.load_state_dict(model.state_dict())
        return scores(answers(plain, vocabulary, test, device))

    def save() -> None:
        checkpoint.save(args.out, shape, dict(zip(optimizer.names, optimizer.masters, strict=True)), vocabulary.added)

    note(
        parameters=count,
        shape=args.shape,
        seed=args.seed,
        batch=args.batch,
        length=args.length,
        device=str(device),
        rate=args.rate,
    )
    started = time.monotonic()
    spent = 0.0
    """seconds of training: without the first steps (compiling), tests and saving"""
    mark, saved, number, progress, seen, tested = time.monotonic(), time.monotonic(), 0, 0.0, 0, 0
    batches = feed.batches()
    pending = []
    while progress < 1:
        step = step_of(next(batches), device)
        nvfp4 = progress >= args.nvfp4_from
        main, draft, uneven = losses(model, step)
        (main + DRAFT * draft + BALANCE * uneven).backward()
        norm = optimizer.step(rate(progress, args.rate))
        optimizer.publish(nvfp4)
        number += 1
        seen += step.ids.numel()
        pending.append(torch.stack([main.detach(), draft.detach(), uneven.detach(), norm]))
        if number <= 3 or number % 20 == 0:
            values = torch.stack(pending).mean(0).tolist()  # waits for the device
            pending = []
            now = time.monotonic()
            spent += now - mark if number > 3 else 0
            mark = now
            if number <= 3 or number % args.every == 0:
                note(
                    step=number,
                    progress=progress,
                    seconds=now - started,
                    loss=values[0],
                    draft=values[1],
                    uneven=values[2],
                    norm=values[3],
                    nvfp4=nvfp4,
                    tokens=seen,
                    speed=(seen - 3 * step.ids.numel()) / spent if spent else 0.0,
                )
            if now - saved > 45:
                save()
                saved = time.monotonic()
                mark = saved
        progress = number / args.steps if args.steps else spent / (60 * args.minutes)
        if args.tests and progress * args.tests >= tested + 1 and progress < 1:
            tested += 1
            note(step=number, **score())
            mark = time.monotonic()
    optimizer.publish(False)
    final = {f"bf16 {key}": value for key, value in score().items()} if args.tests else {}
    optimizer.publish(True)
    save()
    final |= score() if args.tests else {}
    note(step=number, tokens=seen, seconds=time.monotonic() - started, **final)
    log.close()
    return final


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--corpora", type=Path, help="folder with books as text files; without it, dialogues only")
    parser.add_argument("--shape", choices=SHAPES, default="demo")
    parser.add_argument("--minutes", type=float, default=5.0, help="of training")
    parser.add_argument("--steps", type=int, default=0, help="train for so many steps instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=64, help="rows of a step")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a row, a multiple of 64")
    parser.add_argument("--workers", type=int, default=16, help="processes that write dialogues")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="compile the layers with torch.compile")
    parser.add_argument("--rate", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument(
        "--nvfp4-from", type=float, default=0.6, help="share of the way after which weights are rounded to NVFP4"
    )
    parser.add_argument("--every", type=int, default=100, help="steps between lines of the log, a multiple of 20")
    parser.add_argument("--tests", type=int, default=4, help="how often held-out dialogues are answered")
    parser.add_argument("--test", type=int, default=128, help="held-out dialogues of each group")
    train(parser.parse_args(argv))
    return 0


if __name__ == "__main__":
    sys.exit(main())
