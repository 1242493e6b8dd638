"""The charts of a race hold what was raced."""

from dataclasses import replace
from typing import Any

import pytest

from cases import Truth, made_up, raced
from rightbatch.measure.measurements import Measurements
from rightbatch.plan.choice import Choice
from rightbatch.plan.decide import decide
from rightbatch.plan.objectives import Examples
from rightbatch.report.race_charts import (
    MOST_CURVES,
    MOST_POINTS,
    WORST,
    curves_chart,
    map_chart,
)

TODAY = (64, 0.1)
SETTINGS = [TODAY, (64, 0.2), (32, 0.1), (32, 0.1), (16, 1.6)]
TRUTH = Truth(lr_max=0.4, edge=2.5)


def rows_with(chart: Any, *fields: str) -> list[dict[str, Any]]:
    """The rows of a chart's layers that have these fields, once each."""
    spec = chart.to_dict()
    layers = [spec, *spec["layer"]]
    groups = [layer["data"]["values"] for layer in layers if "data" in layer]
    groups += [layer["values"] for layer in spec.get("datasets", {}).values()]
    rows = [row for group in groups for row in group if set(fields) <= set(row)]
    return [row for i, row in enumerate(rows) if row not in rows[:i]]


def choice_of(found: Measurements) -> Choice:
    return decide(found).choice


def test_every_run_is_a_curve_that_only_gets_better() -> None:
    found = raced(made_up(), TRUTH, SETTINGS, scatter=0.1)
    rows = rows_with(curves_chart(choice_of(found)), "run", "seconds", "metric")
    assert len({row["run"] for row in rows}) == len(SETTINGS)
    for run in {row["run"] for row in rows}:
        own = [row for row in rows if row["run"] == run]
        assert len(own) <= MOST_POINTS
        metrics = [row["metric"] for row in own]
        assert metrics == sorted(metrics, reverse=True)
        assert [row["end"] != "" for row in own] == [False] * (len(own) - 1) + [True]
    roles = {(row["B"], row["lr"]): row["role"] for row in rows}
    assert roles[TODAY] == "today"
    assert roles[32, 0.1] == "chosen"
    assert roles[64, 0.2] == "other"
    ends = {(row["B"], row["lr"]): row["end"] for row in rows if row["end"]}
    assert ends[16, 1.6] == "diverged"


def test_of_many_runs_the_chosen_and_todays_are_drawn() -> None:
    found = raced(made_up(), TRUTH, SETTINGS)
    race = found.race
    assert race is not None
    many = tuple(replace(race.lanes[1], seed=i) for i in range(200))
    found = replace(found, race=replace(race, lanes=many + race.lanes))
    rows = rows_with(curves_chart(choice_of(found)), "run", "seconds")
    assert len({row["run"] for row in rows}) == MOST_CURVES
    assert {row["role"] for row in rows} == {"chosen", "today", "other"}


@pytest.mark.parametrize(("seconds", "name"), [(1e9, "target 1"), (0.6, "compared at")])
def test_the_dashed_line_says_what_it_is(seconds: float, name: str) -> None:
    found = raced(made_up(), TRUTH, SETTINGS, seconds=seconds)
    (rule,) = rows_with(curves_chart(choice_of(found)), "name", "metric")
    assert rule["name"].startswith(name)


def test_the_map_has_every_setting_with_its_cost_over_the_best() -> None:
    choice = choice_of(raced(made_up(), TRUTH, SETTINGS, seconds=30))
    assert choice.raced is not None
    rows = rows_with(map_chart(choice, choice.raced), "which", "cost")
    found = {(row["B"], row["lr"]): row for row in rows}
    assert set(found) == set(SETTINGS)
    assert found[16, 1.6]["which"] == "diverged"
    assert found[32, 0.1]["cost"] == 1.0
    assert found[TODAY]["cost"] == pytest.approx(
        1 / choice.raced.standings[2].cost.value, rel=0.01
    )


def test_behind_the_settings_is_the_law() -> None:
    choice = choice_of(raced(made_up(), TRUTH, SETTINGS, seconds=30))
    assert choice.raced is not None
    cells = rows_with(map_chart(choice, choice.raced), "B2", "lr2", "cost")
    assert min(cell["cost"] for cell in cells) == 1.0
    assert max(cell["cost"] for cell in cells) == WORST
    for batch_size, lr in SETTINGS:
        under = [
            cell
            for cell in cells
            if cell["B"] < batch_size < cell["B2"] and cell["lr"] <= lr <= cell["lr2"]
        ]
        assert under
    # Of every batch the law's best cell is at the law's best rate.
    column = [cell for cell in cells if cell["B"] < 64 < cell["B2"]]
    best = min(column, key=lambda cell: cell["cost"])
    best_lr = choice.laws.rate.best_lr(64)
    assert best["lr"] / 1.1 < best_lr < best["lr2"] * 1.1


def test_one_batch_alone_makes_a_map_too() -> None:
    found = raced(made_up(), TRUTH, [TODAY, (64, 0.2)])
    choice = decide(found, Examples()).choice
    assert choice.raced is not None
    only = replace(choice, options=tuple(o for o in choice.options if o.batch_size < 9))
    assert rows_with(map_chart(only, choice.raced), "B2")
    only = replace(choice, options=only.options[:1])
    assert rows_with(map_chart(only, choice.raced), "B2")
