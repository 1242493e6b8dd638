"""The example of processes that come and go, each time killed as hard as can be."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from launching import TESTS, environment, launched
from rightbatch.training.checkpoint import Checkpoints

EXAMPLE = TESTS.parent / "examples" / "elastic.py"


def weights(folder: Path) -> torch.Tensor:
    newest = Checkpoints(folder / "checkpoints").newest()
    assert newest is not None
    return torch.cat([p.flatten() for p in newest[1]["model"].values()])


def run(folder: Path, ranks: int, *, kill: bool = False) -> str:
    """What it prints; or a process of it is killed behind its next checkpoint."""
    began = time.time()
    process = subprocess.Popen(
        launched(EXAMPLE, folder, ranks=ranks),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while kill and process.poll() is None:
        marks = [p.stat().st_mtime for p in folder.glob("checkpoints/*.json")]
        if marks and max(marks) > began:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            os.kill(int(children.read_text().split()[-1]), signal.SIGKILL)
            break
        time.sleep(0.01)
    output, error = process.communicate(timeout=200)
    assert (process.returncode != 0) == kill, error[-2000:]
    return output


@pytest.mark.slow
def test_two_then_four_then_one_process_train_the_same_model(tmp_path: Path) -> None:
    """2 -> 4 -> 1 processes, two of them killed, against one that runs through."""
    folder, whole = tmp_path / "elastic", tmp_path / "whole"
    run(folder, 2, kill=True)
    run(folder, 4, kill=True)
    output = run(folder, 1)
    assert "resumed None" not in output
    assert "batch 128" in output
    assert "10 whole epochs: each exactly once\n0 lost, 0 repeated" in output
    alone = run(whole, 1)
    assert alone.split(", resumed")[0] == output.split(", resumed")[0]  # the same end
    difference = weights(folder) - weights(whole)
    assert difference.norm() <= 1e-5 * weights(whole).norm()
    assert len(EXAMPLE.read_text().splitlines()) < 60
