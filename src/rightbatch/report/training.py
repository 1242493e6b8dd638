"""A training run at the terminal: a live line, and how it ended."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.text import Text

from rightbatch.core.units import show_seconds
from rightbatch.job.job import Job
from rightbatch.report.answer import files_lines
from rightbatch.report.terminal import PLAIN_EVERY_S, WIDTH, print_plain, wrapped
from rightbatch.training.run_folder import TRACE
from rightbatch.training.trace import TraceRow

if TYPE_CHECKING:
    from rightbatch.training.train import Run


class TrainingLine:
    """One live line on a training run; when piped, a line now and then."""

    def __init__(self, console: Console, job: Job, *, quiet: bool = False) -> None:
        self.console, self.job, self.quiet = console, job, quiet
        self.spoken = time.monotonic()
        self.live: Live | None = None

    def __enter__(self) -> TrainingLine:
        """Open the live line in a terminal."""
        if self.console.is_terminal and not self.quiet:
            self.live = Live(console=self.console, transient=True, refresh_per_second=8)
            self.live.start()
        return self

    def __exit__(self, *unused: object) -> None:
        """Take the live line away."""
        if self.live is not None:
            self.live.stop()

    def show(self, row: TraceRow) -> None:
        """Say where the run stands, and what was decided since."""
        if self.quiet:
            return
        for event in row.events:
            print_plain(self.console, wrapped("", event))
        text = (
            f" step {row.steps:,}, B {row.batch_size:,}, {row.examples:,} examples, "
            f"{show_seconds(row.time_s)}, loss {row.loss:.4g}"
        )
        if row.metric is not None:
            text += f", evaluation {row.metric:.4g}"
        if self.job.target is not None:
            text += f" (target {self.job.target:.4g})"
        if self.live is not None:
            self.live.update(Text(text[:WIDTH]))
        elif time.monotonic() - self.spoken > PLAIN_EVERY_S:
            self.spoken = time.monotonic()
            print_plain(self.console, text[:WIDTH])


def _range(shown: list[str]) -> str:
    return shown[0] if shown[0] == shown[-1] else f"{shown[0]} to {shown[-1]}"


def run_lines(run: Run, job: Job, folder: Path) -> str:
    """How a run ended: time, steps and examples, and where its files are."""
    last = run.last
    if run.interrupted:
        head = "Interrupted; the step under way was finished and saved."
    elif run.reached:
        head = f"Target {job.target:.4g} reached: {last.metric:.4g}."
    elif run.reached is False:
        head = f"Target {job.target:.4g} not reached: {last.metric:.4g} at the end."
    else:
        head = f"Done: loss {last.loss:.4g}."
    sizes = {row.batch_size for row in run.rows} | {run.batch_size}
    rates = sorted({row.lr for row in run.rows})
    batch = _range([f"{size:,}" for size in sorted(sizes)])
    rate = _range([f"{lr:.3g}" for lr in rates])
    skipped = sum("batch skipped" in event for event in run.events)
    tail = f", {skipped} batches skipped" if skipped else ""
    if run.resumed is not None:
        tail += f", gone on from step {run.resumed:,}"
    rows = [
        f" {head}",
        wrapped(
            "run",
            f"B = {batch}, lr {rate} ({run.scaling.rule}): "
            f"{show_seconds(last.time_s)}, {last.steps:,} steps, "
            f"{last.examples:,} examples{tail}",
        ),
        files_lines([("trace", str(folder / TRACE)), ("saved", str(run.checkpoint))]),
    ]
    return "\n".join(rows)
