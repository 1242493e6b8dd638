"""The charts of the page, as Vega-Lite specifications built with altair."""

from __future__ import annotations

import math
from typing import Any

import altair as alt

from rightbatch.plan.choice import Choice
from rightbatch.plan.options import Option
from rightbatch.plan.raced import Standing
from rightbatch.plan.verdict import cost_unit
from rightbatch.report.race_charts import curves_chart, map_chart
from rightbatch.report.vega import (
    CHOSEN,
    PLAIN,
    RACED,
    TODAY,
    Spec,
    batch_axis,
    chart,
    colours,
    finished,
    log_axis,
    tooltip,
)

MAP_HEIGHT = 380


def all_charts(choice: Choice) -> dict[str, Spec]:
    """Every chart the data allow, by the place it has on the page."""
    charts = {
        "time": time_chart(choice),
        "step": step_chart(choice),
        "progress": progress_chart(choice),
        "tradeoff": tradeoff_chart(choice),
    }
    if choice.measurements.noise:
        charts["noise"] = noise_chart(choice)
    if choice.measurements.race is not None:
        charts["curves"] = curves_chart(choice)
    specs = {name: finished(chart) for name, chart in charts.items()}
    if choice.raced is not None:
        specs["map"] = finished(map_chart(choice, choice.raced), MAP_HEIGHT)
    return specs


def _end(value: float, most: float) -> float:
    return min(value, most) if math.isfinite(value) else most


def _shown(choice: Choice) -> list[Option]:
    """Options not absurdly slow: beyond 8 x the best nobody looks."""
    best = choice.by_laws.time.value
    return [o for o in choice.options if o.time.value < 8 * best]


def _sizes_axis(options: list[Option]) -> alt.X:
    return batch_axis(option.batch_size for option in options)


def _marks(choice: Choice, x: alt.X, **place: Any) -> Any:
    """Today's and the chosen batch as labelled points over their time."""
    marked = {"today": choice.baseline, "chosen": choice.chosen}
    if choice.stays:
        del marked["chosen"]
    best, kept = choice.chosen.batch_size, ", kept" if choice.stays else ""
    base = chart(
        [
            {
                "B": option.batch_size,
                "time": option.time.value,
                "examples": option.examples.value,
                "which": which,
                "label": f"{which}{kept}: B = {option.batch_size}",
                # Towards the best, where the curve falls away from the label.
                "side": (best > option.batch_size) - (best < option.batch_size),
            }
            for which, option in marked.items()
        ]
    ).encode(
        x=x, y="time:Q", color=colours("which", {"chosen": CHOSEN, "today": TODAY})
    )
    points = base.mark_point(filled=True, size=110, opacity=1)
    names = base.mark_text(fontWeight="bold", **place).encode(text="label:N")
    return points + names


def time_chart(choice: Choice) -> Any:
    """Time to the same result against B, with its band."""
    shown = _shown(choice)
    most = 1.5 * max(o.time.value for o in shown)
    rows = [
        {
            "B": o.batch_size,
            "lr": o.lr,
            "time": o.time.value,
            "low": o.time.low,
            "high": _end(o.time.high, most),
        }
        for o in shown
    ]
    x = _sizes_axis(shown)
    base = chart(rows).encode(x=x)
    least = min(o.time.value for o in shown) / 4
    title = "time to the same result (today = 1)"
    limits = {"domainMin": least, "domainMax": most}
    low, high = choice.flat
    flat = (
        chart([{"B": low * 0.97, "to": high * 1.03}])
        .mark_rect(color=CHOSEN, opacity=0.13)
        .encode(x=x, x2="to:Q")
    )
    band = base.mark_area(opacity=0.18, color=PLAIN).encode(
        y=log_axis("low", title, clamp=True, **limits), y2="high:Q"
    )
    line = base.mark_line(color=PLAIN, point=alt.OverlayMarkDef(color=PLAIN)).encode(
        y=log_axis("time", title, clamp=True, **limits),
        tooltip=tooltip(B="d", lr=".3g", time=".2f", low=".2f", high=".2f"),
    )
    place = {
        "dx": {"expr": "datum.side ? 42 * datum.side : 58"},
        "dy": {"expr": "datum.side ? -14 : 16"},
    }
    marks = _marks(choice, x, **place)
    return flat + band + line + _raced_times(choice, x, title, limits) + marks


def _raced_times(choice: Choice, x: alt.X, title: str, limits: dict[str, float]) -> Any:
    """The best setting raced of every batch, where the race was for time."""
    best: dict[int, Standing] = {}
    standings = choice.raced.standings if choice.raced is not None else ()
    for standing in standings if cost_unit(choice) == "time" else ():
        rival = best.get(standing.batch_size)
        if standing.runs and (rival is None or standing.cost.value < rival.cost.value):
            best[standing.batch_size] = standing
    rows = [
        {
            "B": batch_size,
            "lr": standing.lr,
            "time": standing.cost.value,
            "low": standing.cost.low,
            "high": _end(standing.cost.high, limits["domainMax"]),
        }
        for batch_size, standing in best.items()
    ]
    base = chart(rows).encode(x=x)
    bars = base.mark_rule(color=RACED, strokeWidth=2).encode(
        y=log_axis("low", title, clamp=True, **limits), y2="high:Q"
    )
    dots = base.mark_point(filled=True, color=RACED, size=70, opacity=1).encode(
        y=log_axis("time", title, clamp=True, **limits),
        tooltip=tooltip(B="d", lr=".3g", time=".2f", low=".2f", high=".2f"),
    )
    return bars + dots


