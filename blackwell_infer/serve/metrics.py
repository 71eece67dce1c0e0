"""/metrics for Prometheus and /v1/engine for people and programs: the engine's counters as they are now."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from blackwell_infer.engine.traffic import share
from blackwell_infer.serve.host import Host

GAUGES = {"running": "answers that run", "waiting": "answers that wait", "pages_used": "pages of what runs",
          "pages_total": "pages of the KV cache", "pages_cached": "pages that only the prefix cache holds",
          "states_cached": "recurrent states in the prefix cache", "states_total": "slots for such states",
          "disk_bytes": "bytes of the prefix cache on disk",
          "step_bytes": "bytes that a recent decode step moved",
          "bytes_per_second": "bytes per second of recent decode steps",
          "tokens_per_second": "tokens per second while there was work"}
COUNTERS = {"finished": "requests that ended", "prompt_tokens": "tokens prefilled",
            "generated_tokens": "tokens generated", "steps": "steps", "preemptions": "sequences that were preempted",
            "busy_seconds": "seconds with work", "cached_tokens": "prompt tokens that the prefix cache held",
            "disk_read": "pages read back from disk", "disk_written": "pages and states written to disk",
            "disk_dropped": "pages and states that were not written to disk",
            "drafted_tokens": "guesses that were checked", "accepted_tokens": "guesses that held"}


class EngineCollector(Collector):
    """Reads the counters whenever Prometheus asks."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def collect(self) -> Iterator[Metric]:
        values = msgspec.structs.asdict(self._host.llm.stats())
        for name, about in GAUGES.items():
            yield GaugeMetricFamily(f"bwinfer_{name}", about, value=values[name])
        for name, about in COUNTERS.items():
            yield CounterMetricFamily(f"bwinfer_{name}", about, value=values[name])
        found = share(values["bytes_per_second"], self._host.llm.info().bandwidth)
        if found is not None:
            yield GaugeMetricFamily("bwinfer_roofline_share", "share of the memory's bandwidth that recent decode "
                                    "steps took", value=found)


def routes(host: Host) -> list[Route]:
    registry = CollectorRegistry()
    registry.register(EngineCollector(host))

    async def metrics(request: Request) -> Response:
        return Response(generate_latest(registry), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def engine(request: Request) -> Response:
        return JSONResponse(engine_body(host))

    return [Route("/metrics", metrics), Route("/v1/engine", engine)]


def engine_body(host: Host) -> dict[str, Any]:
    """The state of the engine. `bandwidth` and `roofline_share` are null where the device does not say its speed."""
    stats, info = host.llm.stats(), host.llm.info()
    prompt = stats.prompt_tokens + stats.cached_tokens
    return {
        "model": host.name, "device": info.device, "family": info.family, "max_context": info.max_context,
        **msgspec.to_builtins(stats),
        "prefix_hit_share": stats.cached_tokens / prompt if prompt else 0.0,
        "acceptance": stats.accepted_tokens / stats.drafted_tokens if stats.drafted_tokens else 0.0,
        "bandwidth": info.bandwidth or None, "roofline_share": share(stats.bytes_per_second, info.bandwidth),
    }
