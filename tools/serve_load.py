"""Put load on a server that speaks OpenAI's completions API, and say what each stream saw of it.

    bwinfer serve m.gguf --port 8080 --max-batch 64 --no-prefix-cache
    python tools/serve_load.py 127.0.0.1:8080 --streams 1,8,32,64 --prompt 1024 --new 256

Every stream sends one request after the other with a random prompt of token ids, `rounds` of them; with `--grow N` a
prompt is the stream's last one and N tokens more, as in a conversation. Reported for each
number of streams: tokens a second of all of them together, prompts included in the time; the time to the first token;
and the time between tokens (events of the stream).
"""
from __future__ import annotations

import argparse
import asyncio
import json
import random
import time

import msgspec
import numpy as np


class Answer(msgspec.Struct, frozen=True):
    """What became of one request: seconds from its start to each event with text, and the tokens that were counted."""

    times: tuple[float, ...]
    tokens: int


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One line: rates in tokens a second, times in milliseconds."""

    streams: int
    requests: int
    seconds: float
    output_rate: float
    prompt_rate: float
    first_median: float
    first_p99: float
    gap_median: float
    gap_p99: float


async def ask(host: str, port: int, body: dict[str, object]) -> Answer:
    """One streamed request. RuntimeError if the server refuses it or the stream is broken off."""
    data = json.dumps(body).encode()
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 20)
    writer.write(f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
                 f"Connection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
    status = (await reader.readline()).split()
    if len(status) < 2 or status[1] != b"200":
        raise RuntimeError(f"the server answered {status}: {(await reader.read(2000)).decode(errors='replace')}")
    times, tokens, done = list[float](), 0, False
    async for line in reader:
        if not line.startswith(b"data: "):
            continue
        if line.startswith(b"data: [DONE]"):
            done = True
            break
        event = json.loads(line[6:])
        if "error" in event:
            raise RuntimeError(f"a stream failed: {event['error']}")
        tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        if event["choices"]:
            times.append(time.perf_counter() - began)
    writer.close()
    if not done:
        raise RuntimeError("a stream ended before its end")
    return Answer(tuple(times), tokens)


def prompts_of(draw: random.Random, rounds: int, length: int, vocab: int, grow: int) -> list[list[int]]:
    """The prompts of one stream: new ones, or with `grow` each the last one with so many tokens more."""
    if not grow:
        return [[draw.randrange(vocab) for _ in range(length)] for _ in range(rounds)]
    whole = [draw.randrange(vocab) for _ in range(length + grow * (rounds - 1))]
    return [whole[: length + grow * i] for i in range(rounds)]


async def load(host: str, port: int, streams: int, prompt: int, new: int, rounds: int, vocab: int,
               draw: random.Random, grow: int = 0) -> Figure:
    """`streams` at once, `rounds` requests each."""
    def body(ids: list[int]) -> dict[str, object]:
        return {"model": "default", "prompt": ids, "max_tokens": new, "temperature": 0, "ignore_eos": True,
                "stream": True, "stream_options": {"include_usage": True}}

    async def one(bodies: list[dict[str, object]]) -> list[Answer]:
        return [await ask(host, port, b) for b in bodies]

    prompts = [prompts_of(draw, rounds, prompt, vocab, grow) for _ in range(streams)]
    bodies = [[body(ids) for ids in each] for each in prompts]
    began = time.perf_counter()
    answers = [a for found in await asyncio.gather(*map(one, bodies)) for a in found]
    seconds = time.perf_counter() - began
    first = [1e3 * a.times[0] for a in answers]
    gaps = [1e3 * g for a in answers for g in np.diff(a.times)] or [0.0]
    return Figure(streams=streams, requests=len(answers), seconds=seconds,
                  output_rate=sum(a.tokens for a in answers) / seconds,
                  prompt_rate=sum(len(ids) for each in prompts for ids in each) / seconds,
                  first_median=float(np.median(first)), first_p99=float(np.percentile(first, 99)),
                  gap_median=float(np.median(gaps)), gap_p99=float(np.percentile(gaps, 99)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", help="HOST:PORT")
    parser.add_argument("--streams", default="1,8,32,64", help="numbers of streams, one figure each")
    parser.add_argument("--prompt", type=int, default=1024, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=256, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=3, help="requests of a stream, one after the other")
    parser.add_argument("--grow", type=int, default=0, help="tokens that a stream's next prompt adds to its last one")
    parser.add_argument("--vocab", type=int, default=4096, help="token ids of prompts are below this")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts")
    parser.add_argument("--json", help="write the figures to this file, too")
    found = parser.parse_args()
    host, _, port = found.server.rpartition(":")
    draw, figures = random.Random(found.seed), []
    # What the first request compiles and records is not to count.
    asyncio.run(load(host, int(port), 1, found.prompt, 8, 1, found.vocab, draw))
    print("streams  requests  seconds  output tok/s  prompt tok/s  first token ms (p99)  between tokens ms (p99)")
    for streams in map(int, found.streams.split(",")):
        f = asyncio.run(load(host, int(port), streams, found.prompt, found.new, found.rounds, found.vocab,
                             draw, found.grow))
        figures.append(f)
        print(f"{f.streams:7}  {f.requests:8}  {f.seconds:7.2f}  {f.output_rate:12.1f}  {f.prompt_rate:12.1f}  "
              f"{f.first_median:12.1f} ({f.first_p99:.1f})  {f.gap_median:14.2f} ({f.gap_p99:.2f})", flush=True)
    if found.json:
        with open(found.json, "wb") as file:
            file.write(msgspec.json.encode(figures))


if __name__ == "__main__":
    main()