def step_chart(choice: Choice) -> Any:
    """Step time against micro-batch: measured points, fitted law."""
    law, times = choice.laws.time, choice.measurements.times
    points = [
        {
            "B": p.micro_batch,
            "ms": 1e3 * p.step_time_s.value,
            "low": 1e3 * p.step_time_s.low,
            "high": 1e3 * p.step_time_s.high,
        }
        for p in times
    ]
    least, most = times[0].micro_batch, times[-1].micro_batch
    curve = [
        {"B": b, "ms": 1e3 * law.seconds(b)}
        for b in (least * (most / least) ** (i / 60) for i in range(61))
    ]
    x = batch_axis((p.micro_batch for p in times), "micro-batch (examples)")
    title = "step time (ms)"
    line = chart(curve).mark_line(color=PLAIN).encode(x=x, y=log_axis("ms", title))
    base = chart(points).encode(x=x)
    bars = base.mark_rule(color=TODAY).encode(y=log_axis("low", title), y2="high:Q")
    dots = base.mark_point(filled=True, color=TODAY, opacity=1).encode(
        y=log_axis("ms", title), tooltip=tooltip(B="d", ms=".3g")
    )
    return line + bars + dots


def noise_chart(choice: Choice) -> Any:
    """The noise scale along the measuring run, and the critical batch decided by."""
    points = choice.measurements.noise
    critical = choice.laws.rate.critical_batch.value
    top = max([1.0, *(p.noise_scale.high for p in points if p.noise_scale.bounded)])
    top = min(max(top, 3 * critical), 30 * critical)
    rows = [
        {
            "examples": p.examples,
            "N": _end(p.noise_scale.value, top),
            "low": max(min(p.noise_scale.low, top), 0.3),
            "high": _end(p.noise_scale.high, top),
        }
        for p in points
    ]
    by_optimizer = [
        {"examples": p.examples, "N": min(m.trace / m.grad_norm_sq, top)}
        for p in points
        if (m := p.preconditioned) is not None and m.grad_norm_sq > 0
    ]
    title = "noise scale (examples)"
    x = alt.X("examples:Q", title="examples seen", axis=alt.Axis(grid=False))
    y, tip = log_axis("N", title), tooltip(examples="d", N=".3g")
    base = chart(rows).encode(x=x)
    bars = base.mark_rule(opacity=0.6, color=PLAIN)
    bars = bars.encode(y=log_axis("low", title), y2="high:Q")
    dots = base.mark_point(filled=True, opacity=1, color=PLAIN)
    faint = chart(by_optimizer).mark_point(opacity=0.45, color=PLAIN, size=22)
    level = chart([{"N": critical}]).mark_rule(color=RACED, strokeDash=[5, 4])
    return (
        bars
        + faint.encode(x=x, y=y, tooltip=tip)
        + dots.encode(y=y, tooltip=tip)
        + level.encode(y=y)
    )


def progress_chart(choice: Choice) -> Any:
    """Steps and examples to the same result against B: one falls, one rises."""
    shown = _shown(choice)
    rows = [
        {"B": o.batch_size, "ratio": value, "which": which}
        for o in shown
        for which, value in (("steps", o.steps.value), ("examples", o.examples.value))
    ]
    return (
        chart(rows)
        .mark_line(point=True)
        .encode(
            x=_sizes_axis(shown),
            y=log_axis("ratio", "needed (today = 1)"),
            color=colours("which", {"steps": PLAIN, "examples": TODAY}, legend=True),
            tooltip=tooltip(B="d", ratio=".3g"),
        )
    )


def tradeoff_chart(choice: Choice) -> Any:
    """Time against examples: what speed costs in data."""
    marked = (choice.chosen.batch_size, choice.baseline.batch_size)
    rows = [
        {
            "B": o.batch_size,
            "time": o.time.value,
            "examples": o.examples.value,
            "label": "" if o.batch_size in marked else f"{o.batch_size}",
        }
        for o in _shown(choice)
    ]
    x = alt.X(
        "examples:Q",
        title="examples to the same result (today = 1)",
        scale=alt.Scale(type="log", nice=False, padding=12),
        axis=alt.Axis(grid=False),
    )
    base = chart(rows).encode(
        x=x, y=log_axis("time", "time (today = 1)", padding=34), order=alt.Order("B:Q")
    )
    line = base.mark_line(color=PLAIN, point=alt.OverlayMarkDef(color=PLAIN))
    labels = base.mark_text(dx=9, dy=9, fontSize=10, opacity=0.75).encode(
        text="label:N"
    )
    # Below the least of the curve; beside it where it rises.
    place = {
        "dx": {"expr": "datum.side ? 10 : -30"},
        "dy": {"expr": "datum.side > 0 ? -8 : datum.side ? 16 : 26"},
    }
    return line + labels + _marks(choice, x, align="left", **place)
