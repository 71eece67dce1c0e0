"""A server of the demo model on a port of its own."""
from __future__ import annotations

from collections.abc import Iterator

import pytest
from served import serving

from blackwell_infer import LLM
from blackwell_infer.config import ServeConfig
from blackwell_infer.serve.host import Host


@pytest.fixture(scope="session")
def llm() -> Iterator[LLM]:
    with LLM(device="numpy", max_batch=4, max_queue=8) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def host(llm: LLM) -> Host:
    return Host(llm, "demo", ServeConfig(max_body=100_000))


@pytest.fixture(scope="session")
def address(host: Host) -> Iterator[str]:
    with serving(host) as found:
        yield found
