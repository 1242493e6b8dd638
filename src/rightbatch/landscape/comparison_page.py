"""The page of a comparison of batches: one offline HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np

from rightbatch.landscape.comparison import KEPT, TITLES, Budget, Comparison
from rightbatch.landscape.comparison_text import (
    failures,
    judged,
    plus_minus,
    rate_words,
    sentences,
)
from rightbatch.report.frame import framed, templates
from rightbatch.report.vega import (
    PALETTE,
    Spec,
    batch_axis,
    chart,
    colours,
    finished,
    log_axis,
    tooltip,
)

EDGE = 0.1  # differences beyond this share of what training gains are cut [assumed]


def comparison_page(comparison: Comparison) -> str:
    """The whole file as text; it asks the network for nothing."""
    charts = comparison_charts(comparison)
    template = templates().get_template("comparison.html.j2")
    body = template.render(
        c=comparison,
        sentences=sentences(comparison),
        titles={b: t for b, t in TITLES.items() if b in comparison.budgets},
        sharp=any(run.sharpness is not None for run in comparison.runs),
        charts=charts,
        failures=failures,
        judged=judged,
        plus_minus=plus_minus,
        short=_short,
    )
    return framed(f"{comparison.job}: batches compared", body, charts)


def comparison_charts(comparison: Comparison) -> dict[str, Spec]:
    """Every chart the runs allow, by its place on the page."""
    specs = {
        f"{axis}_{name}": finished(_courses(comparison, budget, axis, name), 280)
        for axis, budget in (("examples", "epochs"), ("updates", "updates"))
        for name in ("held out", "training loss")
        if budget in comparison.budgets
    }
    for name, budget in (("fluctuation", "epochs"), ("sharpness", "loss")):
        rows = [
            {"B": size, "value": mean.value, "rate": _short(rule)}
            for here, size, rule in comparison.settings
            if here == budget and (mean := comparison.mean((here, size, rule), name))
        ]
        if rows:
            specs[name] = finished(_against_batch(rows, name))
    rows = [
        {
            "setting": f"B = {setting[1]:,}, {rate_words(setting[2])}",
            "budget": title,
            "value": difference.value,
            "low": max(difference.low, -1e300),
            "high": min(difference.high, 1e300),
            "shown": str(difference),
        }
        for budget, title in TITLES.items()
        for setting in comparison.compared(budget)
        if (difference := comparison.difference(setting))
    ]
    if rows:
        height = 40 + 20 * len(rows)
        specs["difference"] = finished(_forest(rows, EDGE * comparison.gained), height)
    return specs


def _short(rule: str) -> str:
    return "same" if rule == KEPT else rule


def _courses(comparison: Comparison, budget: Budget, axis: str, name: str) -> Any:
    """Means over seeds along the runs: a line for each batch and rate."""
    rows, held = [], name == "held out"
    settings = [s for s in comparison.settings if s[0] == budget]
    for setting in settings:
        seen: dict[int, list[float]] = {}
        for run in comparison.of(setting):
            for updates, *losses in run.course:
                seen.setdefault(updates, []).append(losses[held])
        line = {"B": f"{setting[1]:,}", "rate": _short(setting[2])}
        each = setting[1] if axis == "examples" else 1
        rows += [
            {axis: updates * each, "value": float(np.mean(values)), **line}
            for updates, values in sorted(seen.items())
        ]
    scale = alt.Scale(zero=False)
    if comparison.goal == "min" and all(float(row["value"]) > 0 for row in rows):
        start = comparison.start_held_out if held else comparison.start_train_loss
        scale = alt.Scale(type="log", nice=False, domainMax=1.5 * start, clamp=True)
    places = alt.Scale(type="log", nice=False)
    sizes = [f"{size:,}" for size in sorted({s[1] for s in settings})]
    rates = list(dict.fromkeys(_short(s[2]) for s in settings))
    dashes = alt.Scale(domain=rates, range=[[1, 0], [8, 3], [2, 3], [8, 3, 2, 3]])
    return (
        chart(rows)
        .mark_line(strokeWidth=1.8)
        .encode(
            x=alt.X(f"{axis}:Q", scale=places, axis=alt.Axis(grid=False, format="~s")),
            y=alt.Y("value:Q", title=name, scale=scale, axis=alt.Axis(tickCount=6)),
            color=_coloured("B", sizes).title("B"),
            strokeDash=alt.StrokeDash("rate:N", scale=dashes).legend(orient="top"),
            tooltip=["B:N", "rate:N", *tooltip(**{axis: ",d", "value": ".3g"})],
        )
    )


def _forest(rows: list[dict[str, Any]], edge: float) -> Any:
    """Differences from the smallest batch, with intervals, one above another."""
    budgets = list(TITLES.values())
    base = chart(rows).encode(
        y=alt.Y("setting:N", sort=None, axis=alt.Axis(labelLimit=260, title=None)),
        yOffset=alt.YOffset("budget:N", sort=budgets),
        color=_coloured("budget", budgets, ["#8a93a0", "#5b8def", "#d1622b"]),
        tooltip=["setting:N", "budget:N", "shown:N"],
    )
    edges = alt.Scale(domain=[-edge, edge], clamp=True)
    title = "held out, minus that of the smallest batch"
    bars = base.mark_rule(strokeWidth=2).encode(x="low:Q", x2="high:Q")
    dots = base.mark_point(filled=True, size=60, opacity=1).encode(x="value:Q")
    zero = chart([{"value": 0.0}]).mark_rule(strokeDash=[4, 4], color="#8a93a0")
    return zero.encode(x=alt.X("value:Q", title=title, scale=edges)) + bars + dots


def _against_batch(rows: list[dict[str, Any]], name: str) -> Any:
    """A number of the runs against their batch, a line for each way of the rate."""
    return (
        chart(rows)
        .mark_line(point=True)
        .encode(
            x=batch_axis(row["B"] for row in rows),
            y=log_axis("value", name),
            color=_coloured("rate", list(dict.fromkeys(row["rate"] for row in rows))),
            tooltip=["rate:N", *tooltip(B="d", value=".3g")],
        )
    )


def _coloured(
    field: str, values: Sequence[str], palette: Sequence[str] = PALETTE
) -> alt.Color:
    """A colour for every value of a field, from the start again where they run out."""
    shown = {value: palette[i % len(palette)] for i, value in enumerate(values)}
    return colours(field, shown, legend=True)
