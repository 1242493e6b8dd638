"""The page of training runs: one, or several side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt

from rightbatch.core.errors import RunFolderError
from rightbatch.report.frame import framed, templates
from rightbatch.report.vega import PALETTE, Spec, chart, colours, finished, tooltip
from rightbatch.training.plan import Plan
from rightbatch.training.run_folder import KNOWN, PLAN, RUN, TRACE
from rightbatch.training.settings import Settings
from rightbatch.training.trace import TraceRow, read_trace

LEGIBLE = 6  # lines in one chart
CHARTS: dict[str, tuple[str, Callable[[TraceRow], float | None]]] = {
    "metric": ("evaluation", lambda row: row.metric),
    "loss": ("loss of the last batch", lambda row: row.loss),
    "batch": ("batch size B", lambda row: row.batch_size or None),
    "lr": ("learning rate", lambda row: row.lr),
    "noise": ("noise scale (examples)", lambda row: row.noise_scale),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRun:
    """What a training run left in its folder.

    Attributes:
        name: Of the folder.
        rows: Its trace.
        settings: How it was asked for; None where that is not kept.
        plan: What it was trained by, if by a plan.
    """

    name: str
    rows: tuple[TraceRow, ...]
    settings: Settings | None = None
    plan: Plan | None = None

    @property
    def events(self) -> list[tuple[TraceRow, str]]:
        """Every decision and trouble, with the row that told it."""
        return [(row, text) for row in self.rows for text in row.events]

    @property
    def batches(self) -> str:
        """The batch sizes it went through, shortly."""
        sizes = sorted({row.batch_size for row in self.rows if row.batch_size})
        if not sizes:
            return "unknown"
        ends = f"{sizes[0]:,}"
        return ends if len(sizes) == 1 else f"{ends} to {sizes[-1]:,}"


def recorded_run(folder: Path) -> RecordedRun:
    """Read a training run's folder.

    Raises:
        RunFolderError: It holds no training run, or none with a row yet.
    """
    if not (folder / TRACE).exists():
        held = [name for name in KNOWN if (folder / name).exists()]
        raise RunFolderError(
            f"{folder} holds no training run",
            seen=", ".join(held) or ("nothing" if folder.exists() else "no folder"),
            why="its page is drawn from trace.jsonl, a row for every evaluation",
            fix="the folder that rightbatch train wrote",
        )
    rows = read_trace(folder / TRACE)
    if not rows:
        raise RunFolderError(
            f"the run in {folder} has not been evaluated yet",
            seen="trace.jsonl has no row",
            fix="try again after its first evaluation",
        )
    return RecordedRun(
        name=folder.resolve().name,
        rows=rows,
        settings=Settings.load(folder / RUN) if (folder / RUN).exists() else None,
        plan=Plan.load(folder / PLAN) if (folder / PLAN).exists() else None,
    )


def run_page(runs: Sequence[RecordedRun]) -> str:
    """The whole file as text; it asks the network for nothing."""
    charts = run_charts(runs)
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs compared"
    template = templates().get_template("run.html.j2")
    body = template.render(runs=runs, title=title, charts=charts)
    return framed(title, body, charts)


def run_charts(runs: Sequence[RecordedRun]) -> dict[str, Spec]:
    """Every chart that the rows allow, by its place on the page."""
    specs: dict[str, Spec] = {}
    for name, (title, value) in CHARTS.items():
        rows = [
            {
                "run": run.name,
                "examples": row.examples,
                "seconds": row.time_s,
                "value": value(row),
            }
            for run in runs[:LEGIBLE]
            for row in run.rows
            if value(row) is not None
        ]
        if rows:
            names = [run.name for run in runs[:LEGIBLE]]
            stairs = name in ("batch", "lr")
            specs[name] = finished(_lines(rows, names, "examples", title, stairs))
            if name == "metric":
                specs["time"] = finished(_lines(rows, names, "seconds", title, False))
    return specs


def _lines(
    rows: list[dict[str, Any]], names: list[str], along: str, title: str, stairs: bool
) -> Any:
    """A line for every run; on a log scale where a value spans more than a decade."""
    values = [float(row["value"]) for row in rows]
    spread = min(values) > 0 and max(values) > 10 * min(values)
    scale = alt.Scale(type="log", nice=False) if spread else alt.Scale(zero=False)
    shown = dict(zip(names, PALETTE, strict=False))
    return (
        chart(rows)
        .mark_line(strokeWidth=2, interpolate="step-after" if stairs else "linear")
        .encode(
            x=alt.X(f"{along}:Q", axis=alt.Axis(grid=False, format="~s", tickCount=6)),
            y=alt.Y("value:Q", title=title, scale=scale, axis=alt.Axis(tickCount=6)),
            color=colours("run", shown, legend=len(names) > 1),
            tooltip=["run:N", *tooltip(**{along: ",.4~s", "value": ".4~g"})],
        )
    )
