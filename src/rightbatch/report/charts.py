"""The charts of the page, as Vega-Lite specifications built with altair."""

from __future__ import annotations

import math
from typing import Any

import altair as alt

from rightbatch.measure.measurements import Race
from rightbatch.plan.choice import Choice
from rightbatch.plan.options import Option

Spec = dict[str, Any]
BATCH = "batch size B (examples per step)"
# Colours that hold on white and on near-black: chosen, today, neutral.
CHOSEN, TODAY, PLAIN = "#2a9d6f", "#d1622b", "#5b8def"
HEIGHT = 240


def all_charts(choice: Choice) -> dict[str, Spec]:
    """Every chart the data allow, by the place it has on the page."""
    charts = {
        "time": time_chart(choice),
        "step": step_chart(choice),
        "noise": noise_chart(choice),
        "progress": progress_chart(choice),
        "tradeoff": tradeoff_chart(choice),
    }
    if choice.measurements.race is not None:
        charts["race"] = race_chart(choice.measurements.race)
    return {name: _finished(chart) for name, chart in charts.items()}


def _finished(chart: Any) -> Spec:
    spec: Spec = chart.properties(width="container", height=HEIGHT).to_dict()
    # Data stay inside each chart; colours of axes come from the page's theme.
    spec.pop("config", None)
    return _finite(spec)


def _finite(value: Any) -> Any:
    """The same without infinities, which JSON does not have and no axis can show."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _chart(rows: list[dict[str, Any]]) -> Any:
    return alt.Chart(alt.Data(values=rows))


def _batch_axis(title: str = BATCH) -> alt.X:
    return alt.X(
        "B:Q",
        title=title,
        scale=alt.Scale(type="log", base=2, nice=False),
        axis=alt.Axis(format="d", labelOverlap=True, grid=False),
    )


def _log_axis(field: str, title: str, **scale: Any) -> alt.Y:
    return alt.Y(
        f"{field}:Q", title=title, scale=alt.Scale(type="log", nice=False, **scale)
    )


def _colours(field: str, colours: dict[str, str], *, legend: bool = False) -> alt.Color:
    return alt.Color(
        f"{field}:N",
        title=None,
        legend=alt.Legend(orient="top") if legend else None,
        scale=alt.Scale(domain=list(colours), range=list(colours.values())),
    )


def _tooltip(**formats: str) -> list[alt.Tooltip]:
    return [alt.Tooltip(f"{field}:Q", format=f) for field, f in formats.items()]


def _end(value: float, most: float) -> float:
    return min(value, most) if math.isfinite(value) else most


def _shown(choice: Choice) -> list[Option]:
    """Options not absurdly slow: beyond 8 x the best nobody looks."""
    best = choice.by_laws.time.value
    return [o for o in choice.options if o.time.value < 8 * best]


def _marks(choice: Choice, x: alt.X, **place: Any) -> Any:
    """Today's and the chosen batch as labelled points over their time."""
    marked = {"today": choice.baseline, "chosen": choice.chosen}
    if choice.baseline.batch_size == choice.chosen.batch_size:
        del marked["today"]
    best = choice.chosen.batch_size
    base = _chart(
        [
            {
                "B": option.batch_size,
                "time": option.time.value,
                "examples": option.examples.value,
                "which": which,
                "label": f"{which}: B = {option.batch_size}",
                # Towards the best, where the curve falls away from the label.
                "side": (best > option.batch_size) - (best < option.batch_size),
            }
            for which, option in marked.items()
        ]
    ).encode(
        x=x, y="time:Q", color=_colours("which", {"chosen": CHOSEN, "today": TODAY})
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
            "time": o.time.value,
            "low": o.time.low,
            "high": _end(o.time.high, most),
        }
        for o in shown
    ]
    base = _chart(rows).encode(x=_batch_axis())
    title, limits = "time to the same result (today = 1)", {"domainMax": most}
    low, high = choice.flat
    flat = (
        _chart([{"B": low * 0.97, "to": high * 1.03}])
        .mark_rect(color=CHOSEN, opacity=0.13)
        .encode(x=_batch_axis(), x2="to:Q")
    )
    band = base.mark_area(opacity=0.18, color=PLAIN).encode(
        y=_log_axis("low", title, clamp=True, **limits), y2="high:Q"
    )
    line = base.mark_line(color=PLAIN, point=alt.OverlayMarkDef(color=PLAIN)).encode(
        y=_log_axis("time", title, clamp=True, **limits),
        tooltip=_tooltip(B="d", time=".2f", low=".2f", high=".2f"),
    )
    return (
        flat
        + band
        + line
        + _marks(choice, _batch_axis(), dy=-14, dx={"expr": "42 * datum.side"})
    )


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
    x, title = _batch_axis("micro-batch (examples)"), "step time (ms)"
    line = _chart(curve).mark_line(color=PLAIN).encode(x=x, y=_log_axis("ms", title))
    base = _chart(points).encode(x=x)
    bars = base.mark_rule(color=TODAY).encode(y=_log_axis("low", title), y2="high:Q")
    dots = base.mark_point(filled=True, color=TODAY, opacity=1).encode(
        y=_log_axis("ms", title), tooltip=_tooltip(B="d", ms=".3g")
    )
    return line + bars + dots


