"""The charts of the page, as Vega-Lite specifications built with altair."""

from __future__ import annotations

import math
from typing import Any

import altair as alt

from rightbatch.measure.record import Race
from rightbatch.plan.choice import Choice

Spec = dict[str, Any]
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


def _batch_axis(title: str = "batch size B (examples per step)") -> alt.X:
    return alt.X(
        "B:Q",
        title=title,
        scale=alt.Scale(type="log", base=2, nice=False),
        axis=alt.Axis(format="d", labelOverlap=True, grid=False),
    )


def _end(value: float, most: float) -> float:
    return min(value, most) if math.isfinite(value) else most


def _shown(choice: Choice) -> list[Any]:
    """Options not absurdly slow: beyond 8 x the best nobody looks."""
    best = choice.by_laws.time.value
    return [o for o in choice.options if o.time.value < 8 * best]


def _marks(choice: Choice, y: str) -> Any:
    """Today's and the chosen batch as labelled points."""
    picked = [(choice.chosen, "chosen")]
    if choice.baseline.batch_size != choice.chosen.batch_size:
        picked.append((choice.baseline, "today"))
    best = choice.chosen.batch_size
    rows = [
        {
            "B": o.batch_size,
            "time": o.time.value,
            "examples": o.examples.value,
            "which": which,
            "label": f"{which}: B = {o.batch_size}",
            # Towards the best, where the curve falls away from the label.
            "align": "left" if o.batch_size < best else "right",
        }
        for o, which in picked
    ]
    rows[0]["align"] = "center"
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=alt.Y(f"{y}:Q"),
        color=alt.Color(
            "which:N",
            legend=None,
            scale=alt.Scale(domain=["chosen", "today"], range=[CHOSEN, TODAY]),
        ),
    )
    x = _batch_axis() if y == "time" else alt.X("examples:Q")
    if y != "time":
        base = base.encode(y=alt.Y("time:Q"))
    points = base.mark_point(filled=True, size=110, opacity=1).encode(x=x)
    # Higher in the trade-off, where the curve rises beside the point.
    place: Spec = {"dx": 2, "align": "left", "dy": -42}
    if y == "time":
        place = {"dy": -14, "align": {"expr": "datum.align"}}
    names = base.mark_text(fontWeight="bold", **place).encode(x=x, text="label:N")
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
            "split": f"{o.micro_batch} x {o.accumulation}",
        }
        for o in shown
    ]
    base = alt.Chart(alt.Data(values=rows)).encode(x=_batch_axis())
    y = alt.Y(
        "time:Q",
        title="time to the same result (today = 1)",
        scale=alt.Scale(type="log", domainMax=most, clamp=True, nice=False),
    )
    low, high = choice.flat
    flat = (
        alt.Chart(alt.Data(values=[{"B": low * 0.97, "to": high * 1.03}]))
        .mark_rect(color=CHOSEN, opacity=0.13)
        .encode(x=_batch_axis(), x2="to:Q")
    )
    band = base.mark_area(opacity=0.18, color=PLAIN).encode(y=y, y2="high:Q")
    band = band.encode(y=alt.Y("low:Q", title="time to the same result (today = 1)"))
    line = base.mark_line(color=PLAIN, point=alt.OverlayMarkDef(color=PLAIN)).encode(
        y=y,
        tooltip=[
            alt.Tooltip("B:Q", format="d"),
            alt.Tooltip("time:Q", format=".2f"),
            alt.Tooltip("low:Q", format=".2f"),
            alt.Tooltip("high:Q", format=".2f"),
            "split:N",
        ],
    )
    return flat + band + line + _marks(choice, "time")


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
    y = alt.Y("ms:Q", title="step time (ms)", scale=alt.Scale(type="log", nice=False))
    line = alt.Chart(alt.Data(values=curve)).mark_line(color=PLAIN)
    line = line.encode(x=_batch_axis("micro-batch (examples)"), y=y)
    base = alt.Chart(alt.Data(values=points)).encode(
        x=_batch_axis("micro-batch (examples)")
    )
    bars = base.mark_rule(color=TODAY).encode(
        y=alt.Y("low:Q", title="step time (ms)"), y2="high:Q"
    )
    dots = base.mark_point(filled=True, color=TODAY, opacity=1).encode(
        y=y, tooltip=[alt.Tooltip("B:Q", format="d"), alt.Tooltip("ms:Q", format=".3g")]
    )
    return line + bars + dots


