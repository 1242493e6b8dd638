"""What one rank knows of another, on real processes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rightbatch as rb
from launching import TESTS, torchrun

EXPECTED = {
    "alone": {},
    "norm of a rank": {},
    "global mean": {"ranks": ["1", "train"]},
    "of rank": {"placement": ["1", "train", "eval"]},
    "drifted": {"placement": ["1", "eval"]},
    "dropped": {},
    "broken": {"refused": ["an output is not a number"]},  # on every rank
    "wrapped": {},  # rank 0's buffers are sent to all before a pass
}


@pytest.fixture(scope="module", params=[2, 4])
def results(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[Any]:
    folder = tmp_path_factory.mktemp("leaks")
    out = folder / "found.json"
    done = torchrun(TESTS / "leak_ranks.py", out, cwd=folder, ranks=request.param)
    assert done.returncode == 0, done.stderr
    return json.loads(Path(out).read_text())


def test_leaks_between_ranks_are_found_and_nothing_else(results: list[Any]) -> None:
    for of_rank in results:
        assert {name: value["leaks"] for name, value in of_rank.items()} == EXPECTED
        assert all(value["strong"] for value in of_rank.values())


def test_models_are_as_before(results: list[Any]) -> None:
    # But for the wrapped one, whose buffers DDP makes those of rank 0.
    assert all(v["kept"] for of_rank in results for v in of_rank.values())


def test_one_rank_is_refused() -> None:
    with pytest.raises(rb.SettingError, match="two ranks"):
        rb.coupling.leaks(nn.Linear(2, 2), torch.randn(4, 2), ranks=True)