def noise_chart(choice: Choice) -> Any:
    """The noise scale along the measuring run, and the critical batch it gives."""
    points = choice.measurements.noise
    by_optimizer = choice.laws.noise.metric == "optimizer"
    critical = choice.laws.noise.critical_batch.value
    top = max([1.0, *(p.noise_scale.high for p in points if p.noise_scale.bounded)])
    if math.isfinite(critical):
        top = min(max(top, 3 * critical), 30 * critical)
    rows: list[dict[str, Any]] = [
        {
            "examples": p.examples,
            "N": _end(p.noise_scale.value, top),
            "low": max(min(p.noise_scale.low, top), 0.3),
            "high": _end(p.noise_scale.high, top),
            "which": "plain",
        }
        for p in points
    ]
    colours = {"plain": PLAIN}
    if by_optimizer:
        colours["optimizer's metric"] = CHOSEN
        rows += [
            {
                "examples": p.examples,
                "N": _end(m.trace / m.grad_norm_sq, top) if m.grad_norm_sq > 0 else top,
                "which": "optimizer's metric",
            }
            for p in points
            if (m := p.preconditioned) is not None
        ]
    title = "noise scale (examples)"
    base = _chart(rows).encode(
        x=alt.X("examples:Q", title="examples seen", axis=alt.Axis(grid=False)),
        color=_colours("which", colours, legend=by_optimizer),
    )
    bars = base.mark_rule(opacity=0.6).encode(y=_log_axis("low", title), y2="high:Q")
    bars = bars.transform_filter("isValid(datum.low)")
    dots = base.mark_point(filled=True, opacity=1).encode(
        y=_log_axis("N", title), tooltip=_tooltip(examples="d", N=".3g")
    )
    level = _chart([{"N": critical}]).mark_rule(color=TODAY, strokeDash=[5, 4])
    return bars + dots + level.encode(y=_log_axis("N", title))


def progress_chart(choice: Choice) -> Any:
    """Steps and examples to the same result against B: one falls, one rises."""
    rows = [
        {"B": o.batch_size, "ratio": value, "which": which}
        for o in _shown(choice)
        for which, value in (("steps", o.steps.value), ("examples", o.examples.value))
    ]
    return (
        _chart(rows)
        .mark_line(point=True)
        .encode(
            x=_batch_axis(),
            y=_log_axis("ratio", "needed (today = 1)"),
            color=_colours("which", {"steps": PLAIN, "examples": TODAY}, legend=True),
            tooltip=_tooltip(B="d", ratio=".3g"),
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
    base = _chart(rows).encode(
        x=x, y=_log_axis("time", "time (today = 1)", padding=16), order=alt.Order("B:Q")
    )
    line = base.mark_line(color=PLAIN, point=alt.OverlayMarkDef(color=PLAIN))
    labels = base.mark_text(dx=9, dy=9, fontSize=10, opacity=0.75).encode(
        text="label:N"
    )
    # Higher than the point, since the curve rises beside it.
    return line + labels + _marks(choice, x, dx=2, dy=-42, align="left")


def race_chart(race: Race) -> Any:
    """Speed of every candidate with its interval, today's being 1."""
    rows = [
        {
            "candidate": f"B = {candidate.batch_size} ({candidate.role})",
            "speed": candidate.speedup.value,
            "low": candidate.speedup.low,
            "high": candidate.speedup.high,
            "role": candidate.role if candidate.role in ("plan", "today") else "other",
        }
        for candidate in race.candidates
    ]
    colours = {"plan": CHOSEN, "today": TODAY, "other": PLAIN}
    base = _chart(rows).encode(
        y=alt.Y("candidate:N", title=None, sort=None), color=_colours("role", colours)
    )
    bars = base.mark_rule(strokeWidth=3).encode(
        x=alt.X("low:Q", title="speed (today's batch = 1)"), x2="high:Q"
    )
    dots = base.mark_point(filled=True, size=140, opacity=1).encode(
        x=alt.X("speed:Q", scale=alt.Scale(zero=False)), tooltip=_tooltip(speed=".2f")
    )
    return bars + dots
