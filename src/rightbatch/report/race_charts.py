"""The charts of a race: every run's curve, and a map of all settings."""

from __future__ import annotations

import math
from typing import Any

import altair as alt
import numpy as np

from rightbatch.core.units import show_number
from rightbatch.fit.passages import Curve
from rightbatch.measure.measurements import Lane, Race
from rightbatch.plan.choice import Choice
from rightbatch.plan.options import Option, cost
from rightbatch.plan.raced import Raced
from rightbatch.plan.verdict import cost_unit
from rightbatch.report.race_rows import RaceRow, last_level, race_rows
from rightbatch.report.vega import (
    CHOSEN,
    PLAIN,
    TODAY,
    batch_axis,
    chart,
    colours,
    tooltip,
)

# A page stays small: of more runs the longest are drawn, of longer curves some points.
MOST_CURVES, MOST_POINTS = 80, 40
DRAWN_SHARE = 0.02  # of the longest run: before it nothing has happened yet
WORST = 8.0  # times the best: settings as bad or worse have one colour
COSTS = [1.0, 1.5, 2.0, 4.0, WORST]
COST_COLOURS = ["#1f8f63", "#8cc152", "#f2c94c", "#e8843c", "#b23a48"]
DIVERGED, GREY = "#c0392b", "#888"
PER_OCTAVE = 4  # rows of the map's background


def curves_chart(choice: Choice) -> Any:
    """The best metric so far against seconds, one line a run."""
    race = choice.measurements.race
    assert race is not None, "without a race there is no curve"
    order = list(ROLES)
    drawn = sorted(
        race.lanes, key=lambda x: (order.index(_role(choice, x)), -x.seconds)
    )[:MOST_CURVES]
    earliest = DRAWN_SHARE * max((lane.seconds for lane in drawn), default=0.0)
    rows: list[dict[str, Any]] = [
        {"run": i, "role": _role(choice, lane), "B": lane.batch_size, "lr": lane.lr}
        | point
        for i, lane in enumerate(drawn)
        for point in _points(race, lane, earliest)
    ]
    seen = {row["role"] for row in rows}
    roles = {role: colour for role, colour in ROLES.items() if role in seen}
    logs = race.goal == "min" and all(row["metric"] > 0 for row in rows)
    y = alt.Y(
        "metric:Q",
        title=f"{race.metric}, best so far",
        scale=alt.Scale(
            type="log" if logs else "linear", nice=False, zero=False, padding=10
        ),
    )
    x = alt.X(
        "seconds:Q",
        title="seconds of training (steps times step time), log scale",
        scale=alt.Scale(type="log", nice=False),
        axis=alt.Axis(grid=False, format="~g", labelOverlap=True),
    )
    base = chart(rows).encode(
        x=x,
        y=y,
        detail="run:N",
        color=colours("role", roles, legend=True),
        tooltip=tooltip(B="d", lr=".3g", seconds=".3g", metric=".4g"),
    )
    # The few that matter lie on top.
    others = base.transform_filter("datum.role == 'other'").mark_line(
        opacity=0.45, strokeWidth=1.2
    )
    marked = base.transform_filter("datum.role != 'other'").mark_line(strokeWidth=2.2)
    ends = base.transform_filter("datum.end == 'end'").mark_point(filled=True, size=18)
    crosses = chart([row for row in rows if row["end"] == "diverged"]).mark_point(
        shape="cross", angle=45, size=90, filled=True, color=DIVERGED, opacity=1
    )
    layers = others + marked + ends + crosses.encode(x=x, y=y)
    if choice.raced is None:
        return layers
    level, met = last_level(choice), choice.evidence.share >= 1
    name = f"{'target' if met else 'compared at'} {show_number(level)}"
    rule = chart([{"metric": level, "name": name}]).encode(y=y)
    text = rule.mark_text(align="left", dy=-6, x=4, fontSize=11).encode(text="name:N")
    return layers + rule.mark_rule(strokeDash=[5, 4], color=GREY) + text


KEPT = "today, kept"
ROLES = {KEPT: CHOSEN, "chosen": CHOSEN, "today": TODAY, "other": PLAIN}


def _role(choice: Choice, lane: Lane) -> str:
    setting, job = (lane.batch_size, lane.lr), choice.measurements.job
    is_today = setting == (job.batch_size, job.lr)
    if choice.raced and setting == (choice.chosen.batch_size, choice.chosen.lr):
        return KEPT if is_today else "chosen"
    return "today" if is_today else "other"


