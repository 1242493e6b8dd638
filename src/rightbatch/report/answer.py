"""The answer as text: one table, one verdict, and the reasons, in 80 columns."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Sequence

from rightbatch.core.estimate import Estimate
from rightbatch.core.units import show_number, show_seconds
from rightbatch.job.loading import DEFAULT_NAME
from rightbatch.measure.measurements import Measurements, TimePoint
from rightbatch.plan.choice import Choice
from rightbatch.plan.options import Option
from rightbatch.plan.verdict import cost_unit, span
from rightbatch.report.race_rows import RaceRow, last_level, race_rows, reference
from rightbatch.report.terminal import WIDTH, wrapped
from rightbatch.training.plan import Plan

LABELS = {
    "balance": "Why",
    "optimum": "",
    "pairs": "Pairs",
    "split": "Split",
    "coupled": "Touch",
    "length": "Length",
}
RACE = "race"  # the reason that the table of the race says
SHOWN_SETTINGS = 6  # of a race, besides today's and the chosen
NEAR_RATES = math.log(2) / 2 + 1e-9  # as far apart as the rates of a race


def answer(choice: Choice, plan: Plan) -> str:
    """Everything there is to say: the job, table, race, verdict and reasons."""
    measurements = choice.measurements
    parts = [job_lines(measurements), "", table(choice)]
    if measurements.race is not None:
        parts += ["", race_lines(choice, plan)]
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
    """The options worth a row: today's and the chosen one, and batches near the best.

    A batch has a second row where the best rate by the laws is another than its own.
    """
    marked = (choice.baseline, choice.chosen)
    best_time = choice.by_laws.time.value
    sizes = {o.batch_size for o in choice.options if o.time.value < 4 * best_time}
    sizes |= {option.batch_size for option in marked}
    others = {
        option
        for option in choice.options
        if min(sizes) <= option.batch_size <= max(sizes)
        and not any(_same_setting(option, m) for m in marked)
    }
    # Of one batch today's rate comes first, then the chosen, then the best by the laws.
    return sorted(
        others.union(marked), key=lambda o: (o.batch_size, o in others, o != marked[0])
    )


def _same_setting(option: Option, marked: Option) -> bool:
    """Whether two options are one batch at rates that nothing can tell apart."""
    same_batch = option.batch_size == marked.batch_size
    return same_batch and abs(math.log(option.lr / marked.lr)) <= NEAR_RATES


def table(choice: Choice) -> str:
    """One row a setting: measured on the left, predicted on the right, never mixed."""
    points = {p.micro_batch: p for p in choice.measurements.times}
    memory = {p.micro_batch: p.peak_memory_bytes for p in choice.measurements.memory}
    head = (
        f"{'':16}{'measured':<24} | predicted at this lr, today = 1\n"
        f"{'B':>8}{'split':>8}{'step':>8}{'± %':>5}{'ex/s':>6}{'MiB':>5} |"
        f"{'lr':>8}{'steps':>6}{'ex.':>5}{'time':>6} {'95 %':>12}"
    )
    lines, ranks, seen = [head], choice.laws.world_size, set[int]()
    for option in table_options(choice):
        batch = option.batch_size
        point = points.get(batch) if option.accumulation == 1 else None
        measured = _measured(point, memory.get(batch))
        if batch in seen:  # said in the row above
            measured = " " * len(measured)
        seen.add(batch)
        mark = ">" if option == choice.chosen else " "
        mark += "*" if option == choice.baseline else " "
        split = f"{option.micro_batch // ranks}x{option.accumulation}"
        split += f"x{ranks}" if ranks > 1 else ""
        lines.append(
            f"{mark}{batch:>6}{split:>8}{measured} |{_rate(option.lr):>8}"
            f"{_ratio(option.steps.value):>6}{_ratio(option.examples.value):>5}"
            f"{_ratio(option.time.value):>6} {_interval(option.time):>12}".rstrip()
        )
    legend = " > chosen   * today   split = examples in memory x accumulated"
    lines.append(legend + (" x processes" if ranks > 1 else ""))
    return "\n".join(lines)


def _measured(point: TimePoint | None, peak: int | None) -> str:
    if point is None:
        return f"{'-':>8}{'':5}{'-':>6}{'':5}"
    step = point.step_time_s
    error = f"{min(100 * step.relative, 999):.0f}"
    rate = point.micro_batch / step.value
    shown = f"{rate:.0f}" if rate < 9_999 else f"{rate / 1e3:.0f}k"
    size = ""
    if peak is not None:
        size = f"{peak / 2**20:.0f}" if peak > 2**26 else f"{peak / 2**20:.1f}"
    return f"{show_seconds(step.value):>8}{error:>5}{shown:>6}{size:>5}"


def _rate(lr: float) -> str:
    """At most seven characters."""
    text = f"{lr:.3g}"
    return text if len(text) <= 7 else f"{lr:.2g}" if lr > 1e-4 else f"{lr:.1e}"


def _interval(e: Estimate) -> str:
    if e.low == e.high:
        return ""
    high = _ratio(e.high) if math.isfinite(e.high) else "?"
    return f"{_ratio(e.low)} to {high}"


def _ratio(value: float) -> str:
    """At most four characters up to 9,999."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.0f}"


