"""The builds of a kernel that the PTX interpreter runs."""
from __future__ import annotations

import pytest

BUILDS = [pytest.param("sm_90a", marks=pytest.mark.slow), "sm_120f"]
"""What is built for sm_90a runs on a GPU, too (tests/gpu): here it is left to `make slow`"""
