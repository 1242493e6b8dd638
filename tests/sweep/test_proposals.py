"""What is tried next leads to the best of a known law; nothing hopeless goes on."""

from dataclasses import replace

import pytest

from cases import Truth, a_race, made_up
from rightbatch.plan.laws import laws_of, rate_prior
from rightbatch.plan.options import options_within
from rightbatch.sweep.proposals import (
    DOUBLED_AFTER,
    FIRST,
    longest_s,
    proposal,
)
from rightbatch.tuning.candidates import race_settings

TRIALS = 20


@pytest.mark.parametrize("off", [1 / 16, 1.0, 16.0])
def test_twenty_trials_find_a_setting_near_the_best(off: float) -> None:
    """Today's rate 16 x off either way; lanes scatter by 5 %; seeds 0 to 19."""
    truth, found = Truth(edge=4.0), made_up()
    job = replace(found.job, lr=off * truth.best_lr(64), target=1.0)
    found = replace(found, job=job)
    laws = laws_of(found)
    settings = race_settings(found, laws, options_within(laws, 100_000, 1e12))
    prior = rate_prior(found, laws.noise, raced=True)
    step_s = {s.batch_size: s.step_s for s in settings}
    tried = [(settings[0].batch_size, settings[0].lr)]
    best_s = min(
        truth.steps(b, truth.best_lr(b)) * seconds for b, seconds in step_s.items()
    )
    while len(tried) < TRIALS:
        race = a_race(
            truth, tried, scatter=0.05, step_s=step_s.__getitem__, seconds=3 * best_s
        )
        setting = proposal(race, prior, settings, len(tried))
        tried.append((setting.batch_size, setting.lr))
    least_s = min(truth.steps(b, lr) * step_s[b] for b, lr in tried)
    assert least_s < 1.1 * best_s  # rates are half an octave apart: 6 % at the most


def test_patience() -> None:
    truth = Truth()
    race = a_race(truth, [(64, 0.1), (64, 0.05), (64, 0.001)], seconds=10.0)
    best_s = min(x.seconds for x in race.lanes if x.end == "target")
    assert longest_s(race, 1e-3) == 2 * best_s
    none = a_race(truth, [(64, 0.1)] * 4 * DOUBLED_AFTER, seconds=0.1)
    assert longest_s(none, 1.0) == 2 * FIRST
    assert longest_s(replace(none, lanes=()), 1.0) == FIRST
