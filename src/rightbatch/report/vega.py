"""What all charts are made of: rows, axes, colours; and a finished specification."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import altair as alt

Spec = dict[str, Any]
BATCH = "batch size B (examples per step)"
# Colours that hold on white and on near-black: chosen, today, neutral, as raced.
CHOSEN, TODAY, PLAIN, RACED = "#2a9d6f", "#d1622b", "#5b8def", "#9467bd"
# Of lines that are told apart by name alone, in order.
PALETTE = (PLAIN, TODAY, CHOSEN, RACED, "#c2a02e", "#3aa6a6", "#c65b8d", "#8a8f98")
HEIGHT = 240


def finished(chart: Any, height: int = HEIGHT) -> Spec:
    """As the page draws it: as wide as its place, without any theme of its own."""
    spec: Spec = chart.properties(width="container", height=height).to_dict()
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


def chart(rows: list[dict[str, Any]]) -> Any:
    """A chart of rows, which stay inside it."""
    return alt.Chart(alt.Data(values=rows))


def batch_axis(sizes: Iterable[int], title: str = BATCH) -> alt.X:
    """Batch sizes by powers of two, with a tick at each of these."""
    ticks = sorted(set(sizes))
    return alt.X(
        "B:Q",
        title=title,
        scale=alt.Scale(type="log", base=2, nice=False),
        axis=alt.Axis(
            format="d", values=ticks, labelOverlap=True, labelSeparation=4, grid=False
        ),
    )


def log_axis(field: str, title: str, **scale: Any) -> alt.Y:
    """A vertical axis of logs."""
    return alt.Y(
        f"{field}:Q", title=title, scale=alt.Scale(type="log", nice=False, **scale)
    )


def colours(field: str, values: dict[str, str], *, legend: bool = False) -> alt.Color:
    """A colour for every value of a field."""
    return alt.Color(
        f"{field}:N",
        title=None,
        legend=alt.Legend(orient="top", symbolOpacity=1, symbolStrokeWidth=3)
        if legend
        else None,
        scale=alt.Scale(domain=list(values), range=list(values.values())),
    )


def tooltip(**formats: str) -> list[alt.Tooltip]:
    """Fields with their formats."""
    return [alt.Tooltip(f"{field}:Q", format=f) for field, f in formats.items()]
