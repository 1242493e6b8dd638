"""Training a job by a plan or a schedule: to its target, or for so many examples."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from rightbatch.core.errors import (
    JobError,
    RightbatchError,
    RunFolderError,
    SettingError,
)
from rightbatch.job.job import Job
from rightbatch.schedules.parse import parse_rate, parse_schedule
from rightbatch.schedules.rate import Rate
from rightbatch.schedules.scaling import Scaling
from rightbatch.schedules.schedule import Schedule
from rightbatch.training.accumulator import NotFiniteError, UpdateOutOfMemoryError
from rightbatch.training.checkpoint import Checkpoints
from rightbatch.training.interrupt import Interrupt
from rightbatch.training.loop import row_of, train_rows
from rightbatch.training.plan import Plan
from rightbatch.training.resolve_settings import end_of, settings_of
from rightbatch.training.run_folder import (
    CHECKPOINTS,
    KNOWN,
    RUN,
    TRACE,
    make_run_folder,
)
from rightbatch.training.run_state import Runner
from rightbatch.training.settings import Settings
from rightbatch.training.trace import Trace, TraceRow, read_trace

SAVE_EVERY_S = 300.0  # seconds between checkpoints [assumed]
# What gloo and NCCL say when the other end of a connection is gone.
_LOST = re.compile(
    r"connection (closed|reset|refused)|broken pipe|connectFullMesh|remote process",
    re.IGNORECASE,
)
ROLLBACKS = 3  # times to go back without getting further before giving up [assumed]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Run:
    """A finished run.

    Attributes:
        reached: Whether the target was met; None where there is none.
        interrupted: Whether Ctrl-C or SIGTERM ended it.
        batch_size: Examples per step, at the end.
        scaling: How the optimizer's numbers were changed from today's, at the end.
        rows: What ``trace.jsonl`` holds.
        checkpoint: The state at the end.
        model: The trained model.
        resumed: The step it went on from, or None if it was begun.
        events: Every decision and trouble, with its reason.
    """

    reached: bool | None
    interrupted: bool
    batch_size: int
    scaling: Scaling
    rows: tuple[TraceRow, ...]
    checkpoint: Path | None
    model: torch.nn.Module
    resumed: int | None = None

    def __repr__(self) -> str:
        last = self.last
        return (
            f"Run(batch_size={self.batch_size}, reached={self.reached}, "
            f"steps={last.steps}, examples={last.examples}, metric={last.metric})"
        )

    @property
    def last(self) -> TraceRow:
        """Where the run ended: steps, examples, seconds, loss and metric."""
        return self.rows[-1]

    @property
    def events(self) -> tuple[str, ...]:
        """Every decision and trouble of the run, with its step and reason."""
        return tuple(event for row in self.rows for event in row.events)


def train(
    job: Job,
    plan: Plan | None = None,
    *,
    batch_size: int | None = None,
    schedule: Schedule | str | None = None,
    rate: Rate | str | None = None,
    examples: int | None = None,
    epochs: float | None = None,
    rule: str = "auto",
    noise_scale: float | None = None,
    exponent: float | None = None,
    micro_batch: int | None = None,
    largest: int | None = None,
    clip_norm: float | None = None,
    nonfinite: Literal["stop", "skip"] = "stop",
    shard: bool = False,
    num_workers: int = 0,
    out: str | Path | None = None,
    resume: bool | Literal["auto"] = False,
    save_every_s: float = SAVE_EVERY_S,
    ledger: bool = False,
    watch: Callable[[TraceRow], None] = lambda row: None,
) -> Run:
    """Train by a plan, a schedule or a batch size, until the target or the end.

    Under torchrun every process calls it alike: the batch is then over all of them.

    Args:
        job: What is trained.
        plan: Gives batch, split and learning rate.
        batch_size: Instead of a plan; the learning rate then follows ``rule``.
        schedule: A batch that changes: a `Schedule`, or one word such as
            ``"ramp:32:512:3epochs"``; with a plan, the plan gives split and rule.
        rate: A learning-rate decay by examples: a `Rate`, or ``"cosine:9epochs"``.
        examples: Stop after so many examples.
        epochs: The same, in passes over the data.
        rule: How the learning rate follows from today's batch, without a plan.
        noise_scale: For the rule; see `plan.scaling.scaling_for`.
        exponent: For the rule ``"exponent"``.
        micro_batch: Most examples in memory at once on one rank.
        largest: A live schedule's largest batch.
        clip_norm: Largest norm of the whole gradient.
        nonfinite: A loss that is NaN or infinite: ``"stop"``, with the state before it
            saved; or ``"skip"`` the batch.
        shard: Shard the model over the ranks (FSDP2) instead of copying it (DDP).
        num_workers: Processes that read the data set ahead.
        out: Run folder for trace and checkpoints; None keeps nothing.
        resume: Go on with the run in ``out``: True; or ``"auto"``: if there is one.
            Bit for bit, on as many ranks, unless the schedule is live (it looks at the
            clock); no example lost or repeated on others.
        save_every_s: Seconds between checkpoints.
        ledger: Write down every example handed out, as proof, in ``out``/ledger.
        watch: Called with every row of the trace, on the first rank.

    Raises:
        SettingError: Settings contradict each other, the job, or the run to go on with.
        JobError: The loss became NaN or infinite, not even one example fits in memory,
            or the job's code raised.
        RunFolderError: The folder holds a run, or none to go on with, or is full.

    Example:
        >>> import rightbatch as rb
        >>> run = rb.train(rb.load_job("digits"), batch_size=64)
        >>> run.reached
        True
    """
    if out is None and (resume is True or ledger):
        raise SettingError(
            "resume and ledger need the run's folder", fix="out='runs/mine'"
        )
    if not save_every_s >= 0:
        raise SettingError(
            "save_every_s must not be negative", seen=f"save_every_s={save_every_s}"
        )
    if isinstance(rate, str):
        rate = parse_rate(rate, job.length)
    if isinstance(schedule, str):
        size = job.batch_size if plan is None else plan.batch_size
        half = None if plan is None else plan.half_batch
        schedule = parse_schedule(
            schedule, batch=size, length=job.length, rate=rate, half_batch=half
        )
        rate = None if hasattr(schedule, "rate") else rate
    first = _rank() == 0
    folder = None if out is None else Path(out)
    going_on = folder is not None and _going_on(folder, resume)
    saved = Settings.load(folder / RUN) if folder is not None and going_on else None
    defaults: dict[str, Any] = {
        "rate": (rate, None),
        "rule": (rule, "auto"),
        "noise_scale": (noise_scale, None),
        "exponent": (exponent, None),
        "micro_batch": (micro_batch, None),
        "largest": (largest, None),
        "clip_norm": (clip_norm, None),
        "nonfinite": (nonfinite, "stop"),
        "shard": (shard, False),
        "num_workers": (num_workers, 0),
        "ledger": (ledger, False),
    }
    given = {name: now for name, (now, usual) in defaults.items() if now != usual}
    end = end_of(job, examples, epochs)
    settings = settings_of(job, plan, batch_size, schedule, end, saved, given)
    if not settings.multiple:
        ranks = torch.distributed.get_world_size() if _joined() else 1
        multiple = (settings.micro_batch or 1) * ranks
        settings = dataclasses.replace(settings, multiple=multiple)
    runner = Runner.start(job, settings, folder)
    keeper = None
    try:
        if folder is not None:
            keeper = _Keeper(folder, runner, save_every_s, first, bool(resume))
            keeper.open(settings, going_on)
        return _trained(runner, settings, keeper, watch if first else lambda row: None)
    except NotFiniteError:
        raise  # its state was saved to be looked at
    except (RightbatchError, RuntimeError, MemoryError) as error:
        if keeper is not None:
            keeper.forget()
        if runner.ranks.size > 1 and _LOST.search(str(error)):
            raise JobError(
                "another rank has ended",
                seen=str(error).splitlines()[0][:120],
                why="a step is made by all ranks or by none",
                fix="see its error; torchrun --max-restarts 3 and --resume go on from "
                "the last checkpoint",
            ) from error
        raise
    finally:
        if keeper is not None:
            keeper.close()
        runner.close()


def _trained(
    run: Runner,
    settings: Settings,
    keeper: _Keeper | None,
    watch: Callable[[TraceRow], None],
) -> Run:
    rows = [] if keeper is None else list(keeper.rows)
    resumed = run.steps if keeper is not None and keeper.resumed else None
    rollbacks, furthest = 0, run.steps
    with Interrupt() as interrupt:
        while True:
            try:
                for row in _rows(run, settings, keeper, interrupt):
                    rows.append(row)
                    if keeper is not None:
                        keeper.write(row)
                    watch(row)
                break
            except UpdateOutOfMemoryError:
                rollbacks = rollbacks + 1 if run.steps <= furthest else 1
                furthest = max(furthest, run.steps)
                if keeper is None or rollbacks > ROLLBACKS or run.ranks.size > 1:
                    raise
                keeper.roll_back()
                rows = list(keeper.rows)
    if not rows:  # ended before, and its trace is gone
        rows = [row_of(run, math.nan, run.evaluated(), run.controller.batch_size, 0.0)]
    metric = rows[-1].metric
    job = run.job
    return Run(
        reached=None if job.target is None or metric is None else job.met(metric),
        interrupted=interrupt.asked,
        batch_size=run.controller.batch_size,
        scaling=run.controller.numbers.scaling,
        rows=tuple(rows),
        checkpoint=None if keeper is None else keeper.last,
        model=run.bare,
        resumed=resumed,
    )


def _rows(
    run: Runner, settings: Settings, keeper: _Keeper | None, interrupt: Interrupt
) -> Iterator[TraceRow]:
    """The loop, with what is saved around it."""
    try:
        yield from train_rows(
            run,
            end=settings.end,
            stop=lambda: interrupt.asked,
            save=(lambda: None) if keeper is None else keeper.save,
            save_due=(lambda: False) if keeper is None else keeper.due,
        )
    except NotFiniteError as error:
        if keeper is not None:
            # As before the batch, so that going on meets it again, or skips it.
            keeper.save(stream=run.stream_before)
            error.fix = "--resume --nonfinite skip; or a new run at a lower rate"
        raise
    if keeper is not None:
        keeper.finish()


class _Keeper:
    """The folder of a run: settings, trace and checkpoints, written by rank 0."""

    def __init__(
        self, folder: Path, run: Runner, every_s: float, first: bool, again: bool
    ) -> None:
        self.folder, self.run, self.every_s, self.first = folder, run, every_s, first
        self.again = again
        self.checkpoints = Checkpoints(folder / CHECKPOINTS)
        self.rows: tuple[TraceRow, ...] = ()
        self.last: Path | None = None
        self.resumed = self._mine = False
        self._saved = time.monotonic()
        self._trace: Trace | None = None
        self._failure: RunFolderError | None = None

    def open(self, settings: Settings, going_on: bool) -> None:
        """Go on from the newest checkpoint, or begin: the folder is written now."""
        if going_on:
            self._restore()
            self.resumed = True
        if self.first:
            begun = self._begun()
            if not going_on and not begun:
                make_run_folder(self.folder, self.run.job.name)
            self._mine = not going_on and not begun
            settings.save(self.folder / RUN)
            self._trace = Trace(self.folder / TRACE, self.rows)
        if not going_on:  # to go back to, whatever happens
            self.save()
            if self._failure is not None:
                raise self._failure

    def _begun(self) -> bool:
        """Whether a run was begun here that ended before its first checkpoint."""
        held = {name for name in KNOWN if (self.folder / name).exists()}
        trace = self.folder / TRACE
        trained = trace.exists() and trace.stat().st_size > 0
        trained |= any(self.checkpoints.folder.glob("step-*[1-9]*.pt"))
        only = bool(held) and held <= {RUN, TRACE, CHECKPOINTS}
        return self.again and only and not trained

    def forget(self) -> None:
        """Nothing was trained: leave no half run behind that blocks the next try."""
        if not self._mine or self.run.steps:
            return
        if self._trace is not None:
            self._trace.close()
        with contextlib.suppress(OSError):  # the error that brought us here is told
            for path in self.checkpoints.folder.glob("step-0000000000.*"):
                path.unlink()
            self.checkpoints.folder.rmdir()
        for name in (TRACE, RUN):
            with contextlib.suppress(OSError):
                (self.folder / name).unlink(missing_ok=True)

    def due(self) -> bool:
        """Whether it is time; only the first rank's clock counts."""
        return self.first and time.monotonic() - self._saved >= self.every_s

    def save(self, stream: dict[str, Any] | None = None) -> None:
        """Write a checkpoint; collective. What fails is told, and training goes on."""
        state = self.run.state(stream)
        self._saved = time.monotonic()
        if not self.first:
            return
        about = {
            "job": self.run.job.name,
            "examples": self.run.examples,
            "batch_size": self.run.controller.batch_size,
            "world_size": self.run.ranks.size,
        }
        try:
            self.last = self.checkpoints.save(state, steps=self.run.steps, about=about)
            self._failure = None
        except RunFolderError as error:
            self._failure = error
            warnings.warn(f"{error.what}: {error.seen}; training goes on", stacklevel=2)

    def write(self, row: TraceRow) -> None:
        """Append a row to the trace."""
        if self._trace is not None:
            self._trace.write(row)

    def roll_back(self) -> None:
        """After an update that cannot be trusted: to the last checkpoint, in place."""
        steps, told = self.run.steps, list(self.run.events)
        pieces = self.run.accumulator.pieces
        smaller = pieces.shrink(self.run.controller.batch_size) or 1
        self._restore()
        pieces.now, pieces.quiet = smaller, 0
        self.run.events = told
        self.run.tell(
            f"memory ran out inside the optimizer at step {steps + 1}: back to this "
            f"one, in micro-batches of {smaller}"
        )
        if self.first:
            if self._trace is not None:
                self._trace.close()
            self._trace = Trace(self.folder / TRACE, self.rows)

    def close(self) -> None:
        """Close the trace."""
        if self._trace is not None:
            self._trace.close()

    def finish(self) -> None:
        """The run has ended.

        Raises:
            RunFolderError: The last checkpoint could not be written.
        """
        if self._failure is not None:
            raise self._failure

    def _restore(self) -> None:
        found = self.checkpoints.newest()
        ranks = self.run.ranks
        if found is None:
            raise RunFolderError(
                f"{self.folder} holds no checkpoint to go on from",
                fix="begin the run again, with another --out",
            )
        ranks.agree("the checkpoint", found[0].name, "one folder that all ranks see")
        self.run.restore(found[1])
        self.last = found[0]
        trace = self.folder / TRACE
        rows = read_trace(trace) if trace.exists() else ()
        self.rows = tuple(row for row in rows if row.steps <= self.run.steps)


def _going_on(folder: Path, resume: bool | str) -> bool:
    """Whether there is a run to go on with, and that was asked for.

    Raises:
        SettingError: ``resume`` is none of its values.
        RunFolderError: There is none, and there should be.
    """
    if resume not in (True, False, "auto"):
        raise SettingError(
            "resume must be True, False or 'auto'", seen=f"resume={resume!r}"
        )
    there = bool(Checkpoints(folder / CHECKPOINTS).paths())
    if resume is True and not there:
        raise RunFolderError(
            f"{folder} holds no run to go on with",
            seen="no checkpoints" if folder.exists() else "no such folder",
            fix="leave --resume out to begin one",
        )
    return there and bool(resume)


def _rank() -> int:
    return torch.distributed.get_rank() if _joined() else 0


def _joined() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