def race_lines(choice: Choice, plan: Plan) -> str:
    """The race as it went: what was compared, the best settings, and who fell out."""
    race, raced = choice.measurements.race, choice.raced
    assert race is not None, "without a race there is nothing to say of it"
    if raced is None:
        rates = sorted({lane.lr for lane in race.lanes})
        diverged = sum(lane.end == "diverged" for lane in race.lanes)
        text = (
            f"{len(race.lanes)} runs with lr {rates[0]:.3g} to {rates[-1]:.3g}, "
            f"{diverged} diverged; by {race.metric} none got better than the start, "
            f"{show_number(race.start)}."
        )
        return wrapped("Race", text)
    rows = race_rows(choice, raced)
    shown = [
        row
        for i, row in enumerate(rows)
        if i < SHOWN_SETTINGS or row.is_today or row.is_chosen
    ]
    level = show_number(last_level(choice))
    by = f"By {race.metric} from {show_number(race.start)} to {level}"
    today = reference(raced) is raced.standings[0]
    over = f"{cost_unit(choice)}, {'today' if today else 'the best'} = 1"
    lines = [
        *(wrapped("Race", f"{by}: {r.text}") for r in plan.why if r.topic == RACE),
        "",
        f"{'B':>8}{'lr':>9}{'runs':>8}{'to ' + level:>12}   {over}",
        *(_race_row(row) for row in shown),
    ]
    rest = [row for row in rows if row not in shown]
    if rest:
        lines.append(wrapped("", _rest(rest)))
    legend = "runs: got there / all   (95 %, of the race alone)"
    lines.append(f" > chosen   * today   {legend}")
    return "\n".join(lines)


def _race_row(row: RaceRow) -> str:
    standing = row.standing
    mark = (">" if row.is_chosen else " ") + ("*" if row.is_today else " ")
    runs = f"{standing.runs}/{standing.lanes}"
    if row.reached:
        seconds = show_seconds(standing.seconds.value)
        cost = "1" if row.cost.low == row.cost.high else span(row.cost)
        text = f"{cost}   {row.fate}".rstrip()
    else:
        seconds, text = f"> {show_seconds(row.trained_s)}", row.fate_in_full
    return (
        f"{mark}{standing.batch_size:>6}{_rate(standing.lr):>9}{runs:>8}"
        f"{seconds:>12}   {text}"
    )


def _rest(rows: Sequence[RaceRow]) -> str:
    """The settings without a row, and the lowest rates that diverged."""
    counts = Counter(row.fate if not row.reached else "slower" for row in rows)
    said = ", ".join(f"{count} {fate}" for fate, count in counts.items())
    text = f"and {said}"
    edge = min(
        (row.standing for row in rows if row.standing.diverged),
        key=lambda standing: standing.lr,
        default=None,
    )
    if edge is not None:
        text += f" (the lowest at lr {edge.lr:.3g}, B = {edge.batch_size})"
    return text


def verdict_lines(plan: Plan) -> str:
    """Verdict, why, what would change it, what was not checked."""
    indent = {"initial_indent": " ", "subsequent_indent": " "}
    lines = [*textwrap.wrap(plan.verdict, WIDTH - 2, **indent), ""]
    said = [reason for reason in plan.why if reason.topic != RACE]
    lines += [wrapped(LABELS.get(r.topic, r.topic), r.text) for r in said]
    for i, a in enumerate(plan.alternatives):
        lines.append(wrapped("" if i else "If", f"{a.condition}: {a.consequence}"))
    for i, text in enumerate(plan.limits):
        lines.append(wrapped("" if i else "Limits", text))
    return "\n".join(lines)


def files_lines(files: Sequence[tuple[str, str]]) -> str:
    """Last of all: where everything is, and what to type next."""
    return "\n".join(f" {label:<7}{text}" for label, text in files)
