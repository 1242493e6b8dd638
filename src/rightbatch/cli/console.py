"""What the commands share: opening a run at the terminal, and closing it."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import signal
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rightbatch.core.machine import installed, summary
from rightbatch.job.address import JobAddress, look_up

if TYPE_CHECKING:
    from rich.console import Console

    from rightbatch.job.job import Job
    from rightbatch.measure.record import Measurements
    from rightbatch.plan.decide import Decision

ASKED: list[int] = []  # interrupts received
DECIDED, FAILED, USAGE, UNDECIDED, INTERRUPTED = 0, 1, 2, 3, 130


def make_console(as_json: bool) -> Console:
    """Results go to standard output; with --json that is kept for the document."""
    from rich.console import Console

    return Console(stderr=as_json, highlight=False, width=None)


def begin(
    job: str, out: Path | None, as_json: bool, *, make: bool = True
) -> tuple[Console, JobAddress, Path]:
    """Understand the job, say so, make the folder: all before torch is imported."""
    from rightbatch.training.run_folder import make_run_folder

    spec = look_up(job)
    folder = make_run_folder(out, spec.stem) if make else Path()
    console = make_console(as_json)
    versions = f"rightbatch {installed('rightbatch')} | torch {installed('torch')}"
    click.echo(f"{versions} | {summary()}"[:80], err=as_json)
    click.echo(f" job    {spec.stem} | {spec.about}"[:80], err=as_json)
    return console, spec, folder


def finish(
    console: Console,
    folder: Path,
    found: Measurements,
    decision: Decision,
    as_json: bool,
) -> int:
    """Save plan and page, print the answer, return the exit status."""
    from rightbatch.core.json_io import to_plain
    from rightbatch.report import terminal
    from rightbatch.report.page import Page
    from rightbatch.training.run_folder import PLAN, REPORT

    plan, choice = decision.plan, decision.choice
    plan.save(folder / PLAN)
    page = Page(found, choice, plan).save(folder / REPORT)
    status = DECIDED if plan.decided else UNDECIDED
    if as_json:
        document = {"status": status, "folder": str(folder), "plan": to_plain(plan)}
        print_document(document)
        return status
    say = terminal.print_plain
    say(console, terminal.job_line(found))
    if found.findings:
        say(console, terminal.findings_lines(found))
    say(console, "\n" + terminal.table(choice))
    if found.race is not None:
        say(console, terminal.race_lines(found))
    say(console, terminal.answer(choice, plan))
    size = page.stat().st_size / 1e6
    job, path = shlex.quote(found.job.spec), shlex.quote(str(folder / PLAN))
    end = "" if found.job.target is not None else " --epochs 10"
    files = [
        ("report", f"{page}   {size:.2f} MB, opens offline"),
        ("plan", str(folder / PLAN)),
        ("next", f"rightbatch train {job} --plan {path}{end}"),
    ]
    say(console, "\n" + terminal.files_lines(files))
    return status


def interrupted(console: Console, path: Path) -> int:
    """After Ctrl-C: name what was kept."""
    from rightbatch.report.terminal import print_plain

    if not path.exists():
        drop_if_empty(path.parent)
        print_plain(console, "\nInterrupted before anything was measured.")
        return INTERRUPTED
    from rightbatch.measure.record import Measurements

    found = Measurements.load(path)
    print_plain(
        console,
        f"\nInterrupted. Kept in {path}: {len(found.times)} step times, "
        f"{len(found.noise)} noise points.",
    )
    if found.times and len(found.noise) >= 2:
        print_plain(console, f" next   rightbatch plan {shlex.quote(str(path))}")
    return INTERRUPTED


def drop_if_empty(folder: Path) -> None:
    """Take away a run folder that nothing came to lie in."""
    with contextlib.suppress(OSError):
        folder.rmdir()


def keep_origin(origin: Path, folder: Path) -> None:
    """Put plan and measurements beside a run trained by them, for its report."""
    from rightbatch.training.run_folder import MEASUREMENTS, PLAN

    for name in (MEASUREMENTS, PLAN):
        if (origin / name).is_file() and not (folder / name).exists():
            shutil.copyfile(origin / name, folder / name)


def quiet_load(job: str, as_json: bool) -> Job:
    """Load a job; see `quiet_named`."""
    from rightbatch.job.loading import load_job

    return _quiet(job, as_json, load_job)


def quiet_named(name: str, as_json: bool) -> Any:
    """Load a job, or a loader to be audited; see `_quiet`."""
    from rightbatch.job.loading import load_named

    return _quiet(name, as_json, load_named)


def _quiet(name: str, as_json: bool, load: Callable[[str], Any]) -> Any:
    """Load by name; with --json, what its code prints goes to standard error for good.

    Standard output then holds the document alone (`print_document`).
    """
    if as_json:
        sys.stdout = sys.stderr
    loaded = load(name)
    if ASKED:  # an import swallowed the interrupt
        raise KeyboardInterrupt
    return loaded


def note_interrupts() -> None:
    """Remember Ctrl-C besides raising it: libraries may swallow it while imported."""

    def handle(number: int, frame: object) -> None:
        ASKED.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, handle)


def folded(text: str) -> str:
    """Lines of more than 80 columns wrapped, continued under their own text."""
    lines = []
    for line in text.splitlines():
        found = textwrap.wrap(
            line,
            80,
            subsequent_indent=" " * 8,
            break_long_words=False,
            break_on_hyphens=False,
            drop_whitespace=True,
        )
        lines += found or [""]
    return "\n".join(lines)


def print_document(plain: Any) -> None:
    """One JSON document on the real standard output."""
    print(json.dumps(plain, allow_nan=False), file=sys.__stdout__, flush=True)


def command_line() -> str:
    """What was typed, for the record."""
    return shlex.join(["rightbatch", *sys.argv[1:]])


def report_bug(error: Exception) -> str:
    """Keep the traceback in a file, and say where."""
    with tempfile.NamedTemporaryFile(
        "w", prefix="rightbatch-", suffix=".log", delete=False, encoding="utf-8"
    ) as file:
        traceback.print_exception(error, file=file)
    return (
        f"error: rightbatch itself failed: {type(error).__name__}: {error}\n"
        f"  why   this is a fault of rightbatch, not of your job\n"
        f"  fix   please report it with the file {file.name}"
    )
