"""The terminal: phases with progress, one table, one verdict, in 80 columns."""

from __future__ import annotations

import math
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.text import Text

from rightbatch.core.estimate import Estimate
from rightbatch.core.progress import Watcher
from rightbatch.core.units import show_seconds
from rightbatch.job.job import Job
from rightbatch.measure.record import Measurements, TimePoint
from rightbatch.plan.choice import Choice
from rightbatch.plan.evidence import race_tells
from rightbatch.plan.options import Option
from rightbatch.training.plan import Plan
from rightbatch.training.run_folder import TRACE
from rightbatch.training.trace import TraceRow
from rightbatch.training.train import Run

WIDTH = 80
PLAIN_EVERY_S = 10.0  # how often a phase says where it is when output is piped
PHASES = {
    "Check the job": 1,
    "Time and memory": 2,
    "Gradient noise": 3,
    "Race": 4,
    "Trace a step": 1,
    "Try real steps": 2,
}


class TerminalWatcher(Watcher):
    """Prints a line a phase; in a terminal, a live one with a bar and the time left."""

    def __init__(self, console: Console, phases: int) -> None:
        self.console, self.phases = console, phases
        self.name, self.seconds, self.started = "", 0.0, 0.0
        self.bar: Progress | None = None
        self.spoken = 0.0

    def phase(self, name: str, seconds: float) -> None:
        """A phase begins."""
        self.name, self.seconds, self.started = name, seconds, time.monotonic()
        self.spoken = self.started
        if self.console.is_terminal:
            self.bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=12),
                TextColumn("{task.fields[note]}"),
                console=self.console,
                transient=True,
            )
            self.bar.start()
            self.bar.add_task(self._label(), total=max(seconds, 0.1), note="")

    def progress(self, text: str) -> None:
        """Show the running result and the time left."""
        elapsed = time.monotonic() - self.started
        left = max(self.seconds - elapsed, 0.0)
        note = f"{text}, up to {show_seconds(round(left))} left" if left > 1 else text
        if self.bar is not None:
            room = WIDTH - 40
            task = self.bar.task_ids[0]
            self.bar.update(task, completed=elapsed, note=note[:room])
        elif time.monotonic() - self.spoken > PLAIN_EVERY_S:
            self.spoken = time.monotonic()
            self.console.print(f"{self._label()} {note}"[:WIDTH], style="dim")

    def done(self, text: str) -> None:
        """The phase's one lasting line."""
        self.close()
        took = show_seconds(time.monotonic() - self.started)
        line = f"{self._label()} {text}"
        room = WIDTH - len(took) - 1
        print_plain(self.console, f"{line[:room]:<{room}} {took}")

    def close(self) -> None:
        """Take the live line away, also when the phase did not end."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _label(self) -> str:
        number = PHASES.get(self.name, self.phases)
        return f" {number}/{self.phases}  {self.name:<16}"


def print_plain(console: Console, text: str, style: str = "") -> None:
    """Print without markup, wrapping or highlighting of ours."""
    console.print(Text(text, style=style), soft_wrap=True)


def job_line(found: Measurements) -> str:
    """What was understood of the job, once it is loaded."""
    job = found.job
    return wrapped(
        "now",
        f"B = {job.batch_size}, lr {job.lr:.3g}, {job.optimizer} | "
        f"{job.examples:,} examples ({job.example}) | {job.parameters:,} parameters",
    )


def wrapped(label: str, text: str, width: int = WIDTH) -> str:
    """A paragraph with its label in the margin."""
    lines = textwrap.wrap(text, width - 8) or [""]
    return "\n".join(
        f" {label if i == 0 else '':<7}{line}" for i, line in enumerate(lines)
    )


def table_options(choice: Choice) -> list[Option]:
    """The options worth a row: near the best, today's and the chosen one."""
    near = [o for o in choice.options if o.time.value < 4 * choice.by_model.time.value]
    marked = {choice.chosen.batch_size, choice.today.batch_size}
    rows = {o.batch_size: o for o in near}
    rows.update({o.batch_size: o for o in choice.options if o.batch_size in marked})
    rows[choice.today.batch_size] = choice.today
    between = [o for o in choice.options if min(rows) < o.batch_size < max(rows)]
    rows.update({o.batch_size: rows.get(o.batch_size, o) for o in between})
    return [rows[b] for b in sorted(rows)]


