"""What `tools/replay.py` makes of a trace."""
from __future__ import annotations

import json

import replay
from replay import block_of, possible, prompt_of, scheduled


def line(ids: list[int], length: int) -> str:
    return json.dumps({"timestamp": 0, "input_length": length, "output_length": 1, "hash_ids": ids})


def test_equal_ids_are_equal_tokens() -> None:
    a, b = prompt_of(line([1, 2, 3], 1400), 16, 1000), prompt_of(line([1, 2, 9], 1536), 16, 1000)
    assert len(a) == 1400 // 16 and len(b) == 96 and a[:64] == b[:64] and a[64:] != b[64 : len(a)]
    assert a[:32] == block_of(1, 16, 1000) and all(0 <= t < 1000 for t in b)
    assert len(prompt_of(line([5], 3), 16, 1000)) == 1


def test_the_scheduler_alone_holds_what_an_endless_cache_could_and_a_hybrid_less() -> None:
    prompts = [prompt_of(line([1, 2, i, i + 100, i + 200], 512 * 5), 16, 1000) for i in range(10, 30)]
    assert possible(prompts, replay.BLOCK // 16) == 19 * 2 / (20 * 5) == scheduled(prompts, 4096, 512, 0)
    assert scheduled(prompts, 4096, 512, 40) == 18 * 2 / (20 * 5), "the second one leaves a state where they part"
