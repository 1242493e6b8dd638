"""The page of a surface: what the loss looks like, and the paths on it."""

from __future__ import annotations

import math
from typing import Any, Literal

import altair as alt
import numpy as np

from rightbatch.landscape.loss_surface import Surface
from rightbatch.report.frame import framed, templates
from rightbatch.report.vega import PLAIN, Spec, chart, colours, finished, tooltip

# Of paths: apart from one another and from the surface below.
PATHS = ["#f2542d", "#f5c518", "#2ec4a6", "#e879c6", "#8fd14f"]
SURFACE = ["#eef3fb", "#b9cbe6", "#7f9bc8", "#4a6799", "#1d2c4d"]  # low to high
LOST = "#c0392b"


def page(surface: Surface) -> str:
    """The whole file as text; it asks the network for nothing."""
    specs = charts(surface)
    template = templates().get_template("surface.html.j2")
    lost = int((~np.isfinite(surface.losses)).sum())
    body = template.render(surface=surface, lost=lost)
    return framed(f"{surface.job}: loss surface", body, specs)


def charts(surface: Surface) -> dict[str, Spec]:
    """Specifications by the id of their place: ``surface``, and ``walks`` if any."""
    draw = _line if len(surface.axes) == 1 else _plane
    drawn = {"surface": finished(draw(surface), height=420)}
    if surface.walks:
        drawn["walks"] = finished(_along(surface), height=420)
    return drawn


def _palette(surface: Surface) -> dict[str, str]:
    names = [walk.name for walk in surface.walks]
    return {name: PATHS[i % len(PATHS)] for i, name in enumerate(names)}


def _axis(surface: Surface, i: int) -> str:
    if not surface.explained:
        return f"random direction {i + 1} (1: each filter's length)"
    return f"component {i + 1} ({surface.explained[i]:.0%} of the variance)"


def _rows(surface: Surface) -> list[dict[str, Any]]:
    """Points of the trajectories with where they lie."""
    return [
        {
            "run": walk.name,
            "examples": examples,
            "loss": loss if math.isfinite(loss) else None,
            **{name: float(v) for name, v in zip("xy", place, strict=False)},
            "end": i == len(walk.losses) - 1,
        }
        for walk in surface.walks
        for i, (examples, loss, place) in enumerate(
            zip(walk.examples, walk.losses, walk.places, strict=True)
        )
    ]


def _scale(losses: np.ndarray) -> Literal["log", "linear"]:
    """A log scale where all losses are above zero."""
    finite = losses[np.isfinite(losses)]
    return "log" if finite.size and finite.min() > 0 else "linear"


def _plane(surface: Surface) -> Any:
    # A little more than half a cell: no seams between them.
    halves = [0.52 * (axis[1] - axis[0]) for axis in surface.axes]
    cells = [
        {
            "x": float(x - halves[0]),
            "x2": float(x + halves[0]),
            "y": float(y - halves[1]),
            "y2": float(y + halves[1]),
            "loss": float(f"{loss:.4g}") if math.isfinite(loss) else None,
        }
        for x, row in zip(surface.axes[0], surface.losses, strict=True)
        for y, loss in zip(surface.axes[1], row, strict=True)
    ]
    titles = [_axis(surface, i) for i in range(2)]
    flat = {"scale": alt.Scale(nice=False, zero=False), "axis": alt.Axis(grid=False)}
    x = alt.X("x:Q", title=titles[0], **flat)
    y = alt.Y("y:Q", title=titles[1], **flat)
    finite = surface.losses[np.isfinite(surface.losses)]
    kind = _scale(surface.losses)
    spaced = np.geomspace if kind == "log" else np.linspace
    domain = [float(v) for v in spaced(finite.min(), finite.max(), len(SURFACE))]
    colour = alt.Color(
        "loss:Q",
        title="loss",
        scale=alt.Scale(type=kind, domain=domain, range=SURFACE),
        legend=alt.Legend(orient="right", format="~g", gradientLength=300),
    )
    base = chart(cells)
    heat = base.mark_rect().encode(
        x=x, y=y, x2="x2:Q", y2="y2:Q", color=colour, tooltip=tooltip(loss=".4g")
    )
    lost = base.transform_filter("!isValid(datum.loss)").mark_rect(color=LOST)
    layers = heat + lost.encode(x=x, y=y, x2="x2:Q", y2="y2:Q")
    if not surface.walks:
        middle = chart([{"x": 0.0, "y": 0.0}]).mark_point(
            shape="cross", size=120, filled=True, color=PATHS[0], opacity=1
        )
        return layers + middle.encode(x=x, y=y)
    way = chart(_rows(surface)).encode(
        x=x, y=y, color=colours("run", _palette(surface), legend=True)
    )
    told = tooltip(examples=",d", loss=".4g")
    walks = way.mark_line(strokeWidth=2.5).encode(order="examples:Q")
    dots = way.mark_point(filled=True, size=30, opacity=1).encode(tooltip=told)
    ends = way.transform_filter("datum.end").mark_point(
        filled=True, size=170, opacity=1, stroke="#fff", strokeWidth=2
    )
    return (layers + (walks + dots + ends)).resolve_scale(color="independent")


def _line(surface: Surface) -> Any:
    rows = [
        {"x": float(x), "loss": float(loss) if math.isfinite(loss) else None}
        for x, loss in zip(surface.axes[0], surface.losses, strict=True)
    ]
    x = alt.X("x:Q", title=_axis(surface, 0), scale=alt.Scale(nice=False, zero=False))
    scale = alt.Scale(type=_scale(surface.losses), nice=False, zero=False, padding=10)
    y = alt.Y("loss:Q", title="loss", scale=scale)
    base = chart(rows).encode(x=x)
    curve = base.mark_line(color=PLAIN, strokeWidth=2.2).encode(y=y)
    dots = base.mark_point(color=PLAIN, filled=True, size=24, opacity=1).encode(
        y=y, tooltip=tooltip(x=".3g", loss=".4g")
    )
    lost = base.transform_filter("!isValid(datum.loss)").mark_point(
        shape="cross", angle=45, filled=True, size=90, color=LOST, opacity=1
    )
    layers = curve + dots + lost.encode(y=alt.value(10))
    if not surface.walks:
        return layers
    way = chart(_rows(surface)).mark_point(filled=True, size=60, opacity=1)
    colour = colours("run", _palette(surface), legend=True)
    return layers + way.encode(x=x, y=y, color=colour)


def _along(surface: Surface) -> Any:
    """The loss of each run at its own weights, by examples seen."""
    rows = _rows(surface)
    losses = np.array([loss for walk in surface.walks for loss in walk.losses])
    scale = alt.Scale(type=_scale(losses), nice=False, zero=False, padding=10)
    lines = chart(rows).encode(
        x=alt.X("examples:Q", title="examples seen", axis=alt.Axis(grid=False)),
        y=alt.Y("loss:Q", title="loss at the run's own weights", scale=scale),
        color=colours("run", _palette(surface), legend=True),
        tooltip=tooltip(examples=",d", loss=".4g"),
    )
    return lines.mark_line(strokeWidth=2.2) + lines.mark_point(
        filled=True, size=24, opacity=1
    )
