"""Training a job by a plan or a schedule: to its target, or for so many examples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from rightbatch.core.errors import (
    JobError,
    NotFiniteError,
    RightbatchError,
    SettingError,
    UpdateOutOfMemoryError,
)
from rightbatch.core.text import first_line
from rightbatch.core.torch_private import is_lost_connection, is_out_of_memory
from rightbatch.job.job import Job, run_length
from rightbatch.schedules.parse import parse_rate, parse_schedule
from rightbatch.schedules.rate import Rate
from rightbatch.schedules.scaling import Scaling
from rightbatch.schedules.schedule import Schedule
from rightbatch.training.evaluation_time import EVALUATE_SHARE
from rightbatch.training.interrupt import Interrupt
from rightbatch.training.kept_weights import KEEP, is_best, write_weights
from rightbatch.training.loop import row_of, train_rows
from rightbatch.training.plan import Plan
from rightbatch.training.requested import check_optimizer, planned_rate, settings_of
from rightbatch.training.run_files import RunFiles, has_checkpoint
from rightbatch.training.run_folder import RUN, WEIGHTS
from rightbatch.training.run_state import RunState
from rightbatch.training.settings import Settings
from rightbatch.training.trace import TraceRow

SAVE_EVERY_S = 300.0  # seconds between checkpoints [assumed]
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
    rule: str | None = None,
    noise_scale: float | None = None,
    exponent: float | None = None,
    micro_batch: int | None = None,
    largest: int | None = None,
    clip_norm: float | None = None,
    nonfinite: Literal["stop", "skip"] | None = None,
    shard: bool | None = None,
    num_workers: int | None = None,
    ledger: bool | None = None,
    out: str | Path | None = None,
    resume: bool | Literal["auto"] = False,
    accept_changes: bool = False,
    save_every_s: float = SAVE_EVERY_S,
    keep: Literal["last", "best"] = "last",
    evaluate_share: float = EVALUATE_SHARE,
    watch: Callable[[TraceRow], None] = lambda row: None,
) -> Run:
    """Train by a plan, a schedule or a batch size, until the target or the end.

    Under torchrun every process calls it alike: the batch is then over all of them.

    What is left out is as the job's recipe and `training.settings.Settings` have it; in
    a run that is gone on with, as it was begun.

    Args:
        job: What is trained.
        plan: Gives batch, split and learning rate; and where it says the examples, the
            job's schedule of the rate is stretched to them.
        batch_size: Instead of a plan; the learning rate then follows ``rule``.
        schedule: A batch that changes: a `Schedule`, or one word such as
            ``"ramp:32:512:3epochs"``; with a plan, the plan gives split and rule.
        rate: A learning-rate schedule by examples, instead of the job's: a `Rate`, or
            one word such as ``"warmup:2k+cosine:9epochs"``.
        examples: Stop after so many examples, instead of the job's length.
        epochs: The same, in passes over the data. Where nothing says how long the run
            is, it ends at the target, or after 1,000 passes.
        rule: How the learning rate follows from today's batch, without a plan.
        noise_scale: For the rule; see `rightbatch.schedules.scaling.scaling_for`.
        exponent: For the rule ``"exponent"``.
        micro_batch: Most examples in memory at once on one rank.
        largest: A live schedule's largest batch.
        clip_norm: Largest norm of the whole gradient.
        nonfinite: A loss that is NaN or infinite: ``"stop"``, with the state before it
            saved; or ``"skip"`` the batch.
        shard: Shard the model over the ranks (FSDP2) instead of copying it (DDP).
        num_workers: Processes that read the data set ahead.
        ledger: Write down every example handed out, as proof, in ``out``/ledger.
        out: Run folder for trace and checkpoints; None keeps nothing.
        resume: Go on with the run in ``out``: True; or ``"auto"``: if there is one.
            Bit for bit, on as many ranks, unless the schedule is live (it looks at the
            clock); no example lost or repeated on others.
        accept_changes: Go on with the run although the job has changed since: its data,
            model, loss, evaluation or target. What has changed is kept in the trace.
        save_every_s: Seconds between checkpoints.
        keep: Which model ``out``/weights.pt holds, as a plain state dict: the
            ``"last"``; or the ``"best"`` by ``evaluate``, of all that were evaluated.
        evaluate_share: Most of the training time that ``evaluate`` may take beside it:
            where it is slow it is called less often (told in the events), and a target
            can have been met for a while before it is seen.
        watch: Called with every row of the trace, on the first rank.

    Raises:
        SettingError: Settings contradict each other, the job, or the run to go on with;
            or the job has changed since that was begun.
        JobError: The loss became NaN or infinite, memory ran out where no smaller
            micro-batch helps, or the job's code raised.
        RunFolderError: The folder holds a run, or none to go on with; another run is
            under way there; or the disk is full at the end.

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
    shares = {"save_every_s": save_every_s, "evaluate_share": evaluate_share}
    for name, value in shares.items():
        if not value >= 0:
            raise SettingError(f"{name} must not be negative", seen=f"{name}={value}")
    if keep not in KEEP or (keep == "best" and job.evaluate is None):
        raise SettingError(
            "keep must be 'last', or 'best' for a job with an evaluate function",
            seen=f"keep={keep!r}, evaluate={'none' if job.evaluate is None else 'yes'}",
            fix="Job(..., evaluate=lambda model: validation_loss(model))",
        )
    if isinstance(rate, str):
        rate = parse_rate(rate, job.length)
    if isinstance(schedule, str):
        size = job.batch_size if plan is None else plan.batch_size
        half = None if plan is None else plan.half_batch
        schedule = parse_schedule(
            schedule,
            batch=size,
            length=job.length,
            rate=rate or planned_rate(job, plan),
            half_batch=half,
        )
        rate = None if hasattr(schedule, "rate") else rate
    options = {
        "rate": rate,
        "rule": rule,
        "noise_scale": noise_scale,
        "exponent": exponent,
        "micro_batch": micro_batch,
        "largest": largest,
        "clip_norm": clip_norm,
        "nonfinite": nonfinite,
        "shard": shard,
        "num_workers": num_workers,
        "ledger": ledger,
    }
    folder = None if out is None else Path(out)
    going_on = folder is not None and has_checkpoint(folder, resume)
    settings = settings_of(
        job,
        plan,
        batch_size=batch_size,
        schedule=schedule,
        end=run_length(job.length, examples, epochs),
        begun=Settings.load(folder / RUN) if folder is not None and going_on else None,
        options={name: value for name, value in options.items() if value is not None},
    )
    run = RunState.start(job, settings, folder)
    files = None
    try:
        if plan is not None:
            check_optimizer(plan, run.facts)
        if folder is not None:
            files = RunFiles(folder, run, save_every_s)
            files.open(settings, going_on, accept_changes)
        return _trained(run, settings, files, keep, evaluate_share, watch)
    except NotFiniteError:
        raise  # its state was saved to be looked at
    except (RightbatchError, RuntimeError, MemoryError) as error:
        if run.ranks.size > 1 and is_lost_connection(error):
            raise JobError(
                "another rank has ended",
                seen=str(error).splitlines()[0][:120],
                why="a step is made by all ranks or by none",
                fix="see its error; torchrun --max-restarts 3 and --resume go on from "
                "the last checkpoint",
            ) from error
        if isinstance(error, RightbatchError) or not is_out_of_memory(error):
            raise
        raise JobError(
            "memory ran out between two steps",
            seen=first_line(error, 120),
            why="no smaller micro-batch helps what is read, evaluated or saved",
            fix="fewer --workers, or less at once in evaluate",
        ) from error
    finally:
        if files is not None:
            files.close()
        run.close()


