"""Partitions of a GPU's multiprocessors (SMs): disjoint sets, each with a queue of its own, over the same memory.

A partition is a green context of the CUDA driver. It limits where the work of its stream runs and owns nothing else:
memory and code belong to the GPU's primary context, which stays current in every thread, so any queue reads and writes
what another one allocated. Queues run beside each other; `CudaQueue.follow` orders one after another. Memory of a
step's arena is the exception: its queue reuses it in its own order, so hand arrays from outside steps to other queues.
Work of the queue that was opened first still runs on all SMs, those of the partitions too.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from blackwell_infer.device.cuda import CudaQueue
from blackwell_infer.errors import DeviceError
from blackwell_infer.log import logger

EXACT_SPLIT = 13010
"""The driver version (CUDA 13.1) from which one split gives groups of different sizes (cuDevSmResourceSplit); before,
all groups of a split have one size (cuDevSmResourceSplitByCount), and no group can be split again."""


class Capacity(msgspec.Struct, frozen=True):
    """What can be partitioned: the `total` SMs of the GPU `name`, in steps of `step`, at least `smallest` at a time."""

    name: str
    total: int
    smallest: int
    step: int


def capacity(queue: CudaQueue) -> Capacity:
    """What the GPU of `queue` offers. DeviceError if its driver has no green contexts."""
    sm = resources(queue)
    return Capacity(named(queue), sm.sm_count, max(sm.min_partition_size, 1), max(sm.coscheduled_alignment, 1))


def plan(whole: Capacity, counts: Sequence[int | None]) -> tuple[int, ...]:
    """SMs per partition: every count in whole steps, rounded up; None, as the last of several, takes what is left.

    DeviceError gives the numbers if a count is not positive or the partitions need more SMs than there are.
    """
    wanted = ", ".join("the rest" if n is None else str(n) for n in counts)
    rest = len(counts) > 1 and counts[-1] is None
    asked = [n for n in (counts[:-1] if rest else counts) if n is not None and n > 0]
    if not asked or len(asked) + rest != len(counts):
        raise DeviceError(f"{whole.name}: partitions of [{wanted}] SMs: give positive numbers; only the last of "
                          "several may be None, which takes the rest")
    sizes = tuple(-(-max(n, whole.smallest) // whole.step) * whole.step for n in asked)
    left = whole.total - sum(sizes)
    if left < rest:
        raise DeviceError(f"{whole.name}: partitions of [{wanted}] SMs need {sum(sizes) + rest} (in steps of "
                          f"{whole.step}, at least {whole.smallest}), {whole.total} exist: ask for fewer or smaller")
    return (*sizes, left) if rest else sizes


def open_partitions(queue: CudaQueue, counts: Sequence[int | None]) -> tuple[CudaQueue, ...]:
    """One queue per count, on disjoint SMs of the GPU of `queue`; `sm_count` of each is what it really has.

    Counts are rounded as `plan` says, and the log tells if that gave more than asked. Close each queue to give its SMs
    back; the order does not matter, nor whether `queue` is closed before. DeviceError if the driver has no green
    contexts, if there are too few SMs, or if the driver refuses the split, with its reason; nothing stays open then.
    """
    from cuda.core import ContextOptions

    whole = capacity(queue)
    sizes = plan(whole, counts)
    opened: list[CudaQueue] = []
    try:
        for part in split(queue, whole, sizes, rest=counts[-1] is None):
            context = queue.driver.device.create_context(ContextOptions(resources=part))
            opened.append(CudaQueue(queue.driver.device.device_id, queue.arch, queue.builder, context))
    except Exception as error:
        for q in opened:
            q.close()
        if isinstance(error, DeviceError):
            raise
        raise refused(whole, sizes, error) from error
    for asked, q in zip(counts, opened, strict=True):
        if asked not in (None, q.sm_count):
            logger.info("%s: a partition of %d SMs was asked for and has %d", whole.name, asked, q.sm_count)
    return tuple(opened)


def split(queue: CudaQueue, whole: Capacity, sizes: tuple[int, ...], rest: bool) -> list[list[Any]]:
    """The SM resources of each partition, all of one split: only those are disjoint, and only those may be joined.

    With `rest` the last partition is what the groups of the split leave.
    """
    from cuda.core import SMResourceOptions

    groups_of = sizes[:-1] if rest else sizes
    if queue.driver.version >= EXACT_SPLIT:
        # Backfill: small GPUs have fewer SMs that can share a cluster than SMs, and no kernel here needs clusters.
        options, shares = SMResourceOptions(count=list(groups_of), backfill=True), [1] * len(groups_of)
    else:
        unit = math.gcd(*groups_of)
        shares = [n // unit for n in groups_of]
        options = SMResourceOptions(count=[unit] * sum(shares))
    try:
        groups, left = resources(queue).split(options)
    except Exception as error:
        raise refused(whole, sizes, error) from error
    if len(groups) < sum(shares):
        raise refused(whole, sizes, f"it made {len(groups)} of {sum(shares)} groups")
    starts = [sum(shares[:i]) for i in range(len(shares))]
    parts = [groups[start:start + share] for start, share in zip(starts, shares, strict=True)]
    return [*parts, [left]] if rest else parts


def resources(queue: CudaQueue) -> Any:
    """All SMs of the GPU, as cuda-core describes them. DeviceError if the driver cannot partition them."""
    queue.driver.bind()
    try:
        return queue.driver.device.resources.sm
    except Exception as error:
        raise DeviceError(f"{named(queue)}: the driver has no green contexts, which partitions of SMs need: {error}; "
                          "install NVIDIA driver 580 or newer, or use one queue for the whole GPU") from error


def refused(whole: Capacity, sizes: tuple[int, ...], reason: object) -> DeviceError:
    """The error of a split that the driver does not make."""
    return DeviceError(f"{whole.name}: the driver refuses partitions of {list(sizes)} of its {whole.total} SMs: "
                       f"{reason}; ask for fewer or smaller ones")


def named(queue: CudaQueue) -> str:
    """How messages name the GPU of a queue."""
    return f"GPU {queue.driver.device.device_id} ({queue.driver.device.name})"
