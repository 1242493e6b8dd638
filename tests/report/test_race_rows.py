"""The settings of a race in the order of a table."""

import math
from dataclasses import replace

import pytest

from cases import Truth, made_up, raced
from rightbatch.measure.measurements import Measurements
from rightbatch.plan.decide import decide
from rightbatch.report.race_rows import RaceRow, last_level, race_rows, reference

TODAY = (64, 0.1)


def rows_of(found: Measurements) -> list[RaceRow]:
    choice = decide(found).choice
    assert choice.raced is not None
    return race_rows(choice, choice.raced)


def settings_of(rows: list[RaceRow]) -> list[tuple[int, float]]:
    return [(row.standing.batch_size, row.standing.lr) for row in rows]


def test_who_got_there_by_cost_then_who_was_left_then_who_diverged() -> None:
    truth = Truth(lr_max=0.4, edge=2.5)
    settings = [(64, 0.6), (64, 0.002), TODAY, (32, 0.1), (64, 0.2)]
    rows = rows_of(raced(made_up(), truth, settings, seconds=20.0))
    assert settings_of(rows) == [(32, 0.1), (64, 0.2), TODAY, (64, 0.002), (64, 0.6)]
    assert [row.fate for row in rows] == ["", "", "", "left behind", "diverged"]
    assert [row.reached for row in rows] == [True] * 3 + [False] * 2
    assert [row.is_chosen for row in rows] == [True] + 4 * [False]
    assert [row.is_today for row in rows] == [False, False, True, False, False]
    behind = rows[3]
    assert behind.trained_s == pytest.approx(20.0, rel=0.01)
    assert 1 < behind.best < 3
    assert behind.fate_in_full == f"left behind at {behind.best:.3g}"
    assert math.isnan(rows[4].best) or rows[4].best >= 3


def test_costs_are_over_todays_where_it_got_there_else_over_the_best() -> None:
    settings = [TODAY, (32, 0.2), (32, 0.2)]
    found = raced(made_up(), Truth(lr_max=0.8), settings)
    choice = decide(found).choice
    assert choice.raced is not None
    assert reference(choice.raced) is choice.raced.standings[0]
    best, today = rows_of(found)
    assert today.cost.value == today.cost.high == 1.0
    assert best.cost.value == pytest.approx(best.standing.cost.value)
    short = rows_of(raced(made_up(), Truth(lr_max=0.8), settings, seconds=0.6))
    assert short[0].cost.value == short[0].cost.high == 1.0
    assert not short[1].reached
    assert short[1].is_today


def test_the_best_is_the_highest_where_high_is_good() -> None:
    settings = [TODAY, (32, 0.2)]
    found = raced(made_up(), Truth(), settings, seconds=0.6, goal="max")
    race = found.race
    assert race is not None
    for row in rows_of(found):
        lane = race.lanes[settings.index((row.standing.batch_size, row.standing.lr))]
        assert row.best == max(lane.metrics)


def test_the_last_level_is_the_target_once_it_is_met() -> None:
    settings = [TODAY, (32, 0.2)]
    assert last_level(decide(raced(made_up(), Truth(), settings)).choice) == 1.0
    short = raced(made_up(), Truth(), settings, seconds=0.6)
    assert 1.0 < last_level(decide(short).choice) < 3.0


def test_a_setting_of_which_some_runs_diverged_says_so() -> None:
    found = raced(made_up(), Truth(lr_max=0.4), [TODAY, (32, 0.1), (32, 0.1)])
    race = found.race
    assert race is not None
    lost = replace(race.lanes[2], steps=(1, 2), metrics=(3.0, math.nan), end="diverged")
    race = replace(race, lanes=(*race.lanes[:2], lost))
    rows = rows_of(replace(found, race=race))
    row = next(r for r in rows if r.standing.batch_size == 32)
    assert row.reached
    assert row.fate == "1 diverged"


def test_a_setting_that_ran_out_of_memory_is_told_apart() -> None:
    found = raced(made_up(), Truth(lr_max=0.4), [TODAY, (32, 0.1), (128, 0.1)])
    race = found.race
    assert race is not None
    lost = replace(race.lanes[2], steps=(), metrics=(), end="failed")
    race = replace(race, lanes=(*race.lanes[:2], lost))
    assert [row.fate for row in rows_of(replace(found, race=race))] == [
        "",
        "",
        "failed",
    ]
