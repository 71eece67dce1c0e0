#!/usr/bin/env python3
"""What a Gated DeltaNet state of 16 bits costs in accuracy, on random inputs; NumPy, no GPU.

    python tools/state_precision.py                                    # 2048 tokens, heads of 128 by 128, seed 0
    python tools/state_precision.py --tokens 8192 --decay 0.05         # states that live longer

A layer goes token by token through float32, float16 and bfloat16 states, which are rounded after every token, as in
decoding. Printed is the root mean square of the differences to a float32 state, over that of the results, for every
quarter of the tokens: an error that grows would show.
"""
from __future__ import annotations

import argparse
from typing import Any

import msgspec
import numpy as np

from blackwell_infer.kv.recurrent import Recurrent
from blackwell_infer.ops import ref
from blackwell_infer.ops.cases_recurrent import Heads, Line, make_delta
from blackwell_infer.ops.inputs import DTYPES

STEP = 16
"""Tokens that go through the layer at once: the most that are rounded one by one"""


def results(made: dict[str, Any], stored: str, tokens: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Results of the layer [tokens, nv dv] with its state in this type."""
    state = Recurrent(made["state"].conv[:1].copy(), np.zeros((1, *made["state"].state.shape[1:]), DTYPES[stored]))
    state.conv[:] = 0
    out = []
    for first in range(0, tokens, STEP):
        n = min(STEP, tokens - first)
        target = np.full(n, -1, np.int32)
        target[-1] = 0
        batch = msgspec.structs.replace(
            made["batch"], starts=np.asarray([0, n], np.int32), rows=np.zeros(n, np.int32),
            state_from=np.asarray([-1 if first == 0 else 0], np.int32), state_to=target)
        out.append(np.asarray(ref.gated_delta_(state, made["proj"][first : first + n], batch, made["params"])))
    return np.concatenate(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048, help="length of the sequence")
    parser.add_argument("--size", type=int, default=128, help="width of a head")
    parser.add_argument("--decay", type=float, default=1.0, help="largest factor of the log decays")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    made = make_delta(np.random.default_rng(args.seed), "float32", "float32", Heads(2, 4, args.size, args.size),
                      (Line(False, args.tokens, (args.tokens - 1,)),), 0, False, args.decay, ())
    exact = results(made, "float32", args.tokens)
    for stored in ("float16", "bfloat16"):
        error = results(made, stored, args.tokens) - exact
        parts = np.array_split(np.arange(args.tokens), 4)
        sizes = (np.sqrt(np.square(error[p]).mean() / np.square(exact[p]).mean()) for p in parts)
        print(f"{stored:9}", *(f"{size:.2e}" for size in sizes))


if __name__ == "__main__":
    main()
