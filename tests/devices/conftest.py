"""Every test here runs on the CPU, which proves the test, and on a GPU where one is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

ABSENT = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
GPU: Any = pytest.param("cuda", marks=[pytest.mark.cuda, ABSENT])


@pytest.fixture(params=["cpu", GPU])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the job trains."""
    return torch.device(request.param)
