"""A run leaves its model as a plain state dict: the last one, or the best."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import rightbatch as rb
from cases import regression_job
from rightbatch.training.kept_weights import is_best


def job_that_gets_worse() -> rb.Job:
    """Its held-out value falls for three evaluations, and then rises."""
    values = iter([3.0, 2.0, 1.0, *(float(k) for k in range(2, 500))])
    job = dataclasses.replace(regression_job(), target=None)
    return dataclasses.replace(job, evaluate=lambda model: next(values))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "weights.pt", weights_only=True)


def test_the_last_model_is_kept(tmp_path: Path) -> None:
    run = rb.train(regression_job(), examples=2_000, out=tmp_path)
    kept = weights(tmp_path)
    assert kept.keys() == run.model.state_dict().keys()
    assert all(torch.equal(v, kept[k]) for k, v in run.model.state_dict().items())


def test_the_best_model_is_kept(tmp_path: Path) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    job = job_that_gets_worse()
    evaluate = job.evaluate
    assert evaluate is not None

    def noted(model: nn.Module) -> float:
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        return evaluate(model)

    job = dataclasses.replace(job, evaluate=noted)
    run = rb.train(job, examples=2_000, out=tmp_path, keep="best")
    assert len(run.rows) > 3
    kept = weights(tmp_path)
    assert all(torch.equal(v, kept[k]) for k, v in seen[2].items())
    assert not all(torch.equal(v, kept[k]) for k, v in seen[-1].items())


def test_a_resumed_run_does_not_take_a_worse_model_for_the_best(tmp_path: Path) -> None:
    job = job_that_gets_worse()
    rb.train(job, examples=2_000, out=tmp_path, keep="best")
    before = weights(tmp_path)
    rb.train(
        job, examples=3_000, out=tmp_path, keep="best", resume=True, accept_changes=True
    )
    assert all(torch.equal(v, before[k]) for k, v in weights(tmp_path).items())


def test_best_needs_something_to_compare_by() -> None:
    job = dataclasses.replace(regression_job(), evaluate=None, target=None)
    with pytest.raises(rb.SettingError, match="keep must be"):
        rb.train(job, examples=100, keep="best")


def test_where_higher_is_better(tmp_path: Path) -> None:
    run = rb.train(job_that_gets_worse(), examples=2_000, out=tmp_path)
    rising = dataclasses.replace(run.rows[0], metric=math.inf)
    goal = dataclasses.replace(regression_job(), target=None, goal="max")
    assert is_best(goal, [*run.rows, rising])
    assert not is_best(regression_job(), [*run.rows, rising])