def table(choice: Choice) -> str:
    """One row a batch: measured on the left, predicted on the right, never mixed."""
    points = {p.micro_batch: p for p in choice.found.times}
    memory = {p.micro_batch: p.peak_memory_bytes for p in choice.found.memory}
    head = (
        f"{'':19}{'measured':<26}| predicted, today = 1\n"
        f"{'B':>8}{'split':>8}{'step':>10}{'':7}{'ex/s':>7}{'MiB':>6} |"
        f"{'steps':>7}{'ex.':>6}{'time':>6} {'95 %':>12}"
    )
    lines = [head]
    for option in table_options(choice):
        point = points.get(option.batch_size) if option.accumulation == 1 else None
        mark = ">" if option.batch_size == choice.chosen.batch_size else " "
        mark += "*" if option.batch_size == choice.today.batch_size else " "
        split = f"{option.micro_batch}x{option.accumulation}"
        lines.append(
            f"{mark}{option.batch_size:>6}{split:>8}"
            f"{_measured(point, memory.get(option.batch_size))} |"
            f"{_ratio(option.steps.value):>7}{_ratio(option.examples.value):>6}"
            f"{_ratio(option.time.value):>6} {_interval(option.time):>12}"
        )
    lines.append(" > chosen   * today   split = examples in memory x accumulated")
    return "\n".join(lines)


def _measured(point: TimePoint | None, peak: int | None) -> str:
    if point is None:
        return f"{'-':>10}{'':7}{'-':>7}{'':6}"
    step = point.step_time_s
    error = f"± {100 * step.relative:.0f} %"
    rate = point.micro_batch / step.value
    shown = f"{rate:.0f}" if rate < 99_999 else f"{rate / 1e3:.0f}k"
    size = ""
    if peak is not None:
        size = f"{peak / 2**20:.0f}" if peak > 2**26 else f"{peak / 2**20:.1f}"
    return f"{show_seconds(step.value):>10}{error:>7} {shown:>6} {size:>5}"


def _interval(e: Estimate) -> str:
    if e.low == e.high:
        return ""
    high = _ratio(e.high) if math.isfinite(e.high) else "?"
    return f"{_ratio(e.low)} to {high}"


def _ratio(value: float) -> str:
    """At most four characters up to 9,999."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.0f}"


def race_lines(found: Measurements) -> str:
    """The race as measured: how fast each candidate was, today's being 1."""
    if found.race is None:
        return ""
    race = found.race
    lines = [
        f" Race   {race.rounds} rounds of {show_seconds(race.seconds)} a candidate, by "
        f"{race.metric}; speed, today's = 1"
    ]
    for candidate in race.candidates:
        mark = f"{candidate.speedup.value:.2f} x"
        if candidate.role != "today":
            mark += f" ({candidate.speedup.low:.2f} to {candidate.speedup.high:.2f})"
        lines.append(
            f"        B = {candidate.batch_size:<6}{candidate.role:<11}"
            f"lr {candidate.lr:<9.3g}{candidate.steps:>6} steps   {mark}"
        )
    if not race_tells(race):
        lines.append(
            "        No candidate got better than the start: this tells nothing."
        )
    return "\n".join(lines)


def answer(choice: Choice, plan: Plan) -> str:
    """Verdict, why, what would change it, what was not checked."""
    parts = [
        "",
        *textwrap.wrap(
            plan.verdict, WIDTH - 2, initial_indent=" ", subsequent_indent=" "
        ),
        "",
    ]
    labels = {
        "balance": "Why",
        "optimum": "",
        "lr": "lr",
        "split": "Split",
        "race": "Race",
    }
    parts += [wrapped(labels.get(r.topic, r.topic), r.text) for r in plan.why]
    for i, a in enumerate(plan.alternatives):
        tail = "the same B"
        if a.batch_size != plan.batch_size:
            tail = f"B = {a.batch_size}"
            if a.penalty > 0.005:
                tail += f"; B = {plan.batch_size} would cost {a.penalty:.0%} more"
        for start, more in (("fewest", "time"), ("least time", "examples")):
            if a.condition.startswith(start):
                tail = f"B = {a.batch_size}, taking {a.penalty:.0%} more {more}"
        parts.append(wrapped("If" if i == 0 else "", f"{a.condition}: {tail}"))
    for i, text in enumerate(plan.limits):
        parts.append(wrapped("Limits" if i == 0 else "", text))
    return "\n".join(parts)


def findings_lines(found: Measurements) -> str:
    """Warnings and notes of the checks."""
    lines = []
    for f in found.findings:
        lines.append(wrapped(f.code, f"{f.severity}: {f.what}"))
        if f.why:
            lines.append(wrapped("", f.why))
    return "\n".join(lines)


def files_lines(files: Sequence[tuple[str, str]]) -> str:
    """Last of all: where everything is, and what to type next."""
    return "\n".join(f" {label:<7}{text}" for label, text in files)


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
