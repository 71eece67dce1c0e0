"""Files mapped into memory: read-only, shared with the page cache, alive as long as any view of them."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from blackwell_infer.errors import CheckpointError


def map_file(path: Path) -> np.ndarray[Any, Any]:
    """The whole file as uint8 [bytes], read-only. CheckpointError if it is missing, unreadable, no file, or empty."""
    try:
        data = np.memmap(path, np.uint8, mode="r")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; check the path, or download the missing part") from error
    except IsADirectoryError as error:
        raise CheckpointError(f"{path}: is a folder where a file was expected") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: the file is empty; download it again") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    return data.view(np.ndarray)


def shorten(name: str) -> str:
    """A name from a file as it may stand in a message: quoted, printable, of bounded length."""
    return ascii(name if len(name) <= 80 else name[:77] + "...")
