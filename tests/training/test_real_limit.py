"""Memory that really runs out: torch's CPU allocator under a limit of the kernel."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parents[1]
MIB = 1 << 20


def run(more: int, micro: int, out: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(HERE / "limited_memory.py"), str(more), str(micro), out],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        # Freed memory is given back at once, or the limit counts what nobody uses.
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "MALLOC_MMAP_THRESHOLD_": "65536",
            "MALLOC_ARENA_MAX": "1",
        },
    )
    assert done.returncode == 0, done.stderr[-1500:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_DATA of Linux")
def test_a_real_limit_is_survived_and_changes_nothing(tmp_path: Path) -> None:
    """Whole it needs some 60 MiB for activations, beside 100 MiB for Adam's state.

    How much of a process counts differs by machine, so the limit comes down until it is
    met: beyond 8 MiB lower not even Adam's state would fit.
    """
    free = run(0, 0, tmp_path / "free.pt")
    assert free["retries"] == [0] * 5
    limits = range(112, 88, -4)
    tried = (run(more * MIB, 0, tmp_path / "limited.pt") for more in limits)
    limited = next(found for found in tried if sum(found["retries"]))
    assert limited["steps"] == [5]
    assert "DefaultCPUAllocator" in limited["heard"][0]
    whole, pieces = (
        torch.load(tmp_path / "free.pt"),
        torch.load(tmp_path / "limited.pt"),
    )
    assert (whole - pieces).norm() <= 1e-6 * whole.norm()
