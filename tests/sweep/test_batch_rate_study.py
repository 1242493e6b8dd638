"""A study says of a known law what is true of it."""

import math
from pathlib import Path

import numpy as np
import pytest

from cases import Truth, made_up, raced
from rightbatch.plan.choice import Choice, choose
from rightbatch.sweep.batch_rate_study import Study, study_of

TRUTH = Truth(critical=64.0, lr_max=0.2)
SETTINGS = [(b, f * TRUTH.best_lr(b)) for b in (8, 32, 128, 512) for f in (0.5, 1, 2)]


@pytest.fixture(scope="module")
def chosen() -> Choice:
    return choose(raced(made_up(), TRUTH, SETTINGS * 2, scatter=0.03))


def test_the_best_and_the_law(chosen: Choice) -> None:
    """24 lanes of scatter 3 %, seed 0: N and the best rates within 30 %."""
    study = study_of(chosen)
    assert study.best is not None
    assert study.best.batch_size == 32  # of the four, soonest: sqrt(64 * 4) = 16
    assert study.best.seconds.low < study.best.seconds.high
    assert study.doubts == chosen.doubts
    assert study.critical_batch.value == pytest.approx(64, rel=0.3)
    rates = {r.batch_size: r for r in study.best_rates}
    for size in (8, 32, 128, 512):
        assert rates[size].lr.value == pytest.approx(TRUTH.best_lr(size), rel=0.3)
    examples = 64 * TRUTH.steps(64, TRUTH.best_lr(64))
    assert rates[64].examples.value == pytest.approx(examples, rel=0.2)


def test_contours_hold_what_costs_so_much_more(chosen: Choice) -> None:
    """At the edge of a contour the law itself takes so much more, rates to 5 %."""
    study = study_of(chosen)
    law = chosen.laws.rate
    contours = {(c.of, c.overhead): c for c in study.contours}
    twice = contours["examples", 1.0]
    assert max(twice.batch_sizes) <= study.critical_batch.value
    assert 2 * max(twice.batch_sizes) > study.critical_batch.value
    assert set(contours["examples", 0.2].batch_sizes) < set(twice.batch_sizes)
    fewest = math.exp(law.level) * study.critical_batch.value
    for size, lr in zip(twice.batch_sizes, twice.lr_high, strict=True):
        steps = law.log_steps(np.array([float(size)]), np.array([lr]))[0]
        more = size * math.exp(law.level + steps) / fewest
        assert 1.6 < more <= 2.0
    assert contours["time", 0.2].batch_sizes


def test_kept_and_read_again(chosen: Choice, tmp_path: Path) -> None:
    study = study_of(chosen)
    study.save(tmp_path / "study.json")
    again = Study.load(tmp_path / "study.json")
    assert again.sentences == study.sentences
    assert again.race == study.race
    assert "B = 32" in repr(again)


def test_nothing_at_the_target_is_said() -> None:
    found = raced(made_up(), TRUTH, SETTINGS, seconds=0.05)
    study = study_of(choose(found))
    assert study.best is None
    assert study.best_rates == study.contours == ()
    assert study.sentences == ("Of 12 runs 0 came to the target.",)


def test_a_best_that_was_seen_once_is_not_sure() -> None:
    study = study_of(choose(raced(made_up(), TRUTH, SETTINGS, scatter=0.03)))
    assert study.best is not None
    assert study.best.runs == 1
    assert not study.decided
    assert study.sentences[1].startswith("Not sure: ")
