"""Options shared by all tests, and where data outside the project may be found."""
from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("suite", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("suite")

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tiny", metavar="DIR", type=Path, default=None,
                     help="folder of further reference checkpoints (one folder each, with golden.npz) to test against")
    parser.addoption("--refresh-traces", action="store_true", help="write the golden launch traces anew")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`golden_folder`: every reference checkpoint, those of tests/data and those of --tiny."""
    if "golden_folder" in metafunc.fixturenames:
        tiny = metafunc.config.getoption("tiny")
        places = [ROOT / "tests" / "data", *([tiny] if tiny else [])]
        found = [p.parent for place in places for p in sorted(place.glob("*/golden.npz"))]
        metafunc.parametrize("golden_folder", found, ids=[f"{p.parent.name}-{p.name}" for p in found], scope="module")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Public checkpoints, texts and vocabularies that lie outside the project; skips where they are absent."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent")
    return SHARED
