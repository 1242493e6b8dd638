"""The answer as text: one table, one verdict, and the reasons, in 80 columns."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from rightbatch.core.estimate import Estimate
from rightbatch.core.units import show_seconds
from rightbatch.job.loading import DEFAULT_NAME
from rightbatch.measure.measurements import Measurements, Race, TimePoint
from rightbatch.plan.choice import Choice
from rightbatch.plan.evidence import race_tells
from rightbatch.plan.options import Option
from rightbatch.report.terminal import WIDTH, wrapped
from rightbatch.training.plan import Plan

LABELS = {"balance": "Why", "optimum": "", "split": "Split", "race": "Race"}


def answer(choice: Choice, plan: Plan) -> str:
    """Everything there is to say: the job, table, race, verdict and reasons."""
    measurements = choice.measurements
    parts = [job_lines(measurements), "", table(choice)]
    if measurements.race is not None:
        parts.append(race_lines(measurements.race))
    return "\n".join([*parts, "", verdict_lines(plan)])


def job_lines(measurements: Measurements) -> str:
    """What was understood of the job once it was loaded, and what the checks found."""
    job = measurements.job
    name = "" if job.name in (DEFAULT_NAME, job.spec) else f"{job.name}: "
    text = (
        f"{name}B = {job.batch_size}, lr {job.lr:.3g}, {job.optimizer} | "
        f"{job.examples:,} examples ({job.example}) | {job.parameters:,} parameters"
    )
    lines = [wrapped("now", text)]
    for finding in measurements.findings:
        lines.append(wrapped(finding.code, f"{finding.severity}: {finding.what}"))
        if finding.why:
            lines.append(wrapped("", finding.why))
    return "\n".join(lines)


def table_options(choice: Choice) -> list[Option]:
    """The options worth a row: near the best, today's and the chosen one."""
    near = [o for o in choice.options if o.time.value < 4 * choice.by_laws.time.value]
    marked = {choice.chosen.batch_size, choice.baseline.batch_size}
    rows = {o.batch_size: o for o in near}
    rows.update({o.batch_size: o for o in choice.options if o.batch_size in marked})
    rows[choice.baseline.batch_size] = choice.baseline
    between = [o for o in choice.options if min(rows) < o.batch_size < max(rows)]
    rows.update({o.batch_size: rows.get(o.batch_size, o) for o in between})
    return [rows[b] for b in sorted(rows)]


def table(choice: Choice) -> str:
    """One row a batch: measured on the left, predicted on the right, never mixed."""
    points = {p.micro_batch: p for p in choice.measurements.times}
    memory = {p.micro_batch: p.peak_memory_bytes for p in choice.measurements.memory}
    head = (
        f"{'':19}{'measured':<26}| predicted, today = 1\n"
        f"{'B':>8}{'split':>8}{'step':>10}{'':7}{'ex/s':>7}{'MiB':>6} |"
        f"{'steps':>7}{'ex.':>6}{'time':>6} {'95 %':>12}"
    )
    lines, ranks = [head], choice.laws.world_size
    for option in table_options(choice):
        point = points.get(option.batch_size) if option.accumulation == 1 else None
        mark = ">" if option.batch_size == choice.chosen.batch_size else " "
        mark += "*" if option.batch_size == choice.baseline.batch_size else " "
        split = f"{option.micro_batch // ranks}x{option.accumulation}"
        split += f"x{ranks}" if ranks > 1 else ""
        lines.append(
            f"{mark}{option.batch_size:>6}{split:>8}"
            f"{_measured(point, memory.get(option.batch_size))} |"
            f"{_ratio(option.steps.value):>7}{_ratio(option.examples.value):>6}"
            f"{_ratio(option.time.value):>6} {_interval(option.time):>12}"
        )
    legend = " > chosen   * today   split = examples in memory x accumulated"
    lines.append(legend + (" x processes" if ranks > 1 else ""))
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


def race_lines(race: Race) -> str:
    """The race as measured: how fast each candidate was, today's being 1."""
    lines = [
        f" Race   {race.rounds} rounds of {show_seconds(race.seconds)} a candidate, by "
        f"{race.metric}; speed, today's = 1"
    ]
    for candidate in race.candidates:
        speed = f"{candidate.speedup.value:.2f} x"
        if candidate.role != "today":
            speed += f" ({candidate.speedup.low:.2f} to {candidate.speedup.high:.2f})"
        lines.append(
            f"        B = {candidate.batch_size:<6}{candidate.role:<11}"
            f"lr {candidate.lr:<9.3g}{candidate.steps:>6} steps   {speed}"
        )
    if not race_tells(race):
        text = "No candidate got better than the start: this race shows nothing."
        lines.append(wrapped("", text))
    return "\n".join(lines)


def verdict_lines(plan: Plan) -> str:
    """Verdict, why, what would change it, what was not checked."""
    indent = {"initial_indent": " ", "subsequent_indent": " "}
    lines = [*textwrap.wrap(plan.verdict, WIDTH - 2, **indent), ""]
    lines += [wrapped(LABELS.get(r.topic, r.topic), r.text) for r in plan.why]
    for i, a in enumerate(plan.alternatives):
        lines.append(wrapped("" if i else "If", f"{a.condition}: {a.consequence}"))
    for i, text in enumerate(plan.limits):
        lines.append(wrapped("" if i else "Limits", text))
    return "\n".join(lines)


def files_lines(files: Sequence[tuple[str, str]]) -> str:
    """Last of all: where everything is, and what to type next."""
    return "\n".join(f" {label:<7}{text}" for label, text in files)
