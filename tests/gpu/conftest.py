"""The GPU that the tests of this folder share; they skip, saying why, where there is none."""
from __future__ import annotations

from collections.abc import Iterator

import pytest

from blackwell_infer.device.cuda import CudaQueue
from blackwell_infer.device.open import open_queue
from blackwell_infer.errors import DeviceError


@pytest.fixture(scope="session")
def queue() -> Iterator[CudaQueue]:
    """A queue on the first usable GPU, for all tests."""
    try:
        queue = open_queue("cuda")
    except DeviceError as error:
        pytest.skip(str(error))
    yield queue
    queue.close()
