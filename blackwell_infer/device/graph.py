"""A step recorded as a CUDA graph: one launch from the host instead of one per kernel.

Programmatic dependent launches become programmatic edges, so a kernel still starts while its predecessor ends.
Arguments are recorded as they stand: addresses of persistent blocks and of the arena, whose blocks never move.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from blackwell_infer.device.driver import Driver
from blackwell_infer.errors import OutOfMemoryError


class Graph:
    """What `fn` launches on `stream`, ready to run. `nbytes` of device memory are the driver's for it.

    OutOfMemoryError: no memory for the graph. DeviceError: something in `fn` cannot be recorded.
    """

    def __init__(self, driver: Driver, stream: Any, fn: Callable[[], None]) -> None:
        self._driver = driver
        self._stream = stream
        driver.bind()
        api = driver.api
        free, _ = driver.memory()
        # Relaxed: the arena may grow, and objects that die meanwhile may free memory of their own.
        relaxed = api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        driver.call(api.cuStreamBeginCapture(stream.handle, relaxed), "the capture of a step")
        try:
            fn()
        except BaseException:
            error, graph = api.cuStreamEndCapture(stream.handle)
            if error == api.CUresult.CUDA_SUCCESS:
                api.cuGraphDestroy(graph)
            raise
        graph = driver.call(api.cuStreamEndCapture(stream.handle), "the end of a step's capture")
        error, self._exec = api.cuGraphInstantiate(graph, 0)
        api.cuGraphDestroy(graph)
        if error == api.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            now, total = driver.memory()
            raise OutOfMemoryError(f"out of memory: a CUDA graph does not fit, {now} bytes of {total} are free; "
                                   "lower kv_pages or max_context")
        driver.call((error,), "making a CUDA graph")
        error, = api.cuGraphUpload(self._exec, stream.handle)
        self._open = True
        if error != api.CUresult.CUDA_SUCCESS:
            self.close()
            raise OutOfMemoryError(f"out of memory: a CUDA graph cannot be placed on the device ({error.name}); "
                                   "lower kv_pages or max_context")
        self.nbytes = max(free - driver.memory()[0], 0)

    def launch(self) -> None:
        """Queue the whole step."""
        self._driver.bind()
        (error,) = self._driver.api.cuGraphLaunch(self._exec, self._stream.handle)
        if error != self._driver.api.CUresult.CUDA_SUCCESS:
            raise self._driver.failure(error, "launch of a captured step")

    def close(self) -> None:
        """Free the graph. Idempotent."""
        if self._open:
            self._open = False
            self._driver.bind()
            self._driver.api.cuGraphExecDestroy(self._exec)
