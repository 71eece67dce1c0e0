"""Launches of a Gated DeltaNet layer at the shape of Qwen3.6-35B-A3B, and what they must move."""
from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from blackwell_infer.device.dry import DryQueue
from blackwell_infer.device.record import Launched, Recorder
from blackwell_infer.kernels.cost import Cost
from blackwell_infer.kv.recurrent import Recurrent, RecurrentSpec
from blackwell_infer.ops.batch import Batch, DeltaParams
from blackwell_infer.ops.cuda.recurrent import FEW, MANY, gated_delta_
from blackwell_infer.ops.cuda.staged import Staged

BF16 = np.dtype(ml_dtypes.bfloat16)
SPEC = RecurrentSpec(heads=32, key_heads=16, key_dim=128, value_dim=128)


def launches(rows: int, new: int, few: int = FEW, stored: type[np.generic] = np.float32) -> tuple[list[Launched], bool]:
    """What rows of `new` tokens launch, and whether the result is staged."""
    q = Recorder(DryQueue("sm_90a", 132, total=1 << 40))
    s, tokens = SPEC, rows * new
    i32 = q.empty((1,), np.int32)
    state = Recurrent(q.empty((rows + 2, s.width - 1, s.channels), BF16),
                      q.empty((rows + 2, s.heads, s.key_dim, s.value_dim), stored))
    decay, bias, norm = (q.empty((n,), np.float32) for n in (32, 32, 128))
    params = DeltaParams(q.empty((s.channels, s.width), np.float32), decay, bias, norm, 1e-6, s.key_heads)
    batch = Batch(i32, i32, i32, q.empty((rows + 1,), np.int32), i32, i32, i32, q.empty((rows,), np.int32),
                  q.empty((tokens,), np.int32), new, new)
    out = gated_delta_(q, state, q.empty((tokens, s.channels + 32 * 128 + 64), BF16), batch, params, few)
    assert all(isinstance(launch, Launched) for launch in q.launches)
    return [launch for launch in q.launches if isinstance(launch, Launched)], isinstance(out, Staged)


@pytest.mark.parametrize("rows", [1, 8, 64])
@pytest.mark.parametrize("stored", [np.float32, np.float16])
def test_a_decode_step_is_one_launch_that_moves_the_states_twice(rows: int, stored: type[np.generic]) -> None:
    (launch,), staged = launches(rows, 1, stored=stored)
    assert launch.variant.kernel.entry == "delta_step"
    assert staged
    moved = launch.variant.kernel.estimate(launch.args).nbytes
    states = 2 * rows * 32 * 128 * 128 * np.dtype(stored).itemsize
    assert states <= moved <= 1.25 * states + 200_000, "taps and activations come on top"


def test_a_row_alone_has_four_ctas_a_head_and_many_rows_two() -> None:
    assert [launches(rows, 1)[0][0].grid[0] for rows in (1, 4, 5, 64)] == [128, 128, 64, 64]


def test_prompts_go_through_chunks_unless_bits_shall_not_depend_on_their_length() -> None:
    entries = [launch.variant.kernel.entry for launch in launches(2, 300)[0]]
    assert entries == ["delta_step", "delta_mix", "delta_solve", "delta_pass", "delta_out"]
    assert [launch.variant.kernel.entry for launch in launches(2, 300, MANY)[0]] == ["delta_step"]
    chunks = [launch.grid[0] for launch in launches(2, 300)[0] if launch.variant.kernel.entry == "delta_solve"]
    assert chunks == [11], "two times five, and one where tokens might lie unluckily"


def test_products_of_chunks_are_counted() -> None:
    """A token's products with a state of 128 x 128 in the pass are two, of 2 operations a number."""
    cost = {x.variant.kernel.entry: x.variant.kernel.estimate(x.args) for x in launches(1, 4096)[0]}
    assert cost["delta_pass"].flops == 4096 * 32 * 2 * 2 * 128 * 128
    assert cost["delta_out"].flops > cost["delta_solve"].flops > 0
    assert cost["delta_step"] == Cost(), "it leaves such rows to the others"
