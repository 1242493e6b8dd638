"""`tune` from Python: its phases, its answer, and what it leaves as it was."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rightbatch as rb
from cases import noisy_quadratic_job, regression_job, with_target
from rightbatch.core.progress import Phase, Progress
from rightbatch.measure.energy import find_meter
from rightbatch.plan.decide import decide
from rightbatch.tuning.race import Racing
from rightbatch.tuning.tune import Tuning


class Listener(Progress):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def ended(self, phase: Phase, finished: bool) -> None:
        assert finished
        assert phase.summary
        self.heard.append(phase.name)


@pytest.fixture(scope="module")
def digits() -> tuple[Tuning, list[str]]:
    """The built-in job, from a rate a quarter of its own."""
    job, listener = rb.load_job("digits"), Listener()
    own = job.optimizer

    def slower(params: object) -> torch.optim.Optimizer:
        optimizer = own(params)  # type: ignore[operator]
        for group in optimizer.param_groups:
            group["lr"] /= 4
        return optimizer

    tuning = rb.tune(replace(job, optimizer=slower), budget_s=6, progress=listener)
    return tuning, listener.heard


def test_tune_goes_through_its_phases(digits: tuple[Tuning, list[str]]) -> None:
    tuning, heard = digits
    assert heard == ["Check the job", "Time and memory", "Gradient noise", "Race"]
    assert list(tuning.measurements.seconds or {}) == heard


def test_what_was_raced_is_recorded_and_decides(
    digits: tuple[Tuning, list[str]],
) -> None:
    tuning, _ = digits
    race, choice = tuning.measurements.race, tuning.choice
    if race is None:  # on a machine too slow for it
        assert any("No race" in limit for limit in tuning.plan.limits)
        return
    job = tuning.measurements.job
    first = race.lanes[0]
    assert (first.batch_size, first.lr, first.seed) == (
        job.batch_size,
        job.lr,
        job.seed,
    )
    assert len({(lane.batch_size, lane.lr) for lane in race.lanes}) >= 3
    assert (race.metric, race.target, race.goal) == ("evaluate", job.target, job.goal)
    # Deciding again from what was recorded is the same.
    assert decide(tuning.measurements).plan == tuning.plan
    assert tuning.plan.decided == choice.decided
    if choice.raced is not None:
        raced = {(s.batch_size, s.lr) for s in choice.raced.standings}
        assert (tuning.plan.batch_size, tuning.plan.lr) in raced
    if not tuning.plan.decided:
        assert "What would settle it" in tuning.plan.verdict


def test_what_is_decided_is_better_in_truth() -> None:
    """From a fifth of the right rate, on a job whose truth is known."""
    job = noisy_quadratic_job(0.2)
    tuning = rb.tune(job, budget_s=5)
    plan = tuning.plan
    if plan.decided:
        assert plan.lr > 0.3
        assert plan.predicted["time_vs_today"].high < 1
    assert plan.lr < 64  # beyond 2 it diverges at every batch


def test_a_job_without_evaluate_is_raced_by_held_out_loss() -> None:
    tuning = rb.tune(regression_job(examples=2000), budget_s=3)
    race = tuning.measurements.race
    assert tuning.measurements.metric == "held-out loss"
    if race is None:
        assert any("No race" in limit for limit in tuning.plan.limits)
    else:
        assert race.metric == "held-out loss"
        assert race.target is None


@pytest.mark.parametrize("given", [False, True])
def test_only_a_job_begun_anew_is_repeated_from_other_weights(
    given: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[bool] = []

    class Told(Racing):
        def __init__(self, *arguments: Any, **more: Any) -> None:
            said.append(more["from_scratch"])
            super().__init__(*arguments, **more)

    monkeypatch.setattr("rightbatch.tuning.tune.Racing", Told)
    job, path = regression_job(), tmp_path / "weights.pt"
    torch.save(job.make_model().state_dict(), path)
    rb.tune(job, budget_s=1, start=path if given else None)
    assert said == [not given]


def test_tuning_leaves_everything_as_it_was() -> None:
    """The model that was given, its mode and gradients, and all random numbers."""
    first, last = nn.Linear(5, 4), nn.Linear(4, 1)
    model = nn.Sequential(first, nn.Dropout(0.2), last).eval()
    first.bias.grad = torch.full((4,), 7.0)
    weights = [p.detach().clone() for p in model.parameters()]
    job = with_target(regression_job(examples=512, model=model), target=0.0)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    rb.tune(job, budget_s=2)
    after = (random.random(), np.random.random(), float(torch.rand(())))
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = (random.random(), np.random.random(), float(torch.rand(())))
    assert after == expected
    assert not model.training
    for before, parameter in zip(weights, model.parameters(), strict=True):
        assert torch.equal(before, parameter)
    assert first.bias.grad.tolist() == [7.0] * 4
    assert all(p.grad is None for p in last.parameters())


def test_budgets_are_refused_below_a_second() -> None:
    for budget in (0.5, float("nan"), float("inf")):
        with pytest.raises(rb.SettingError, match="budget"):
            rb.tune(regression_job(), budget_s=budget)


def test_no_meter_is_told_before_anything_is_measured() -> None:
    meter, why = find_meter(torch.device("cpu"))
    if meter is not None:
        pytest.skip("this machine counts energy")
    assert why.startswith("unavailable")
    with pytest.raises(rb.SettingError, match="neither measured nor given") as caught:
        rb.tune(regression_job(), rb.objectives.Energy(), budget_s=2)
    assert "--watts" in str(caught.value)
