"""Caveats: what a plan does not hold is said, and nothing that does not apply."""

import math
from dataclasses import replace

import pytest

from cases import Truth, made_up, raced
from rightbatch.measure.measurements import Measurements
from rightbatch.plan.caveats import caveats
from rightbatch.plan.choice import choose

TRUTH = Truth(critical=100, least=500)
TRIED = [(64, 0.1), (16, 0.02), (16, 0.04), (32, 0.03), (32, 0.06)]


def said(found: Measurements) -> str:
    return " ".join(caveats(choose(found)))


def test_without_a_race_it_is_said() -> None:
    assert "No race was run" in said(made_up())
    assert "No race" not in said(raced(made_up(critical=100), TRUTH, TRIED))


@pytest.mark.parametrize("goal", ["min", "max"])
def test_a_target_that_was_not_reached_is_told_with_the_best_seen(goal: str) -> None:
    """Also where a lane diverged: its last metric is no number."""
    wild = replace(TRUTH, edge=4.0)
    tried = [(64, 1.0), *TRIED]
    found = raced(made_up(critical=100), wild, tried, seconds=6.0, goal=goal)
    assert found.race is not None
    metrics = [m for lane in found.race.lanes for m in lane.metrics]
    assert any(math.isnan(m) for m in metrics)
    best = (max if goal == "max" else min)(m for m in metrics if not math.isnan(m))
    target = "-1" if goal == "max" else "1"
    text = said(found)
    assert f"the target {target} was not reached, best {best:.3g}" in text
    assert "nan" not in text
    assert "of a run of" in text


def test_whole_runs_need_no_caveat_of_their_length() -> None:
    assert caveats(choose(raced(made_up(critical=100), TRUTH, TRIED))) == ()


def test_without_a_target_the_length_is_presumed() -> None:
    found = raced(made_up(critical=100), TRUTH, TRIED, seconds=6.0, target=False)
    text = said(found)
    assert "the job has no target" in text
    assert "of a run taken as" in text
    assert found.race is not None
    slow = replace(found, race=replace(found.race, metric="held-out loss"))
    slow = replace(slow, job=replace(slow.job, target=1.0))
    assert "raced by held-out loss, not to the target" in said(slow)


def test_noise_that_the_runs_contradict_is_told() -> None:
    """Measured ten times too large: the runs say otherwise, and they decide."""
    tried = [(b, TRUTH.best_lr(b) * off) for b in (8, 32, 128) for off in (0.5, 1, 2)]
    text = said(raced(made_up(critical=1000), TRUTH, [(64, 0.1), *tried]))
    assert "Gradient noise alone would put the critical batch at" in text
    assert "and they decide" in text
    right = said(raced(made_up(critical=100), TRUTH, [(64, 0.1), *tried]))
    assert "Gradient noise" not in right


def test_without_noise_it_is_said() -> None:
    found = replace(raced(made_up(critical=100), TRUTH, TRIED), noise=())
    assert "Gradient noise was not measured" in said(found)
