"""Passages: common levels of a race, and when each of its lanes passed them."""

import math
from dataclasses import replace
from typing import Literal, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cases import TARGET, Truth, a_race
from reference import levels_by_scan, steps_by_scan
from rightbatch.fit.passages import DIVERGED, Passages, passages_of
from rightbatch.measure.measurements import Lane, Race

End = Literal["time", "diverged"]


@st.composite
def lanes(draw: st.DrawFn) -> Lane:
    """A lane whose metric goes up and down, some of it not finite."""
    gaps = draw(st.lists(st.integers(1, 9), min_size=1, max_size=12))
    values = st.integers(1, 50).map(float) | st.sampled_from([math.nan, math.inf])
    ends: st.SearchStrategy[End] = st.sampled_from(get_args(End))
    metrics = draw(st.lists(values, min_size=len(gaps), max_size=len(gaps)))
    return Lane(
        batch_size=draw(st.sampled_from([8, 16, 32])),
        micro_batch=8,
        lr=draw(st.sampled_from([0.1, 0.2])),
        seed=draw(st.integers(0, 3)),
        step_s=draw(st.sampled_from([0.5, 1.0, 2.0])),
        steps=tuple(sum(gaps[: i + 1]) for i in range(len(gaps))),
        metrics=tuple(metrics),
        end=draw(ends),
    )


@st.composite
def races(draw: st.DrawFn, start: float = 40.0) -> Race:
    """Some such lanes, and a target that they may reach or not."""
    return Race(
        metric="evaluate",
        goal="min",
        start=start,
        target=draw(st.none() | st.integers(1, 30).map(float)),
        lanes=tuple(draw(st.lists(lanes(), min_size=1, max_size=5))),
        seconds=1.0,
    )


@settings(max_examples=100, deadline=None)
@given(races())
def test_steps_are_those_of_a_scan(race: Race) -> None:
    found = passages_of(race)
    for number, level in enumerate(found.levels):
        rows = [p for p in found.passages if p.level == number]
        for lane, row in zip(race.lanes, rows, strict=True):
            by_scan = steps_by_scan(race.start, lane.steps, lane.metrics, level)
            assert row.reached == math.isfinite(by_scan)
            if row.reached:  # the scan goes by hundredths of at most nine steps
                assert row.steps == pytest.approx(max(by_scan, 1.0), abs=0.1)
            else:
                assert row.steps >= lane.steps[-1]


@settings(max_examples=100, deadline=None)
@given(races())
def test_levels_are_those_of_the_leader(race: Race) -> None:
    race = replace(
        race, target=None, lanes=tuple(replace(x, end="time") for x in race.lanes)
    )
    finite = [
        (x.step_s, x.steps, [m if math.isfinite(m) else math.inf for m in x.metrics])
        for x in race.lanes
    ]
    assert list(passages_of(race).levels) == levels_by_scan(race.start, finite)


@settings(max_examples=100, deadline=None)
@given(races())
def test_a_harder_level_comes_later_to_every_lane(race: Race) -> None:
    found = passages_of(race)
    assert list(found.levels) == sorted(set(found.levels), reverse=True)
    assert list(found.seconds) == sorted(found.seconds)
    count = len(found.levels)
    assert len(found.passages) == count * len(race.lanes)
    for first in range(0, len(found.passages), count or 1):
        own = found.passages[first : first + count]
        assert [p.level for p in own] == list(range(count))
        assert [p.steps for p in own] == sorted(p.steps for p in own)
        reached = [p.reached for p in own]
        assert reached == sorted(reached, reverse=True)
    for number in range(count):
        assert any(p.reached for p in found.passages if p.level == number)
    if found.to_target:
        assert found.levels[-1] == race.target


