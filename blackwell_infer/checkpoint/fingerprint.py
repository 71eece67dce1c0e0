"""Which model this is, without reading all of it: what saved caches are checked against."""
from __future__ import annotations

import hashlib
import os
from pathlib import Path

from blackwell_infer.checkpoint.reader import Checkpoint
from blackwell_infer.errors import CheckpointError

HEAD = 1 << 20
"""Bytes read from the start of each file, where headers are"""
SAMPLES, SAMPLE = 512, 4096
"""Pieces read from all over a file: matrices of large models take more than the gaps between them"""


def fingerprint(checkpoint: Checkpoint) -> str:
    """A digest of configuration, names, types, shapes, and samples of the files. Small files are read whole.

    CheckpointError if a file cannot be read any more.
    """
    found = hashlib.blake2b(digest_size=32)
    found.update(repr(sorted((key, repr(value)) for key, value in checkpoint.config.items())).encode())
    tensors = sorted(checkpoint.tensors.values(), key=lambda t: t.name)
    found.update(repr([(t.name, t.shape, t.format, t.nbytes) for t in tensors]).encode())
    for path in sorted({t.file for t in tensors}):
        try:
            with Path(path).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                found.update(f"{Path(path).name} {size}".encode() + file.read(HEAD))
                gap = max((size - HEAD) // SAMPLES, SAMPLE)
                for at in range(HEAD, size, gap):
                    file.seek(at)
                    found.update(file.read(SAMPLE))
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    return found.hexdigest()
