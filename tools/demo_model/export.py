#!/usr/bin/env python3
"""Store the trained model as it ships: NVFP4 in ModelOpt's layout (or another layout of tools/quantize_hf.py).

    python -m tools.demo_model.export TRAINED OUT
    python -m tools.demo_model.export TRAINED OUT-FP8 --layout fp8-tensor

Quantised: all projections of attention, Gated DeltaNet, experts, shared experts and the MTP layer. The embedding (which
is the head too), the router, gates of one to a few rows, mtp.fc, convolution and norms stay as they are. Prints the
sizes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from blackwell_infer.errors import BlackwellInferError
from tools.quantize_hf import LAYOUTS, convert

LIMIT = 12_000_000
"""bytes that the folder may take"""


def export(trained: Path, out: Path, layout: str = "modelopt-nvfp4") -> dict[str, int]:
    """Bytes of every written file."""
    convert(trained, out, layout)
    return {path.name: path.stat().st_size for path in sorted(out.iterdir())}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("trained", type=Path, help="folder that tools.demo_model.train wrote")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--layout", choices=LAYOUTS, default="modelopt-nvfp4")
    args = parser.parse_args(argv)
    try:
        sizes = export(args.trained, args.out, args.layout)
    except (BlackwellInferError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    for name, size in sizes.items():
        print(f"{size:>10} {name}")
    total = sum(sizes.values())
    print(f"{total:>10} bytes in all")
    if total > LIMIT:
        print(f"export: more than {LIMIT} bytes; too large to ship", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