@settings(max_examples=50, deadline=None)
@given(races())
def test_a_metric_turned_round_gives_the_same(race: Race) -> None:
    other = replace(
        race,
        goal="max",
        start=-race.start,
        target=None if race.target is None else -race.target,
        lanes=tuple(
            replace(x, metrics=tuple(-m for m in x.metrics)) for x in race.lanes
        ),
    )
    here, there = passages_of(race), passages_of(other)
    assert here.passages == there.passages
    assert here.levels == tuple(-level for level in there.levels)
    assert (here.seconds, here.to_target) == (there.seconds, there.to_target)


def test_whole_runs_pass_the_target_after_their_own_steps() -> None:
    truth = Truth(critical=100)
    pairs = [(16, 0.03), (64, 0.1), (64, 0.02), (256, 0.2)]
    found = passages_of(a_race(truth, pairs))
    assert found.to_target
    assert found.levels[-1] == TARGET
    for row, pair in zip(found.deepest, pairs, strict=True):
        assert row.reached
        assert row.steps == pytest.approx(truth.steps(*pair), rel=5e-3)
    # The leader passes the levels at shares of its time, the last at the end of it.
    least = min(truth.steps(b, lr) * (2e-3 + 5e-4 * b) for b, lr in pairs)
    shares = [s / least for s in found.seconds]
    assert shares == pytest.approx([1 / 8, 1 / 4, 1 / 2, 0.8, 1.0], rel=0.06)


def test_without_a_target_a_level_is_where_two_lanes_trained_to() -> None:
    """One that went on alone sets no level that nobody else had time for."""
    far, near, third = (
        a_race(Truth(), [pair], seconds=s, target=False).lanes[0]
        for pair, s in (((64, 0.1), 8.0), ((64, 0.05), 2.0), ((16, 0.03), 1.0))
    )
    race = replace(a_race(Truth(), [(64, 0.1)]), target=None)
    found = passages_of(replace(race, lanes=(far, near, third)))
    assert not found.to_target
    assert found.seconds[-1] == pytest.approx(0.8 * 2.0, rel=0.08)


def test_one_that_diverged_is_a_bound_far_beyond_the_leader() -> None:
    truth = Truth(edge=4.0)
    pairs = [(64, 0.1), (64, 0.8), (16, 0.03)]
    race = a_race(truth, pairs)
    found = passages_of(race)
    assert found.diverged == ((64, 0.8),)
    last = found.deepest[1]
    assert not last.reached
    assert last.steps * race.lanes[1].step_s == pytest.approx(
        DIVERGED * found.seconds[-1]
    )


def test_one_that_failed_did_not_diverge() -> None:
    """Out of memory, say: as a bound it is what it trained, and no edge."""
    race = a_race(Truth(), [(64, 0.1), (16, 0.03), (256, 0.1)])
    lost = replace(race.lanes[2], steps=(), metrics=(), end="failed")
    found = passages_of(replace(race, lanes=(*race.lanes[:2], lost)))
    assert found.diverged == ()
    assert (found.deepest[2].steps, found.deepest[2].reached) == (1.0, False)


@pytest.mark.parametrize("pairs", [[(64, 0.8)], [(64, 0.8), (16, 0.8)]])
def test_where_all_diverged_there_is_no_level(pairs: list[tuple[int, float]]) -> None:
    found = passages_of(a_race(Truth(edge=2.0), pairs))
    assert found == Passages(
        levels=(), seconds=(), to_target=False, passages=(), diverged=tuple(pairs)
    )


def test_a_lane_that_has_not_begun_is_a_bound_of_one_step() -> None:
    race = a_race(Truth(), [(64, 0.1), (16, 0.03)])
    idle = replace(race.lanes[0], steps=(), metrics=(), end="time")
    found = passages_of(replace(race, lanes=(idle, *race.lanes)))
    assert (found.deepest[0].steps, found.deepest[0].reached) == (1.0, False)


def test_a_start_that_is_no_number_is_worse_than_all() -> None:
    race = a_race(Truth(), [(64, 0.1), (16, 0.03)])
    unknown, worst = (replace(race, start=s) for s in (math.nan, math.inf))
    assert passages_of(unknown) == passages_of(worst)
    assert passages_of(unknown).to_target