def _trained(
    run: RunState,
    settings: Settings,
    files: RunFiles | None,
    keep: str,
    evaluate_share: float,
    watch: Callable[[TraceRow], None],
) -> Run:
    assert run.controller is not None, "settings bring a schedule"
    rows = [] if files is None else list(files.rows)
    resumed = run.steps if files is not None and files.resumed else None
    rollbacks, furthest = 0, run.steps
    with Interrupt() as interrupt:
        while True:
            try:
                for row in train_rows(
                    run,
                    end=settings.end,
                    stop=lambda: interrupt.asked,
                    save=(lambda: None) if files is None else files.save,
                    save_due=(lambda: False) if files is None else files.due,
                    evaluate_share=evaluate_share,
                ):
                    rows.append(row)
                    if files is not None:
                        files.write(row)
                        if keep == "best" and is_best(run.job, rows):
                            write_weights(run, files.folder / WEIGHTS)
                    if run.ranks.rank == 0:
                        watch(row)
                break
            except UpdateOutOfMemoryError:
                rollbacks = rollbacks + 1 if run.steps <= furthest else 1
                furthest = max(furthest, run.steps)
                if files is None or rollbacks > ROLLBACKS or run.ranks.size > 1:
                    raise
                files.roll_back()
                rows = list(files.rows)
            except NotFiniteError as error:
                if files is not None:  # as before the batch, to meet or skip it again
                    files.save(stream=run.stream_before)
                    error.fix = "--resume --nonfinite skip, same --out; or a lower rate"
                raise
            except Exception as error:
                if files is not None:
                    files.save_before(error)
                raise
        if files is not None:
            if keep == "last":
                write_weights(run, files.folder / WEIGHTS)
            files.finish()
    if not rows or rows[-1].steps < run.steps:  # its last row was never written
        rows.append(row_of(run, math.nan, run.evaluated(), run.batch_size, 0.0))
    metric = rows[-1].metric
    job = run.job
    return Run(
        reached=None if job.target is None or metric is None else job.met(metric),
        interrupted=interrupt.asked,
        batch_size=run.batch_size,
        scaling=run.controller.numbers.scaling,
        rows=tuple(rows),
        checkpoint=None if files is None else files.last,
        model=run.network,
        resumed=resumed,
    )
