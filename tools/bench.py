"""Benchmark of one model through the public interface: load, first token, prefill, decode, roofline, host memory.

    python tools/bench.py MODEL.gguf --device cuda --prompt 4096 --new 128 --repeat 3
"""
from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from blackwell_infer import LLM, Sampling
from blackwell_infer.errors import BlackwellInferError

BANDWIDTH = 4.63
"""TB/s read by a plain kernel on an H200: 8 GiB in 16-byte loads. Give --bandwidth for another GPU."""


class PeakMemory:
    """Highest RssAnon + RssShmem of this process in bytes while the context is open, less the value at its start.

    Pages of mapped files (RssFile) are not counted: they belong to the page cache.
    """

    def __enter__(self) -> PeakMemory:
        self.start = self.peak = resident()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.done.wait(0.005):
            self.peak = max(self.peak, resident())

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.done.set()
        self.thread.join()
        self.peak = max(self.peak, resident())

    @property
    def grown(self) -> int:
        return self.peak - self.start


def resident() -> int:
    """RssAnon + RssShmem in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))


def once(llm: LLM, prompt: list[int], new: int) -> dict[str, float]:
    """One request: time to first token, prefill and decode speed."""
    started, first, tokens, usage = time.perf_counter(), 0.0, 0, None
    for event in llm.stream(prompt, Sampling(temperature=0, max_tokens=new, ignore_eos=True)):
        if event.token_ids and not tokens:
            first = time.perf_counter() - started
        tokens += len(event.token_ids)
        usage = event.usage or usage
        if event.error is not None:
            raise BlackwellInferError(event.error)
    assert usage is not None
    return {"first_token_seconds": first, "prefill_tokens_per_second": len(prompt) / usage.prefill_seconds,
            "decode_tokens_per_second": (tokens - 1) / usage.decode_seconds if tokens > 1 else 0.0}


def measure(found: argparse.Namespace) -> dict[str, Any]:
    """Load the model and take the medians of the runs."""
    started = time.perf_counter()
    with PeakMemory() as memory:
        llm = LLM(found.model, device=found.device, dtype=found.dtype, max_batch=1,
                  max_context=found.prompt + found.new, max_step_tokens=found.step)
        loaded = time.perf_counter() - started
    with llm:
        info = llm.info()
        draw = random.Random(found.seed)
        # A new prompt each time, so that no run can profit from another one's cache.
        runs = [once(llm, [draw.randrange(info.vocab) for _ in range(found.prompt)], found.new)
                for _ in range(found.repeat + 1)][1:]
    medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    read = info.decode_bytes + (found.prompt + found.new // 2) * info.kv_token_bytes
    share = read * medians["decode_tokens_per_second"] / (found.bandwidth * 1e12)
    return {"model": Path(found.model).name, "device": info.device, "prompt_tokens": found.prompt,
            "new_tokens": found.new, "runs": found.repeat, "load_seconds": loaded,
            "peak_host_bytes": memory.grown, **medians, "bytes_per_token": read,
            "roofline_tokens_per_second": found.bandwidth * 1e12 / read, "share_of_roofline": share}


def report(result: dict[str, Any]) -> str:
    """The figures for people, one to a line."""
    return "\n".join([
        f"{result['model']} on {result['device']}, medians of {result['runs']} runs",
        f"load                  {result['load_seconds']:.2f} s",
        f"peak host memory      {result['peak_host_bytes'] / 2**30:.2f} GiB beyond the page cache",
        f"time to first token   {1e3 * result['first_token_seconds']:.1f} ms ({result['prompt_tokens']} tokens)",
        f"prefill               {result['prefill_tokens_per_second']:.0f} tok/s",
        f"decode                {result['decode_tokens_per_second']:.1f} tok/s ({result['new_tokens']} tokens)",
        f"bytes per token       {result['bytes_per_token'] / 1e9:.3f} GB",
        f"share of the roofline {100 * result['share_of_roofline']:.1f} % of "
        f"{result['roofline_tokens_per_second']:.0f} tok/s",
    ])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="measure load, first token, prefill and decode of a model")
    parser.add_argument("model")
    parser.add_argument("--prompt", type=int, default=4096, help="tokens of the prompt (default: %(default)s)")
    parser.add_argument("--new", type=int, default=128, help="tokens of the answer (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="measured runs, after one warm-up (default: %(default)s)")
    parser.add_argument("--step", type=int, default=4096, help="most tokens of one step (default: %(default)s)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seed", type=int, default=0, help="of the random prompts")
    parser.add_argument("--bandwidth", type=float, default=BANDWIDTH, help="of memory, TB/s (default: an H200's)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    found = parser.parse_args(argv)
    try:
        result = measure(found)
    except BlackwellInferError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result) if found.json else report(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
