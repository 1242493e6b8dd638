"""The pictures of the lab: lines, points with intervals, and bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import altair as alt

from rightbatch.core.estimate import Estimate
from rightbatch.report.vega import (
    PALETTE,
    PLAIN,
    TODAY,
    Spec,
    chart,
    finished,
)


@dataclass(frozen=True)
class Series:
    """Points that belong together.

    Attributes:
        name: For the legend.
        x: Where, of the same length as ``y``.
        y: Values, or estimates, whose intervals are drawn.
        kind: ``"line"``, ``"dashed"`` (of theory), or ``"points"``.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | Estimate]
    kind: Literal["line", "dashed", "points"] = "line"

    def rows(self) -> list[dict[str, Any]]:
        """One for every point, in order."""
        rows = []
        for order, (x, y) in enumerate(zip(self.x, self.y, strict=True)):
            estimate = y if isinstance(y, Estimate) else Estimate.exact(float(y))
            rows.append(
                {
                    "x": float(x),
                    "y": estimate.value,
                    "low": estimate.low,
                    "high": estimate.high,
                    "series": self.name,
                    "order": order,
                }
            )
        return rows


def plot(
    series: Sequence[Series],
    x_title: str,
    y_title: str,
    *,
    log: Literal["", "x", "y", "xy"] = "",
    zero: bool = False,
) -> Spec:
    """Lines and points over one pair of axes.

    Args:
        series: What is drawn, at most eight.
        x_title: With its unit.
        y_title: With its unit.
        log: Which axes are logarithmic.
        zero: Whether the vertical axis begins at zero.
    """
    colour = alt.Color(
        "series:N",
        title=None,
        legend=alt.Legend(orient="top", columns=2, labelLimit=380, symbolOpacity=1),
        scale=alt.Scale(
            domain=[s.name for s in series], range=list(PALETTE[: len(series)])
        ),
    )

    def scale(axis: str) -> alt.Scale:
        kind = "log" if axis in log else "linear"
        return alt.Scale(type=kind, nice=False, zero=zero and axis == "y")

    x = alt.X("x:Q", title=x_title, scale=scale("x"), axis=alt.Axis(grid=False))
    layers = []
    for one in series:
        base = chart(one.rows()).encode(x=x, color=colour)
        y = alt.Y("y:Q", title=y_title, scale=scale("y"))
        tips = [alt.Tooltip(f"{n}:Q", format=".4g") for n in ("x", "y", "low", "high")]
        if one.kind == "points":
            ends = alt.Y("low:Q", title=y_title, scale=scale("y"))
            if any(isinstance(value, Estimate) for value in one.y):
                layers.append(base.mark_rule().encode(y=ends, y2="high:Q"))
            layers.append(
                base.mark_point(filled=True, size=55, opacity=1).encode(
                    y=y, tooltip=tips
                )
            )
        else:
            dash = [5, 4] if one.kind == "dashed" else [1, 0]
            layers.append(base.mark_line(strokeDash=dash).encode(y=y, order="order:Q"))
    return finished(alt.layer(*layers))


def bars(
    values: Mapping[str, float | Estimate], y_title: str, *, log: bool = False
) -> Spec:
    """A bar for every name, with its interval, in the order given.

    Args:
        values: By name.
        y_title: With its unit.
        log: Whether the axis of values is logarithmic; then dots, as bars need a zero.
    """
    rows = [
        row | {"series": name}
        for name, value in values.items()
        for row in Series(name, [0.0], [value]).rows()
    ]
    base = chart(rows).encode(
        y=alt.Y("series:N", title=None, sort=None, axis=alt.Axis(labelLimit=260))
    )
    scale = alt.Scale(type="log" if log else "linear", nice=True, zero=not log)
    x = alt.X("y:Q", title=y_title, scale=scale)
    mark = (
        base.mark_point(filled=True, size=70, color=PLAIN, opacity=1)
        if log
        else base.mark_bar(color=PLAIN, height=14)
    )
    ends = base.mark_rule(strokeWidth=2, color=TODAY).encode(
        x=alt.X("low:Q", title=y_title, scale=scale), x2="high:Q"
    )
    return finished(mark.encode(x=x) + ends, 34 * len(values) + 30)
