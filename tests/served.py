"""A server in a thread, for tests."""
from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from blackwell_infer import LLM
from blackwell_infer.serve.app import make_app
from blackwell_infer.serve.host import Host
from blackwell_infer.serve.run import listening


@contextmanager
def serving(host: Host) -> Iterator[str]:
    """The address of a server that runs in a thread."""
    listener = listening("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(make_app(host), log_config=None, lifespan="off",
                                           timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def idle(llm: LLM, seconds: float) -> bool:
    """Whether the engine comes to rest within so many seconds, holding no pages for anybody."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        stats = llm.stats()
        if not stats.running and not stats.waiting and not stats.pages_used:
            return True
        time.sleep(0.05)
    return False
