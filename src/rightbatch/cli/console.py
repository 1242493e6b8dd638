"""What the commands share: opening a run at the terminal, and closing it."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from rightbatch.core.errors import RightbatchError
from rightbatch.core.machine import installed, summary
from rightbatch.job.loading import JobAddress, look_up

if TYPE_CHECKING:
    from rich.console import Console

    from rightbatch.plan.choice import Choice
    from rightbatch.training.plan import Plan

T = TypeVar("T")
ASKED: list[int] = []  # interrupts received
DECIDED, FAILED, USAGE, UNDECIDED, INTERRUPTED = 0, 1, 2, 3, 130


def make_console(as_json: bool) -> Console:
    """Results go to standard output; with --json that is kept for the document."""
    from rich.console import Console

    return Console(stderr=as_json, highlight=False, width=None)


def announce(spec: JobAddress, as_json: bool) -> Console:
    """The first two lines: what runs here, and which job was understood."""
    console = make_console(as_json)
    versions = f"rightbatch {installed('rightbatch')} | torch {installed('torch')}"
    click.echo(f"{versions} | {summary()}"[:80], err=as_json)
    click.echo(f" job    {spec.stem} | {spec.about}"[:80], err=as_json)
    return console


@contextlib.contextmanager
def begin(
    job: str, out: Path | None, as_json: bool
) -> Iterator[tuple[Console, JobAddress, Path]]:
    """Understand the job, make the folder, say so: all before torch is imported.

    Within it a run is kept, see `keeping`.
    """
    from rightbatch.training.run_folder import make_run_folder

    spec = look_up(job)
    folder = make_run_folder(out, spec.stem)
    with keeping(folder, as_json):
        yield announce(spec, as_json), spec, folder


@contextlib.contextmanager
def keeping(folder: Path | None, as_json: bool) -> Iterator[None]:
    """Whatever ends the block leaves a usable folder, or none where nothing was kept.

    Args:
        folder: The run folder; None on the ranks that keep nothing.
        as_json: Standard output is kept for the document.

    Raises:
        Exit: Ctrl-C was pressed; what was kept has been said.
    """
    try:
        yield
    except (KeyboardInterrupt, RightbatchError) as error:
        if folder is not None:
            with contextlib.suppress(OSError):
                folder.rmdir()  # if it is empty
        if isinstance(error, RightbatchError):
            raise
        if folder is not None:
            click.echo("\n" + _kept(folder), err=as_json)
        raise click.exceptions.Exit(INTERRUPTED) from None


def _kept(folder: Path) -> str:
    """What lies in a folder after Ctrl-C, and what can be done with it."""
    from rightbatch.training.run_folder import MEASUREMENTS

    if not folder.exists():
        return "Interrupted; nothing was kept."
    text = f"Interrupted. What was saved is in {folder}."
    if (folder / MEASUREMENTS).exists():
        text += f"\n next   rightbatch plan {shlex.quote(str(folder))}"
    return text


def finish(
    console: Console, folder: Path, plan: Plan, choice: Choice, as_json: bool
) -> int:
    """Save plan and page, print the answer, return the exit status."""
    from rightbatch.core.json_io import to_plain
    from rightbatch.report.answer import answer, files_lines
    from rightbatch.report.page import Page
    from rightbatch.report.terminal import print_plain
    from rightbatch.training.run_folder import PLAN, REPORT

    path = folder / PLAN
    plan.save(path)
    page = Page(choice, plan).save(folder / REPORT)
    status = DECIDED if plan.decided else UNDECIDED
    if as_json:
        document = {"status": status, "folder": str(folder), "plan": to_plain(plan)}
        print_document(document)
        return status
    print_plain(console, answer(choice, plan))
    job, size = choice.measurements.job, page.stat().st_size / 1e6
    start = "rightbatch"
    if plan.world_size > 1:  # it is a plan for so many
        start = f"torchrun --nproc-per-node {plan.world_size} -m rightbatch"
    following = f"{start} train {shlex.quote(job.spec)}"
    following += f" --plan {shlex.quote(str(path))}"
    files = [
        ("report", f"{page}   {size:.2f} MB, opens offline"),
        ("plan", str(path)),
    ]
    endless = job.target is None and job.run_examples is None
    got_nowhere = choice.measurements.race is not None and choice.raced is None
    if not got_nowhere:  # else there is nothing worth training
        files.append(("next", following + (" --epochs 10" if endless else "")))
    print_plain(console, "\n" + files_lines(files))
    return status


def first_speaks() -> bool:
    """Silence standard output on all ranks but the first; whether this is the first.

    Errors are not silenced: one may be of this rank alone.
    """
    first = int(os.environ.get("RANK", "0")) == 0
    if not first:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # ruff: ignore[open-file-with-context-handler]
    return first


def end_together(status: int, joined: bool) -> int:
    """The exit status; with several processes, all end here at once.

    torchrun knows success and failure only, and starts failed processes again: what
    ended as it should, decided or not, is a success there.
    """
    if joined:
        from rightbatch.training.ranks import leave

        leave(DECIDED if status == UNDECIDED else status)
    return status


def keep_origin(origin: Path, folder: Path) -> None:
    """Put plan and measurements beside a run trained by them, for its report."""
    from rightbatch.training.run_folder import MEASUREMENTS, PLAN

    for name in (MEASUREMENTS, PLAN):
        if (origin / name).is_file() and not (folder / name).exists():
            shutil.copyfile(origin / name, folder / name)


def load_quietly(load: Callable[[str], T], name: str, as_json: bool) -> T:
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
        folds = textwrap.wrap(
            line,
            80,
            subsequent_indent=" " * 8,
            break_long_words=False,
            break_on_hyphens=False,
        )
        lines += folds or [""]
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
