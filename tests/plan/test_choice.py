"""The choice: the best of the race; without one, the best by the laws."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rightbatch as rb
from cases import Truth, made_up, optimum, raced, ran_to_target
from reference import relative_time
from rightbatch.measure.measurements import Lane, Measurements
from rightbatch.plan.choice import TOLERATED, Choice, choose
from rightbatch.plan.evidence import LEAST_ADVICE
from rightbatch.plan.laws import laws_of

powers = st.sampled_from([2**i for i in range(3, 11)])
Pair = tuple[int, float]
Pairs = Sequence[Pair]


def around(truth: Truth, *batches: int) -> list[tuple[int, float]]:
    """Rates about the best of every batch, none of them the best itself."""
    return [(b, truth.best_lr(b) * off) for b in batches for off in (0.3, 0.8, 1.6)]


def seconds(found: Measurements, truth: Truth, tried: Pairs) -> dict[Pair, float]:
    """What settings take to the target, in truth."""
    laws = laws_of(found)
    return {(b, lr): truth.steps(b, lr) * laws.step_s(b) for b, lr in tried}


def picked(choice: Choice) -> tuple[int, float]:
    return choice.chosen.batch_size, choice.chosen.lr


@settings(max_examples=8, deadline=None)
@given(st.floats(1e-4, 1e-1), st.floats(1e-5, 1e-2), st.floats(4, 4000), powers)
def test_without_a_race_the_choice_is_the_argmin_of_the_laws(
    t0: float, t1: float, critical: float, today: int
) -> None:
    found = made_up(t0=t0, t1=t1, critical=critical, today=today)
    choice = choose(found)
    candidates = {o.batch_size for o in choice.options}
    single = [o for o in choice.options if o.accumulation == 1]
    for o in single:
        expected = relative_time(t0, t1, critical, o.batch_size, today)
        if today <= 128:  # today's batch is timed whole, not accumulated
            assert o.time.value == pytest.approx(expected, rel=0.02)
    best = optimum(t0, t1, critical)
    if 2 <= best <= 128:
        assert (
            0.49 <= best / choice.chosen.batch_size <= 2.1
        )  # powers of two, flat there
    assert today in candidates
    low, high = choice.flat
    assert low <= choice.chosen.batch_size <= high
    assert not choice.decided  # whatever they say: nothing was run


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("lr_max", [0.05, 0.6, 3.0])
def test_the_best_that_was_raced_is_chosen(lr_max: float, seed: int) -> None:
    """Lanes scatter by 4 %; what is taken is within a tenth of the best of them."""
    truth = Truth(critical=100, lr_max=lr_max, power=0.9, edge=6)
    tried = [(64, 0.1), *around(truth, 8, 16, 32, 64, 128)]
    found = made_up(t0=4e-3, t1=1e-3, critical=60)
    times = seconds(found, truth, tried)
    leaders = sorted(tried, key=times.__getitem__)[:3]
    race = raced(found, truth, [*tried, *leaders, *leaders], scatter=0.04, seed=seed)
    choice = choose(race)
    assert times[picked(choice)] <= 1.1 * min(times.values())
    assert choice.evidence.grade == "raced to the target"
    assert choice.decided
    assert not choice.stays
    real = times[picked(choice)] / times[64, 0.1]
    if real > 0.1:  # today's ran; far beyond, its time is the law's alone
        assert choice.gain.low <= real <= choice.gain.high


def test_today_stays_where_nothing_is_better_beyond_the_interval() -> None:
    found = made_up(t0=4e-3, t1=1e-3, critical=100, today=16)
    best_here = 0.1 * (1 + 100 / 16)
    # Today's rate the best of all, and a rate of 7 % less time beside it.
    for seed, lr_max in ((0, best_here), (1, best_here), (2, 1.4 * best_here)):
        truth = Truth(critical=100, lr_max=lr_max)
        tried = [*[(16, 0.1)] * 3, *2 * around(truth, 4, 8, 16, 32, 64)]
        choice = choose(raced(found, truth, tried, scatter=0.05, seed=seed))
        assert choice.stays
        assert choice.decided
        assert (choice.gain.low, choice.gain.high) == (1.0, 1.0)
        assert choice.baseline == choice.chosen


def test_gains_lie_within_their_intervals() -> None:
    """In five of six races at the least, whose runs scatter by 15 %."""
    truth = Truth(critical=100, lr_max=0.5)
    found = made_up(t0=4e-3, t1=1e-3, critical=100)
    tried = [(64, 0.1), *around(truth, 8, 16, 32, 64)]
    times = seconds(found, truth, tried)
    best = min(tried, key=times.__getitem__)
    held = 0
    for seed in range(6):
        again = [best, best, (64, 0.1), (64, 0.1)]
        choice = choose(raced(found, truth, tried + again, scatter=0.15, seed=seed))
        real = times[picked(choice)] / times[64, 0.1]
        held += choice.gain.low <= real <= choice.gain.high
        assert real < 1
    assert held >= 5


def test_runs_against_the_law_are_a_contradiction() -> None:
    truth = Truth(critical=100)
    tried = [(64, 0.1), *around(truth, 8, 16, 32, 64, 128)]
    odd = (128, truth.best_lr(128) * 0.8)
    race = raced(made_up(critical=100), truth, [*tried, odd], slower={odd: 0.12})
    choice = choose(race)
    assert picked(choice) == odd
    assert choice.gain.high < 1
    assert not choice.decided
    said = choice.contradiction
    assert said.startswith(f"at B = 128 and lr {odd[1]:.3g} the runs took ")
    assert not choose(raced(made_up(critical=100), truth, tried)).contradiction


@pytest.mark.parametrize("target", [True, False])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.65, 0.78])
def test_a_part_of_a_run_decides_little(share: float, target: bool) -> None:
    """The gain is fourfold and clear. Short of a target nothing is believed; of a run
    whose length is known most must be raced, as the scatter of a part is counted."""
    truth = Truth(critical=100, lr_max=1.2, least=2000)
    found = made_up(t0=4e-3, t1=1e-3, critical=100)
    tried = 2 * [(64, 0.1), *around(truth, 16, 32, 64)]
    whole = min(seconds(found, truth, tried).values())
    race = raced(found, truth, tried, seconds=share * whole / 0.8, target=target)
    if not target:
        examples = whole / laws_of(race).step_s(64) * 64
        race = replace(race, job=replace(race.job, run_examples=examples))
    short = choose(race)
    assert short.evidence.share == pytest.approx(share, rel=0.4)
    assert short.evidence.known
    assert short.evidence.enough == (share > 0.5)
    assert short.decided == (share > 0.7 and not target)
    assert (picked(short) == (64, 0.1)) == (short.evidence.share < LEAST_ADVICE)


def test_a_run_of_unknown_length_decides_nothing() -> None:
    """However many passes over the data were raced."""
    truth = Truth(critical=100, lr_max=1.2)
    found = made_up(t0=4e-3, t1=1e-3, critical=100)
    tried = 2 * [(64, 0.1), *around(truth, 16, 32, 64)]
    race = raced(found, truth, tried, seconds=5, target=False)
    race = replace(race, job=replace(race.job, examples=100))
    unknown = choose(race)
    assert unknown.evidence.share == 1.0
    assert not unknown.evidence.known
    assert not unknown.decided
    said = choose(replace(race, job=replace(race.job, run_examples=4000.0)))
    assert said.decided
    assert picked(said) == picked(unknown)


def test_the_interval_grows_as_less_of_a_run_was_raced() -> None:
    truth = Truth(critical=100, lr_max=0.5)
    found = made_up(t0=4e-3, t1=1e-3, critical=100)
    tried = [(64, 0.1), *around(truth, 16, 32, 64), (32, truth.best_lr(32))]
    whole = min(seconds(found, truth, tried).values())
    races = (raced(found, truth, tried, seconds=s * whole) for s in (9, 0.5, 0.1))
    spreads = [np.log(g.high / g.low) for g in (choose(race).gain for race in races)]
    assert spreads == sorted(spreads)
    assert spreads[-1] > 1.5 * spreads[0]


def test_where_everything_diverged_today_is_left() -> None:
    truth = Truth(critical=100, lr_max=1e-3, edge=2.0)
    tried = [(64, 0.1), (64, 0.05), (16, 0.1), (32, 0.2)]
    choice = choose(raced(made_up(critical=100), truth, tried))
    assert choice.raced is None
    assert not choice.decided
    assert choice.stays
    assert choice.evidence.grade == "laws only"


def test_a_setting_that_diverged_is_never_chosen() -> None:
    truth = Truth(critical=100, edge=1.5)
    tried = [(64, 0.1), *around(truth, 8, 16, 32)]
    choice = choose(raced(made_up(critical=100), truth, tried))
    assert choice.raced is not None
    assert {s.diverged for s in choice.raced.standings} == {0, 1}
    batch_size, lr = picked(choice)
    assert lr <= 1.5 * truth.best_lr(batch_size)


LATE = Truth(critical=100, lr_max=3.0)
BEST = (32, LATE.best_lr(32))
OFF = (0.2, 0.4, 2.5)


def with_best(runs: int, others: Pairs = ()) -> Measurements:
    """A race in which one setting is the best by far, run so many times at the end."""
    others = others or [(b, LATE.best_lr(b) * x) for b in (8, 64) for x in OFF]
    found = made_up(t0=4e-3, t1=1e-3, critical=60)
    return raced(found, LATE, [(64, 0.1), *others, *[BEST] * runs])


def ended(found: Measurements, count: int, end: Literal["time", "diverged"]) -> Choice:
    """The choice where the last lanes diverged at once, or ended just too early."""
    assert found.race is not None

    def otherwise(lane: Lane) -> Lane:
        if end == "diverged":
            return replace(lane, steps=(1,), metrics=(math.nan,), end=end)
        steps, metrics = lane.steps[:-1], lane.metrics[:-1]
        return replace(lane, steps=steps, metrics=metrics, end=end)

    lanes = [
        otherwise(lane) if i < count else lane
        for i, lane in enumerate(reversed(found.race.lanes))
    ]
    race = replace(found.race, lanes=tuple(reversed(lanes)))
    return choose(replace(found, race=race))


def test_a_setting_that_diverged_once_in_six_runs_is_not_decided() -> None:
    sure = with_best(6)
    choice = choose(sure)
    assert choice.decided
    assert picked(choice) == BEST
    shaken = ended(sure, 1, "diverged")
    assert picked(shaken) == BEST
    assert shaken.gain.high < 1
    assert shaken.doubts[0] == "1 of its 6 runs diverged"
    assert not shaken.decided


@pytest.mark.parametrize(
    ("runs", "failed", "arrives"),
    [(1, 0, False), (2, 0, True), (3, 1, False), (4, 1, True), (6, 2, False)],
)
def test_three_of_four_runs_of_a_choice_arrive(
    runs: int, failed: int, arrives: bool
) -> None:
    """And two at the least: a lucky one decides nothing."""
    choice = ended(with_best(runs), failed, "time")
    assert picked(choice) == BEST
    fails = f"it got there {'once' if runs - failed == 1 else f'{runs - failed} times'}"
    assert any(doubt.startswith(fails) for doubt in choice.doubts) != arrives
    assert choice.decided <= arrives
    assert failed or choice.decided == arrives


HIGHER = [(b, LATE.best_lr(32) * off) for b in (16, 64) for off in (1.5, 2, 4)]
LOWER = [(b, LATE.best_lr(32) * off) for b in (8, 64) for off in (0.2, 0.4, 0.6)]


@pytest.mark.parametrize(
    ("others", "doubt"),
    [
        ([*LOWER, *HIGHER, *LOWER, *HIGHER], ""),
        ([*LOWER[:1], *HIGHER[:2]], "only 5 settings were tried"),
        (LOWER, "no higher learning rate was tried"),
    ],
)
def test_a_choice_has_settings_tried_about_it(others: Pairs, doubt: str) -> None:
    choice = choose(with_best(3, others))
    assert picked(choice) == BEST
    assert "".join(choice.doubts[:1]) == doubt
    assert choice.decided == (not doubt)


def test_the_lowest_rate_tried_is_not_decided() -> None:
    """All others are higher: a lower may be better."""
    low = Truth(critical=100, lr_max=0.02 * (1 + 100 / 32))
    others = [(b, 0.1 * off) for b in (16, 64) for off in (0.5, 1, 2)]
    found = made_up(t0=4e-3, t1=1e-3, critical=60)
    tried = [(64, 0.1), *others, *[(32, 0.02)] * 3]
    choice = choose(raced(found, low, tried))
    assert picked(choice) == (32, 0.02)
    assert choice.doubts[0] == "no lower learning rate was tried"
    lower = [(b, lr) for b in (8, 16, 32, 64, 128) for lr in (0.005, 0.01)]
    assert choose(raced(found, low, [*tried, *lower, *lower])).decided


def test_the_largest_batch_that_was_timed_is_not_decided() -> None:
    """Larger ones would fit, and what they cost nobody knows."""
    truth = Truth(critical=1000, lr_max=1.6)
    tried = 2 * [(64, 0.1), *around(truth, 16, 32, 64)]
    found = made_up(t0=0.1, t1=1e-4, critical=1000, sizes=(1, 2, 4, 8, 16, 32, 64))
    choice = choose(raced(found, truth, tried))
    assert choice.chosen.batch_size == 64
    assert choice.unseen
    assert not choice.decided
    timed = made_up(t0=0.1, t1=1e-4, critical=1000)  # to 128
    again = choose(raced(timed, truth, tried))
    assert picked(again) == picked(choice)
    assert not again.unseen
    # By the law larger ones are better still: a race that has not looked is none.
    assert again.regret > TOLERATED
    assert not again.decided


@pytest.mark.parametrize("slow", [16, 32])
def test_a_batch_the_race_saw_slower_is_not_called_as_good(slow: int) -> None:
    """By the law both are within a tenth; the runs of one took twice the time."""
    truth = Truth(critical=100)
    found = made_up(t0=4e-3, t1=1e-3, critical=100)
    tried = [(64, 0.1), *around(truth, 4, 8, 16, 32, 64, 128)]
    even = choose(raced(found, truth, tried))
    assert even.flat == (16, 32)
    slower = {pair: 2.0 for pair in tried if pair[0] == slow}
    odd = choose(raced(found, truth, tried, slower=slower))
    other = 48 - slow
    assert odd.chosen.batch_size == other
    assert odd.flat == (other, other)
    # Untried, it is as the law says.
    without = [pair for pair in tried if pair[0] != slow]
    assert choose(raced(found, truth, without)).flat == (16, 32)


def test_fewest_examples_are_smaller_batches() -> None:
    found = made_up(t0=0.1, t1=1e-3, critical=100)
    fewest, fastest = choose(found, rb.objectives.Examples()), choose(found)
    assert fewest.chosen.batch_size < fastest.chosen.batch_size
    least = min(o.examples.value for o in fewest.options)
    assert fewest.chosen.examples.value <= 1.1 * least


def test_a_race_is_judged_by_what_is_to_be_least() -> None:
    """Fewest examples: of the settings about as few, the fastest; raced as others."""
    truth = Truth(critical=100)
    found = made_up(t0=0.1, t1=1e-3, critical=100)
    tried = [(64, 0.1), *around(truth, 2, 4, 8, 16, 64, 128, 256)]
    race = raced(found, truth, [*tried, *around(truth, 4, 8, 16)])
    fewest, fastest = choose(race, rb.objectives.Examples()), choose(race)
    examples = {pair: pair[0] * truth.steps(*pair) for pair in tried}
    assert examples[picked(fewest)] <= 1.15 * min(examples.values())
    assert fewest.chosen.batch_size < fastest.chosen.batch_size
    about = [p for p in tried if examples[p] <= 1.05 * min(examples.values())]
    times = seconds(found, truth, tried)
    assert times[picked(fewest)] <= 1.05 * min(times[pair] for pair in about)
    assert fewest.decided
    real = examples[picked(fewest)] / examples[64, 0.1]
    assert fewest.gain.low <= real <= fewest.gain.high


def test_what_was_raced_whole_is_compared_by_the_split_that_fits() -> None:
    truth = Truth(critical=2000)
    found = made_up(t0=0.1, t1=1e-4, critical=2000)
    tried = [(64, 0.1), *around(truth, 16, 32, 128)]
    race = raced(found, truth, tried)
    free = choose(race)
    assert free.chosen.batch_size == 128
    # With 16 at once 128 takes eight passes; 32 only two.
    tight = choose(race, memory_bytes=10_000_000 + 17 * 100_000)
    assert tight.raced is not None
    assert tight.limit_bytes < free.limit_bytes
    law = laws_of(race).time
    for standing in tight.raced.standings[1:]:
        assert standing.micro_batch <= 16
        pieces = standing.batch_size // standing.micro_batch
        steps = truth.steps(standing.batch_size, standing.lr)
        taken = steps * law.step_seconds(standing.micro_batch, pieces)
        assert standing.seconds.value == pytest.approx(taken, rel=0.1)
    assert tight.chosen.micro_batch == 16


def test_a_deadline_leaves_what_keeps_it() -> None:
    """Today's rate is far too small to get to the target in time; others do."""
    truth = Truth(critical=100, lr_max=1.6)
    found = made_up(t0=0.1, t1=1e-3, critical=100)
    race = raced(found, truth, [(64, 0.1), *around(truth, 8, 16, 32, 64, 128)])
    free = choose(race, rb.objectives.Examples())
    best = choose(race)
    assert best.chosen.seconds is not None
    taken = seconds(found, truth, [picked(best)])[picked(best)]
    assert best.chosen.seconds.value == pytest.approx(taken, rel=0.05)
    tight = choose(race, rb.objectives.Examples(), deadline_s=1.5 * taken)
    assert tight.chosen.batch_size > free.chosen.batch_size
    with pytest.raises(rb.UnidentifiedError, match="no batch size meets"):
        choose(race, deadline_s=0.3 * taken)


def test_the_laws_go_by_the_run_that_reached_its_target() -> None:
    found = ran_to_target(1000)
    assert laws_of(found).steps_to_target == 1000
    assert laws_of(made_up()).steps_to_target is None


def test_noise_without_a_signal_is_undecided() -> None:
    # The optimum runs from below 64 to thousands with the critical batch, whose signal
    # is not told from zero.
    sizes = (1, 4, 16, 64, 256, 1024, 4096)
    found = made_up(t0=0.05, t1=1e-4, sizes=sizes, spread=3.0, points=2)
    choice = choose(found)
    assert not choice.decided
    assert choice.gain.high > 1


def test_everything_is_the_same_where_high_is_good() -> None:
    truth = Truth(critical=100)
    tried = [(64, 0.1), *around(truth, 8, 16, 32)]
    low, high = (
        choose(raced(made_up(critical=100), truth, tried, goal=goal))
        for goal in ("min", "max")
    )
    assert picked(low) == picked(high)
    assert dataclasses.astuple(low.gain) == dataclasses.astuple(high.gain)
    assert low.flat == high.flat