def noise_chart(choice: Choice) -> Any:
    """The noise scale along the measuring run, and the critical batch it gives."""
    points = choice.measurements.noise
    by_optimizer = choice.laws.noise.metric == "optimizer"
    critical = choice.laws.noise.critical_batch.value
    ends = [p.noise_scale.high for p in points if p.noise_scale.bounded]
    top = max([*ends, 1.0])
    if math.isfinite(critical):
        top = min(max(top, 3 * critical), 30 * critical)
    rows = []
    for p in points:
        e = p.noise_scale
        rows.append(
            {
                "examples": p.examples,
                "N": _end(e.value, top),
                "low": max(min(e.low, top), 0.3),
                "high": _end(e.high, top),
                "which": "plain",
            }
        )
        moments = p.preconditioned if by_optimizer else None
        if moments is not None:
            signal, trace = moments.grad_norm_sq, moments.trace
            rows.append(
                {
                    "examples": p.examples,
                    "N": _end(trace / signal if signal > 0 else math.inf, top),
                    "which": "optimizer's metric",
                }
            )
    names = ["plain", "optimizer's metric"] if by_optimizer else ["plain"]
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("examples:Q", title="examples seen", axis=alt.Axis(grid=False)),
        color=alt.Color(
            "which:N",
            title=None,
            scale=alt.Scale(domain=names, range=[PLAIN, CHOSEN][: len(names)]),
            legend=alt.Legend(orient="top") if by_optimizer else None,
        ),
    )
    y = alt.Y(
        "N:Q", title="noise scale (examples)", scale=alt.Scale(type="log", nice=False)
    )
    bars = base.mark_rule(opacity=0.6).encode(
        y=alt.Y("low:Q", title="noise scale (examples)"), y2="high:Q"
    )
    bars = bars.transform_filter("isValid(datum.low)")
    dots = base.mark_point(filled=True, opacity=1).encode(
        y=y, tooltip=["examples:Q", alt.Tooltip("N:Q", format=".3g"), "which:N"]
    )
    level = (
        alt.Chart(alt.Data(values=[{"N": critical, "label": f"B_crit {critical:.3g}"}]))
        .mark_rule(color=TODAY, strokeDash=[5, 4])
        .encode(y=y)
    )
    return bars + dots + level


def progress_chart(choice: Choice) -> Any:
    """Steps and examples to the same result against B: one falls, one rises."""
    rows = [
        {"B": o.batch_size, "ratio": value, "which": which}
        for o in _shown(choice)
        for which, value in (("steps", o.steps.value), ("examples", o.examples.value))
    ]
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_line(point=True)
        .encode(
            x=_batch_axis(),
            y=alt.Y(
                "ratio:Q",
                title="needed (today = 1)",
                scale=alt.Scale(type="log", nice=False),
            ),
            color=alt.Color(
                "which:N",
                title=None,
                scale=alt.Scale(domain=["steps", "examples"], range=[PLAIN, TODAY]),
                legend=alt.Legend(orient="top"),
            ),
            tooltip=["which:N", alt.Tooltip("B:Q", format="d"), "ratio:Q"],
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
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X(
            "examples:Q",
            title="examples to the same result (today = 1)",
            scale=alt.Scale(type="log", nice=False, padding=12),
            axis=alt.Axis(grid=False),
        ),
        y=alt.Y(
            "time:Q",
            title="time (today = 1)",
            scale=alt.Scale(type="log", nice=False, padding=16),
        ),
        order=alt.Order("B:Q"),
    )
    line = base.mark_line(color=PLAIN, point=alt.OverlayMarkDef(color=PLAIN))
    labels = base.mark_text(dx=9, dy=9, fontSize=10, opacity=0.75).encode(
        text="label:N"
    )
    return line + labels + _marks(choice, "examples")


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
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=alt.Y("candidate:N", title=None, sort=None),
        color=alt.Color(
            "role:N",
            legend=None,
            scale=alt.Scale(
                domain=["plan", "today", "other"], range=[CHOSEN, TODAY, PLAIN]
            ),
        ),
    )
    bars = base.mark_rule(strokeWidth=3).encode(
        x=alt.X("low:Q", title="speed (today's batch = 1)"), x2="high:Q"
    )
    dots = base.mark_point(filled=True, size=140, opacity=1).encode(
        x=alt.X("speed:Q", scale=alt.Scale(zero=False)),
        tooltip=["candidate:N", alt.Tooltip("speed:Q", format=".2f")],
    )
    return bars + dots
