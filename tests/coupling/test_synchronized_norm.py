"""Statistics over 2 and 4 gloo processes with uneven batches are those of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rightbatch as rb
from launching import TESTS, torchrun
from norm_ranks import CASES
from rightbatch.coupling.synchronized_norm import SyncBatchNorm


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What every one of 4 ranks has found: with all, and as two pairs."""
    out = tmp_path_factory.mktemp("norms") / "found.json"
    done = torchrun(TESTS / "norm_ranks.py", out, cwd=out.parent, ranks=4)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text())
    assert len(found) == 4
    return found


@pytest.mark.parametrize("ranks", ["2", "4"])
@pytest.mark.parametrize("case", CASES)
def test_ranks_are_one_process(case: str, ranks: str, of_ranks: Any) -> None:
    """Gradients after DDP, of inputs, statistics, eval; float32 leaves 1e-6."""
    limit = 1e-12 if case == "double" else 1e-6
    for found in of_ranks:
        differences = found[ranks][case]
        assert set(differences) == {"parameters", "inputs", "buffers", "eval"}
        assert max(differences.values()) <= limit, differences


def test_an_accumulator_weighs_ragged_ranks(of_ranks: Any) -> None:
    assert max(found["accumulated"] for found in of_ranks) <= 1e-6


def test_statistics_are_float32_under_autocast(of_ranks: Any) -> None:
    """Inputs are rounded to 8 bits; sums of them are not."""
    for found in of_ranks:
        assert found["autocast"]["dtype"] == "torch.bfloat16"
        assert found["autocast"]["gradient"] == "torch.float32"
        assert found["autocast"]["var"] <= 2e-3


def test_a_rank_without_examples_is_refused_on_all(of_ranks: Any) -> None:
    for found in of_ranks:
        assert "a rank has no example" in found["empty"]


@pytest.mark.parametrize("shape", [(8, 3), (8, 3, 5), (8, 3, 4, 4), (4, 3, 2, 2, 2)])
def test_alone_it_is_batchnorm(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    plain = [nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d]
    norms: list[nn.Module] = [SyncBatchNorm(3), plain[len(shape) - 2](3)]
    x = torch.randn(shape)
    outputs: list[Tensor] = [norm(x) for norm in norms]
    outputs += [norm.eval()(x) for norm in norms]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[2], outputs[3])
    assert norms[0].state_dict().keys() == norms[1].state_dict().keys()


def test_one_value_or_no_channels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        SyncBatchNorm(3)(torch.randn(1, 3))
    with pytest.raises(rb.JobError, match="examples and channels"):
        SyncBatchNorm(3)(torch.randn(3))
