"""A training run at the terminal: a live line, and how it ended."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from rightbatch.core.units import show_seconds
from rightbatch.job.job import Job
from rightbatch.report.answer import files_lines
from rightbatch.report.terminal import LiveLine, print_plain, wrapped
from rightbatch.training.run_folder import TRACE, WEIGHTS
from rightbatch.training.trace import TraceRow

if TYPE_CHECKING:
    from rightbatch.training.train import Run


def row_text(row: TraceRow, job: Job) -> str:
    """Where a run stands, in one line."""
    text = (
        f" step {row.steps:,}, B {row.batch_size:,}, {row.examples:,} examples, "
        f"{show_seconds(row.time_s)}, loss {row.loss:.4g}"
    )
    if row.metric is not None:
        text += f", evaluation {row.metric:.4g}"
    if job.target is not None:
        text += f" (target {job.target:.4g})"
    return text


@contextmanager
def training_line(
    console: Console, job: Job, *, quiet: bool
) -> Iterator[Callable[[TraceRow], None]]:
    """A live line on a training run: what is given shows a row of its trace.

    Args:
        console: Where to.
        job: What is trained.
        quiet: Say nothing, as on all ranks but the first.
    """
    line = LiveLine(console)

    def show(row: TraceRow) -> None:
        if not quiet:
            for event in row.events:
                print_plain(console, wrapped("", event))
            line.show(row_text(row, job))

    try:
        yield show
    finally:
        line.end()


def _range(shown: list[str]) -> str:
    return shown[0] if shown[0] == shown[-1] else f"{shown[0]} to {shown[-1]}"


def _kept(run: Run, job: Job, *, best: bool) -> str:
    """Which model it is that was kept."""
    rows = [row for row in run.rows if row.metric is not None]
    if not best or not rows:
        return "for load_state_dict"
    sign = -1.0 if job.goal == "max" else 1.0
    row = min(rows, key=lambda row: sign * (row.metric or 0.0))
    return f"the best: {row.metric:.4g} at step {row.steps:,}"


def run_lines(run: Run, job: Job, folder: Path, *, best: bool = False) -> str:
    """How a run ended: time, steps and examples, and where its files are."""
    last = run.last
    if run.interrupted:
        head = "Interrupted; the step under way was finished and saved."
    elif run.reached:
        head = f"Target {job.target:.4g} reached: {last.metric:.4g}."
    elif run.reached is False:
        head = f"Target {job.target:.4g} not reached: {last.metric:.4g} at the end."
    else:
        head = f"Done: loss of the last batches {last.loss:.4g}."
    sizes = {row.batch_size for row in run.rows} | {run.batch_size}
    rates = sorted({row.lr for row in run.rows if row.lr is not None})
    batch = _range([f"{size:,}" for size in sorted(sizes)])
    rate = _range([f"{lr:.3g}" for lr in rates] or ["none"])
    skipped = sum("batch skipped" in event for event in run.events)
    tail = f", {skipped} batches skipped" if skipped else ""
    if run.resumed is not None:
        tail += f", gone on from step {run.resumed:,}"
    rows = [
        f" {head}",
        wrapped(
            "run",
            f"B = {batch}, lr {rate}, rule {run.scaling.rule}: "
            f"{show_seconds(last.time_s)}, {last.steps:,} steps, "
            f"{last.examples:,} examples{tail}",
        ),
        files_lines(
            [
                ("trace", str(folder / TRACE)),
                ("saved", str(run.checkpoint)),
                ("model", f"{folder / WEIGHTS}, {_kept(run, job, best=best)}"),
                ("page", f"rightbatch report {shlex.quote(str(folder))}"),
            ]
        ),
    ]
    return "\n".join(rows)
