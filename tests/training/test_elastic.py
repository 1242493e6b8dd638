"""The example of processes that come and go, each time killed as hard as can be."""

import runpy
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from launching import TESTS, environment
from rightbatch.training.checkpoint import Checkpoints

EXAMPLE = TESTS.parent / "examples" / "elastic.py"


def weights(folder: Path) -> torch.Tensor:
    newest = Checkpoints(folder / "checkpoints").newest()
    assert newest is not None
    return torch.cat([p.flatten() for p in newest[1]["model"].values()])


def killed(folder: Path, ranks: int) -> None:
    """So many processes go on, until the last is killed behind its next checkpoint.

    They are started as torchrun does, which would take longer than they.
    """
    began, processes = time.time(), []
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for rank in range(ranks):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        told = environment() | {name: str(value) for name, value in place.items()}
        command = [sys.executable, str(EXAMPLE), str(folder)]
        processes.append(subprocess.Popen(command, env=told, stderr=subprocess.PIPE))
    while time.time() < began + 120 and all(p.poll() is None for p in processes):
        marks = [p.stat().st_mtime for p in folder.glob("checkpoints/*.json")]
        if marks and max(marks) > began:
            processes[-1].kill()
            break
        time.sleep(0.01)
    else:
        pytest.fail("no checkpoint was made before the end")
    for process in processes:  # the others end too, where they miss it
        _, error = process.communicate(timeout=60)
        assert process.returncode != 0, error[-2000:]


@pytest.mark.slow
def test_one_then_three_then_one_process_train_the_same_model(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """1 -> 3 -> 1 processes, two of them killed, against one that runs through."""
    folder, whole = tmp_path / "elastic", tmp_path / "whole"
    killed(folder, 1)
    killed(folder, 3)
    output = {}
    for place in (folder, whole):  # alone, in this process
        monkeypatch.setattr(sys, "argv", ["elastic.py", str(place)])
        runpy.run_path(str(EXAMPLE), run_name="__main__")
        output[place] = capsys.readouterr().out
    resumed, alone = output[folder], output[whole]
    assert "resumed None" not in resumed
    assert "batch 128" in resumed
    assert "10 whole epochs: each exactly once\n0 lost, 0 repeated" in resumed
    assert alone.split(", resumed")[0] == resumed.split(", resumed")[0]  # the same end
    difference = weights(folder) - weights(whole)
    assert difference.norm() <= 1e-5 * weights(whole).norm()
    assert len(EXAMPLE.read_text().splitlines()) < 60