def _points(race: Race, lane: Lane, earliest: float) -> list[dict[str, Any]]:
    """Where a run got better, thinned, and where it ended, if only at the margin."""
    curve, sign = Curve(race, lane), 1.0 if race.goal == "min" else -1.0
    last, end = len(curve.steps) - 1, "diverged" if lane.end == "diverged" else "end"
    better = [
        i
        for i in range(1, last + 1)
        if i == last
        or (
            curve.values[i] < curve.values[i - 1]
            and curve.steps[i] * lane.step_s >= earliest
        )
    ]
    places = np.linspace(0, len(better) - 1, min(len(better), MOST_POINTS))
    return [
        {
            "seconds": _short(max(curve.steps[i] * lane.step_s, earliest)),
            "metric": _short(sign * curve.values[i]),
            "end": end if i == last else "",
        }
        for i in (better[round(place)] for place in places)
        if math.isfinite(curve.values[i])
    ]


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def map_chart(choice: Choice, raced: Raced) -> Any:
    """Batch against learning rate: the law's cost behind, what was trained on top."""
    rows = race_rows(choice, raced)
    options = _around(choice, rows)
    x, unit = batch_axis(o.batch_size for o in options), cost_unit(choice)
    y = alt.Y(
        "lr:Q",
        title="learning rate",
        scale=alt.Scale(type="log", base=2, nice=False, zero=False),
        axis=alt.Axis(format=".2~g", grid=False, labelOverlap=True),
    )
    cost = alt.Color(
        "cost:Q",
        title=f"{unit}, best = 1",
        scale=alt.Scale(type="log", domain=COSTS, range=COST_COLOURS, clamp=True),
        legend=alt.Legend(values=COSTS, format="~g", orient="right"),
    )
    fading = alt.Scale(type="log", domain=[1.0, WORST], range=[0.6, 0.06])
    heat = chart(_background(choice, options, rows)).mark_rect()
    heat = heat.encode(
        x=x,
        x2="B2:Q",
        y=y,
        y2="lr2:Q",
        color=cost,
        opacity=alt.Opacity("cost:Q", scale=fading, legend=None),
    )
    best_rates = [
        {"B": o.batch_size, "lr": choice.laws.rate.best_lr(o.batch_size)}
        for o in options
    ]
    line = chart(best_rates).mark_line(strokeDash=[6, 4], color=GREY).encode(x=x, y=y)
    least = min((r.cost.value for r in rows if r.reached), default=1.0)
    trained = [
        {
            "B": r.standing.batch_size,
            "lr": r.standing.lr,
            "runs": r.standing.runs,
            "lanes": r.standing.lanes,
            "cost": _short(r.cost.value / least),
            "which": "reached" if r.reached else r.fate,
        }
        for r in rows
    ]
    base = chart(trained).encode(
        x=x, y=y, tooltip=tooltip(B="d", lr=".3g", runs="d", lanes="d", cost=".2f")
    )
    reached = base.transform_filter("datum.which == 'reached'").mark_point(
        filled=True, size=150, opacity=1, stroke="#222", strokeWidth=1
    )
    behind = base.transform_filter(
        "datum.which == 'left behind' || datum.which == 'failed'"
    ).mark_point(size=60, opacity=0.9, color=GREY, strokeWidth=1.5)
    diverged = base.transform_filter("datum.which == 'diverged'").mark_point(
        shape="cross", angle=45, filled=True, size=120, color=DIVERGED, opacity=1
    )
    marks = _marked(rows, x, y)
    return heat + line + behind + diverged + reached.encode(color=cost) + marks


def _around(choice: Choice, rows: list[RaceRow]) -> list[Option]:
    """The options from one below the smallest batch raced to one above the largest."""
    sizes = [row.standing.batch_size for row in rows]
    places = [
        i
        for i, option in enumerate(choice.options)
        if min(sizes) <= option.batch_size <= max(sizes)
    ]
    if not places:  # what was raced no longer fits
        return list(choice.options)
    return list(choice.options[max(places[0] - 1, 0) : places[-1] + 2])


def _background(
    choice: Choice, options: list[Option], rows: list[RaceRow]
) -> list[dict[str, Any]]:
    """What the law says of every batch and rate near those raced, over its best."""
    rate = choice.laws.rate
    batches = np.array([float(o.batch_size) for o in options])
    rates = [row.standing.lr for row in rows] + [rate.best_lr(b) for b in batches]
    low, high = math.log2(min(rates)) - 0.75, math.log2(max(rates)) + 0.75
    lrs = 2.0 ** np.arange(low, high, 1 / PER_OCTAVE)
    at_best = np.array([rate.best_lr(b) for b in batches])
    # An option has its cost at the best rate; at others it grows as steps do.
    costs = np.array([cost(o, choice.objective) for o in options])
    steps = np.array([rate.log_steps(batches, np.full(len(batches), v)) for v in lrs])
    costs = costs * np.exp(steps - rate.log_steps(batches, at_best))
    costs = np.minimum(costs / costs.min(), WORST)
    logs = np.log(batches)
    between = (logs[1:] + logs[:-1]) / 2
    half_cell = (logs[1] - logs[0]) / 2 if len(logs) > 1 else math.log(2) / 2
    edges = np.exp([logs[0] - half_cell, *between, logs[-1] + half_cell])
    half = 2 ** (0.5 / PER_OCTAVE)
    return [
        {
            "B": _short(edges[j]),
            "B2": _short(edges[j + 1]),
            "lr": _short(lr / half),
            "lr2": _short(lr * half),
            "cost": _short(costs[i, j]),
        }
        for i, lr in enumerate(lrs)
        for j in range(len(batches))
    ]


def _marked(rows: list[RaceRow], x: alt.X, y: alt.Y) -> Any:
    """Rings and names for the chosen and today's setting."""
    marked = [
        {
            "B": row.standing.batch_size,
            "lr": row.standing.lr,
            "which": which,
            "label": KEPT if row.is_chosen and row.is_today else which,
        }
        for row in rows
        if row.is_chosen or row.is_today
        for which in ["chosen" if row.is_chosen else "today"]
    ]
    colour = alt.Color(
        "which:N",
        legend=None,
        scale=alt.Scale(domain=["chosen", "today"], range=[CHOSEN, TODAY]),
    )
    base = chart(marked).encode(x=x, y=y, color=colour)
    rings = base.mark_point(size=420, strokeWidth=3, opacity=1)
    names = base.mark_text(fontWeight="bold", align="left", dx=16, fontSize=13)
    return (rings + names.encode(text="label:N")).resolve_scale(color="independent")
