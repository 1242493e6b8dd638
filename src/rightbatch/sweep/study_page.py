"""The page of a study: one offline HTML file."""

from __future__ import annotations

from typing import Any

import altair as alt

from rightbatch.plan.choice import Choice
from rightbatch.report.frame import framed, templates
from rightbatch.report.race_charts import curves_chart, map_chart
from rightbatch.report.vega import (
    CHOSEN,
    TODAY,
    Spec,
    batch_axis,
    chart,
    colours,
    finished,
    log_axis,
    tooltip,
)
from rightbatch.sweep.batch_rate_study import Study


def study_page(study: Study, choice: Choice) -> str:
    """The whole file as text; it asks the network for nothing.

    Args:
        study: What was found.
        choice: From the measurements with the same trials.
    """
    charts: dict[str, Spec] = {"curves": finished(curves_chart(choice), 320)}
    if choice.raced is not None:
        charts["map"] = finished(map_chart(choice, choice.raced), 340)
    for of in ("examples", "time"):
        if study.best_rates:
            charts[f"contours_{of}"] = finished(_contours(study, of), 300)
    template = templates().get_template("study.html.j2")
    body = template.render(study=study, charts=charts)
    return framed(f"{study.job}: batch and rate", body, charts)


def _contours(study: Study, of: str) -> Any:
    """The bands of rates within each overhead, and the best rate between them."""
    rows = [
        {"B": size, "low": low, "high": high, "overhead": f"{c.overhead:.0%} more"}
        for c in reversed(study.contours)
        if c.of == of
        for size, low, high in zip(c.batch_sizes, c.lr_low, c.lr_high, strict=True)
    ]
    best = [
        {"B": b.batch_size, "lr": b.lr.value, "low": b.lr.low, "high": b.lr.high}
        for b in study.best_rates
    ]
    x = batch_axis(b.batch_size for b in study.best_rates)
    bands = {f"{c.overhead:.0%} more": TODAY for c in study.contours}
    bands[next(iter(bands))] = CHOSEN
    band = chart(rows).mark_area(opacity=0.3, line=True)
    layers = band.encode(
        x=x,
        y=log_axis("low", "learning rate"),
        y2=alt.Y2("high:Q"),
        color=colours("overhead", bands, legend=True),
    )
    base = chart(best).encode(x=x)
    line = base.mark_line(point=True, color="#888", strokeDash=[6, 4]).encode(
        y=log_axis("lr", "learning rate"),
        tooltip=tooltip(B="d", lr=".3g", low=".3g", high=".3g"),
    )
    return layers + line
