"""The law of step time: the truth is found, and the interval holds it."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rightbatch as rb
from cases import made_up
from rightbatch.core.estimate import Estimate
from rightbatch.fit.step_time import fit_time
from rightbatch.measure.measurements import Contention, TimePoint


@settings(max_examples=25, deadline=None)
@given(st.floats(1e-5, 1e-1), st.floats(1e-6, 1e-2))
def test_an_affine_truth_is_found(t0: float, t1: float) -> None:
    law = fit_time(made_up(t0=t0, t1=t1).times)
    assert law.kind == "affine"
    for b in (1, 10, 100):
        assert law.seconds(b) == pytest.approx(t0 + t1 * b, rel=1e-3)
    assert law.step_seconds(16, 4) == pytest.approx(
        4 * (t0 + 16 * t1) - 3 * 0.1 * t0, rel=1e-3
    )


def test_noise_in_times_widens_the_interval_that_holds_the_truth() -> None:
    quiet, loud = (fit_time(made_up(jitter=j).times) for j in (0.01, 0.1))
    assert quiet.half_batch.relative < loud.half_batch.relative
    assert loud.half_batch.low <= 2e-3 / 5e-4 <= loud.half_batch.high


def times_of(
    gamma: float,
    sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128),
    *,
    t0: float = 4e-3,
    scatter: float = 0.0,
    rounds: int = 9,
) -> list[TimePoint]:
    """Points of ``t0 + 1 ms * b ** gamma``, whose half batch is 4 ** (1 / gamma)."""
    random, points = np.random.default_rng(0), []
    for p in made_up(sizes=sizes).times:
        law = t0 + 1e-3 * p.micro_batch**gamma
        seen = tuple((law * np.exp(scatter * random.normal(size=rounds))).tolist())
        changes: dict[str, Any] = {
            "rounds": seen,
            "process_rounds": seen,
            "step_time_s": Estimate.median(seen, "s"),
            "process_time_s": Estimate.median(seen, "s"),
        }
        points.append(dataclasses.replace(p, **changes))
    return points


@pytest.mark.parametrize("gamma", [0.3, 0.5, 0.8, 1.2])
def test_a_bent_truth_is_not_forced_into_a_line(gamma: float) -> None:
    law = fit_time(times_of(gamma))
    assert law.kind == "affine-power"
    assert law.parameters.tolist() == pytest.approx([4e-3, 1e-3, gamma], rel=0.01)
    assert law.held_out["affine-power"] < 0.5 * law.held_out["affine"]
    truth = 4 ** (1 / gamma)
    assert law.half_batch.value == pytest.approx(truth, rel=0.02)
    assert law.half_batch.low <= truth <= law.half_batch.high
    assert law.seconds(128) == pytest.approx(4e-3 + 1e-3 * 128**gamma, rel=1e-3)


@pytest.mark.parametrize("gamma", [0.5, 0.8, 1.0, 1.2])
def test_few_sizes_do_not_tell_the_exponent_and_the_interval_says_so(
    gamma: float,
) -> None:
    """Three sizes, one visit each, known within a few per cent."""
    law = fit_time(times_of(gamma, (4, 8, 16), scatter=0.02, rounds=1))
    half = law.half_batch
    assert half.low <= 4 ** (1 / gamma) <= half.high
    assert half.high - half.low > 0.5 * half.value
    ratio = law.time_ratio(16, 1, 4, 1)
    assert ratio.low <= (4 + 16**gamma) / (4 + 4**gamma) <= ratio.high


def test_a_ratio_of_times_is_as_uncertain_as_the_times() -> None:
    quiet, loud = (fit_time(times_of(1.0, scatter=s)) for s in (0.01, 0.3))
    truth = (4 + 16) / (4 + 8)
    for law, most in ((quiet, 0.05), (loud, 0.5)):
        ratio = law.time_ratio(16, 1, 8, 1)
        assert ratio.low <= truth <= ratio.high
        assert ratio.relative < most
    ratios = [law.time_ratio(16, 1, 8, 1).relative for law in (quiet, loud)]
    assert ratios[1] > 5 * ratios[0]
    same = loud.time_ratio(8, 2, 8, 2)
    assert same.low == same.value == same.high == 1
    # Accumulated: four of 4 cost four times the overhead, but one update only.
    accumulated = quiet.time_ratio(4, 4, 16, 1)
    update = quiet.update_s
    expected = (4 * 8e-3 - 3 * update) / 20e-3
    assert accumulated.value == pytest.approx(expected, rel=0.05)


@pytest.mark.slow
def test_how_often_the_interval_of_a_ratio_holds_the_truth() -> None:
    """Times of seven sizes, three visits each with 5 % scatter, by 60 seeds."""
    held, truth = 0, (4 + 32**0.9) / (4 + 16**0.9)
    for seed in range(60):
        random = np.random.default_rng(seed)
        points = [
            dataclasses.replace(
                p,
                rounds=tuple(p.rounds[0] * np.exp(0.05 * random.normal(size=3))),
            )
            for p in times_of(0.9, (1, 2, 4, 8, 16, 32, 64))
        ]
        ratio = fit_time(points).time_ratio(32, 1, 16, 1)
        held += ratio.low <= truth <= ratio.high
    assert held >= 54


def test_a_busy_machine_is_judged_by_cpu_time() -> None:
    slow = [
        dataclasses.replace(p, rounds=tuple(3 * r for r in p.rounds))
        for p in made_up().times
    ]
    busy = Contention(busy=True, stalled=0.9, reason="")
    law = fit_time(slow, busy)
    assert law.clock == "process"
    assert law.seconds(100) == pytest.approx(2e-3 + 5e-2, rel=1e-3)


def test_two_sizes_are_no_law() -> None:
    with pytest.raises(rb.UnidentifiedError, match="at least 3"):
        fit_time(made_up(sizes=(1, 2)).times)


def disturbed(kind: str, rounds: int) -> list[TimePoint]:
    """Points of ``1 ms + 0.1 ms * b`` as the clocks of a busy machine tell them."""
    random, points = np.random.default_rng(0), []
    for p in made_up(t0=1e-3, t1=1e-4).times:
        truth = 1e-3 + 1e-4 * p.micro_batch
        waited = 1 + random.exponential(3.0, rounds)  # for a CPU
        spun = np.exp(random.exponential(1.2, rounds))  # threads waiting for each other
        apart = 1 + random.exponential(0.1, rounds)  # caches that others use
        wall, cpu = {
            "waits": (waited, apart),
            "spins, 3 x longer in the median": (waited * spun**1.5, spun**1.5),
            "both clocks alike": (apart * spun, apart * spun),
        }[kind]
        walls, cpus = tuple(truth * wall), tuple(truth * cpu)
        points.append(
            dataclasses.replace(
                p,
                rounds=walls,
                process_rounds=cpus,
                step_time_s=Estimate.median(walls, "s"),
                process_time_s=Estimate.median(cpus, "s"),
            )
        )
    return points


@pytest.mark.parametrize("rounds", [1, 3, 13])
@pytest.mark.parametrize(
    "kind", ["waits", "spins, 3 x longer in the median", "both clocks alike"]
)
def test_the_fixed_part_on_a_busy_machine_is_as_wide_as_its_clocks(
    kind: str, rounds: int
) -> None:
    busy = Contention(busy=True, stalled=0.8, reason="")
    law = fit_time(disturbed(kind, rounds), busy)
    assert law.overhead.low <= 1e-3 <= law.overhead.high
    assert law.overhead.high / law.overhead.low > 1.3
    assert law.overhead_told == (law.overhead.high <= 4 * law.overhead.low)


def test_repeating_does_not_make_a_busy_machine_sure() -> None:
    """What disturbs all visits alike is not told by their number."""
    points = disturbed("both clocks alike", 40)
    busy, quiet = (
        fit_time(points, Contention(busy=busy, stalled=0.8, reason="")).overhead
        for busy in (True, False)
    )
    assert busy.low <= 1e-3 <= busy.high
    assert quiet.low > 1e-3
    assert busy.high / busy.low > 2 * quiet.high / quiet.low


@pytest.mark.parametrize("t0", [1e-12, 1e-3])
def test_a_fixed_part_far_below_what_was_timed_is_not_told(t0: float) -> None:
    far = fit_time(times_of(1.0, (64, 96, 128), t0=t0, scatter=0.03))
    assert not far.overhead_told


def test_a_fixed_part_that_is_most_of_a_step_is_told() -> None:
    assert fit_time(times_of(1.0, t0=5e-3, scatter=0.01)).overhead_told


@pytest.mark.parametrize("b", [15.0, 8.0, 1.0, 0.5])
def test_below_the_smallest_size_timed_no_line_is_carried_on(b: float) -> None:
    law = fit_time(times_of(1.0, (16, 32, 64, 128)))
    smallest = law.seconds(16)
    assert law.seconds(b) == pytest.approx(smallest * (b / 16) ** 0.6)
    draws = [law.seconds(b, draw) / law.seconds(16, draw) for draw in range(120)]
    assert b / 16 - 1e-9 <= min(draws) < (b / 16) ** 0.6 < max(draws) <= 1
    assert law.seconds(16.5) == pytest.approx(4e-3 + 16.5e-3, rel=1e-3)
