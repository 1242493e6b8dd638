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
NARROW = alt.Scale(nice=False, zero=False)


def page(surface: Surface) -> str:
    """The whole file as text; it asks the network for nothing."""
    template = templates().get_template("surface.html.j2")
    lost = int((~np.isfinite(surface.losses)).sum())
    body = template.render(surface=surface, lost=lost)
    return framed(f"{surface.job}: loss surface", body, charts(surface))


def charts(surface: Surface) -> dict[str, Spec]:
    """The specification of its one chart by the id of its place."""
    drawn = _line(surface) if len(surface.axes) == 1 else _plane(surface)
    return {"surface": finished(drawn, height=420)}


def _places(surface: Surface, i: int) -> str:
    """The title of an axis."""
    if not surface.explained:
        return f"random direction {i + 1} (1: each filter's length)"
    return f"component {i + 1} ({surface.explained[i]:.0%} of the variance)"


def _scale(losses: np.ndarray) -> Literal["log", "linear"]:
    """A log scale where all losses are above zero."""
    return "log" if losses[np.isfinite(losses)].min() > 0 else "linear"


def _plane(surface: Surface) -> Any:
    # A little more than half a cell: no seams between them.
    halves = [0.52 * (axis[1] - axis[0]) for axis in surface.axes]
    cells = [
        {
            **{"x": float(x - halves[0]), "x2": float(x + halves[0])},
            **{"y": float(y - halves[1]), "y2": float(y + halves[1])},
            "loss": float(f"{loss:.4g}") if math.isfinite(loss) else None,
        }
        for x, row in zip(surface.axes[0], surface.losses, strict=True)
        for y, loss in zip(surface.axes[1], row, strict=True)
    ]
    bare = alt.Axis(grid=False)
    x = alt.X("x:Q", title=_places(surface, 0), scale=NARROW, axis=bare)
    y = alt.Y("y:Q", title=_places(surface, 1), scale=NARROW, axis=bare)
    finite = surface.losses[np.isfinite(surface.losses)]
    kind = _scale(surface.losses)
    spaced = np.geomspace if kind == "log" else np.linspace
    domain = [float(v) for v in spaced(finite.min(), finite.max(), len(SURFACE))]
    colour = alt.Color(
        "loss:Q",
        scale=alt.Scale(type=kind, domain=domain, range=SURFACE),
        legend=alt.Legend(orient="right", format="~g", gradientLength=300),
    )
    base = chart(cells).mark_rect().encode(x=x, y=y, x2="x2:Q", y2="y2:Q")
    lost = base.transform_filter("!isValid(datum.loss)")
    heat = base.encode(color=colour, tooltip=tooltip(loss=".4g"))
    layers = heat + lost.mark_rect(color=LOST)
    if not surface.walks:
        middle = chart([{"x": 0.0, "y": 0.0}]).encode(x=x, y=y)
        cross = {"shape": "cross", "size": 120, "filled": True, "opacity": 1}
        return layers + middle.mark_point(color=PATHS[0], **cross)
    return (layers + _walks(surface, x, y)).resolve_scale(color="independent")


def _walks(surface: Surface, x: alt.X, y: alt.Y) -> Any:
    """The trajectories where they lie; a dot's loss is that of the run itself."""
    rows = [
        {
            "run": walk.name,
            "examples": examples,
            "loss": loss if math.isfinite(loss) else None,
            "x": float(place[0]),
            "y": float(place[1]),
            "end": examples == walk.examples[-1],
        }
        for walk in surface.walks
        for examples, loss, place in zip(
            walk.examples, walk.losses, walk.places, strict=True
        )
    ]
    palette = {w.name: PATHS[i % len(PATHS)] for i, w in enumerate(surface.walks)}
    way = chart(rows).encode(x=x, y=y, color=colours("run", palette, legend=True))
    dots = way.mark_point(filled=True, size=30, opacity=1)
    ends = way.transform_filter("datum.end").mark_point(
        filled=True, size=170, opacity=1, stroke="#fff", strokeWidth=2
    )
    lines = way.mark_line(strokeWidth=2.5).encode(order="examples:Q")
    return lines + dots.encode(tooltip=tooltip(examples=",d", loss=".4g")) + ends


def _line(surface: Surface) -> Any:
    rows = [
        {"x": float(x), "loss": float(loss) if math.isfinite(loss) else None}
        for x, loss in zip(surface.axes[0], surface.losses, strict=True)
    ]
    scale = alt.Scale(type=_scale(surface.losses), nice=False, zero=False, padding=10)
    base = chart(rows).encode(x=alt.X("x:Q", title=_places(surface, 0), scale=NARROW))
    y = alt.Y("loss:Q", title="loss", scale=scale)
    point = {"filled": True, "size": 24, "opacity": 1}
    curve = base.mark_line(color=PLAIN, point={"color": PLAIN, **point}).encode(
        y=y, tooltip=tooltip(x=".3g", loss=".4g")
    )
    lost = base.transform_filter("!isValid(datum.loss)").mark_point(
        shape="cross", angle=45, filled=True, size=90, color=LOST, opacity=1
    )
    return curve + lost.encode(y=alt.value(10))
