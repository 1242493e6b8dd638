"""Ranks as groups: 2 and 4 gloo processes against direct computation."""

import json
from pathlib import Path
from typing import Any

import pytest

from launching import TESTS, torchrun


def report(kind: str, ranks: int, folder: Path) -> dict[str, Any]:
    out = folder / "found.json"
    done = torchrun(TESTS / "ranks.py", kind, out, cwd=folder, ranks=ranks)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(out.read_text())
    return found


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("kind", ["ddp", "fsdp", "ddp, adam", "ddp, accumulated"])
def test_ranks_give_the_direct_computation(
    kind: str, ranks: int, tmp_path: Path
) -> None:
    found = report(kind, ranks, tmp_path)
    assert found["source"] == "ranks"
    steps = 10 if kind == "ddp, adam" else 5
    assert found["steps"] == steps
    assert found["batch"] == 6 * ranks
    assert found["examples"] == steps * 6 * ranks
    assert found["signal"] == pytest.approx(found["true signal"], rel=1e-4)
    assert found["noise"] == pytest.approx(found["true noise"], rel=1e-4)
    values = [value for value, *_ in found["everyone"]]
    assert len(set(values)) == 1  # every rank reads the same
    if kind == "fsdp":
        assert set(found["layers"]) >= {"0", "2"}
    if kind == "ddp, adam":
        assert "sign" in found["metrics"]


def test_ranks_agree_on_what_to_measure(tmp_path: Path) -> None:
    found = report("ddp, budget", 2, tmp_path)
    first, second = (measured for _, measured, _ in found["everyone"])
    assert first == second
    assert 4 <= first[-1] < 60


def test_two_exchanges_in_a_step_give_nothing(tmp_path: Path) -> None:
    found = report("ddp, synchronised twice", 2, tmp_path)
    assert found["steps"] == 0
    assert "more than once" in found["problem"]


@pytest.mark.parametrize(
    "kind", ["ddp, broken exchange", "ddp, broken pass", "fsdp, broken exchange"]
)
def test_an_error_on_one_rank_ends_measuring_on_all(kind: str, tmp_path: Path) -> None:
    # Nobody waits for anybody: the run comes to its end.
    found = report(kind, 2, tmp_path)
    values = {(value, tuple(measured)) for value, measured, _ in found["everyone"]}
    assert len(values) == 1
    problems = [problem for *_, problem in found["everyone"]]
    assert problems[0] == "an error on another rank"
    assert problems[1].startswith("KeyError: 'broken on purpose', ranks.py:")
    assert found["steps"] < 3


def test_a_metric_that_fails_on_one_rank_is_measured_on_none(tmp_path: Path) -> None:
    found = report("ddp, broken metric", 2, tmp_path)
    assert found["steps"] == 15
    assert found["metrics"] == []
    assert not found["problem"]
