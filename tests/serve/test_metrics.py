"""/v1/engine and /metrics while the demo model answers."""
from __future__ import annotations

import httpx
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from blackwell_infer import LLM, Sampling
from blackwell_infer.serve.host import Host

LIVE = ("running", "waiting", "pages_used", "pages_total", "prefix_hit_share", "acceptance", "step_bytes",
        "bytes_per_second", "roofline_share", "bandwidth")


def values(address: str) -> dict[str, float]:
    families = text_string_to_metric_families(httpx.get(address + "/metrics").text)
    return {sample.name: sample.value for family in families for sample in family.samples}


def test_bytes_of_steps_are_live(address: str, llm: LLM) -> None:
    llm.generate("One, two, three,", Sampling(max_tokens=12, temperature=0))
    told, counted, info = httpx.get(address + "/v1/engine").json(), values(address), llm.info()
    assert set(LIVE) <= told.keys()
    assert info.decode_bytes < told["step_bytes"] < 2 * info.decode_bytes + 4096 * info.kv_token_bytes
    assert told["bytes_per_second"] > 0 and counted["bwinfer_bytes_per_second"] > 0
    assert counted["bwinfer_step_bytes"] == pytest.approx(told["step_bytes"])
    assert told["bandwidth"] is told["roofline_share"] is None and "bwinfer_roofline_share" not in counted


def test_the_share_of_a_known_bandwidth(address: str, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.llm.generate("One, two, three,", Sampling(max_tokens=4, temperature=0))
    info = msgspec.structs.replace(host.llm.info(), bandwidth=10**12)
    monkeypatch.setattr(host.llm, "info", lambda: info)
    told = httpx.get(address + "/v1/engine").json()
    assert told["roofline_share"] == pytest.approx(told["bytes_per_second"] / 1e12) and told["bandwidth"] == 10**12
    assert values(address)["bwinfer_roofline_share"] == pytest.approx(told["roofline_share"])
