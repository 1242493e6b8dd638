"""The batch stays where memory shrinks the micro-batch; ranks begin with the same."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import rightbatch as rb
from cases import made_up
from launching import TESTS, torchrun
from rightbatch.tuning.find_batch_size import find_batch_size

SHRINKS = pytest.mark.filterwarnings("ignore:micro-batches of:UserWarning")


def limited(most: int, *given: Any, **options: Any) -> list[tuple[int, int]]:
    """Every call of a training that fits up to so many examples at once."""
    calls = []

    @find_batch_size(*given, **options)
    def training(micro_batch: int, accumulation: int, label: str) -> str:
        calls.append((micro_batch, accumulation))
        if micro_batch > most:
            raise torch.OutOfMemoryError("emulated")
        return label

    assert training("kept") == "kept"
    return calls


@SHRINKS
@pytest.mark.parametrize(("batch", "most"), [(256, 40), (90, 5), (7, 5), (1, 1)])
def test_every_try_makes_the_same_batch(batch: int, most: int) -> None:
    calls = limited(most, batch)
    assert all(micro * accumulation == batch for micro, accumulation in calls)
    assert calls[0] == (batch, 1)
    assert calls[-1][0] <= most
    assert all(
        2 * later <= sooner for (sooner, _), (later, _) in itertools.pairwise(calls)
    )


def test_it_says_what_it_does() -> None:
    with pytest.warns(UserWarning, match=r"of 64 do not fit: 32 .* stays 64"):
        assert limited(32, 64) == [(64, 1), (32, 2)]
    assert limited(32, 60, starting_micro_batch=25) == [(20, 3)]


def test_a_plan_says_the_batch_where_it_is_decided(tmp_path: Path) -> None:
    decided = replace(rb.decide(made_up()).plan, decided=True, batch_size=48)
    decided = replace(decided, micro_batch=16)
    decided.save(tmp_path / "plan.json")
    assert limited(64, plan=tmp_path / "plan.json") == [(16, 3)]
    undecided = replace(decided, decided=False, micro_batch=40)
    with pytest.warns(UserWarning, match="undecided, so the batch is today's 64"):
        assert limited(64, plan=undecided) == [(32, 2)]


def test_examples_that_see_each_other_are_not_split() -> None:
    plan = replace(rb.decide(made_up()).plan, decided=True, micro_batch=16)
    plan = replace(plan, batch_size=48, coupled_batch=16)
    with pytest.raises(rb.SettingError, match="cannot be smaller"):
        limited(8, plan=plan)


def test_a_job_is_tuned_and_its_memory_law_begins() -> None:
    """Two seconds decide nothing: today's batch, all of which fits."""
    with pytest.warns(UserWarning, match="undecided, so the batch is today's 16"):
        assert limited(64, job=rb.load_job("digits"), budget_s=2) == [(16, 1)]


@SHRINKS
def test_what_cannot_be_done_is_refused() -> None:
    with pytest.raises(rb.SettingError, match="one says the batch"):
        find_batch_size()
    with pytest.raises(rb.SettingError, match="not even one example"):
        limited(0, 8)

    @find_batch_size(8)
    def broken(micro_batch: int, accumulation: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):  # is not memory: no second try
        broken()


def test_ranks_that_have_not_joined_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(rb.SettingError, match="before they have joined"):
        limited(8, 8)


@pytest.mark.slow
def test_ranks_agree_and_learn_what_to_start_with(tmp_path: Path) -> None:
    """One would take 16 and one 8, which does not fit there; 4 do."""
    done = torchrun(TESTS / "found_batch_ranks.py", tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads((tmp_path / f"rank-{r}.json").read_text()) for r in (0, 1)]
    assert rows[0] == [[[8, 2], [4, 4]], ""]  # 32 over two ranks
    assert rows[1][0] == rows[0][0]
    assert "starting_micro_batch=4" in rows[1][1]
    assert "the batch stays 32" in rows[1][1]
