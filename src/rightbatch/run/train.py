"""Training a job by a plan: to its target, or for so many examples."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from rightbatch.blame import is_out_of_memory
from rightbatch.errors import JobError, RightbatchError, RunFolderError, SettingError
from rightbatch.job import Job, check_batch_size
from rightbatch.loading import DEFAULT_NAME
from rightbatch.optimizers import decay_is_decoupled, optimizer_family
from rightbatch.plan.plan import Plan
from rightbatch.plan.scaling import Scaling, apply_scaling, scaling_for
from rightbatch.record import to_plain
from rightbatch.run.checkpoint import save_checkpoint
from rightbatch.run.folder import CHECKPOINTS, TRACE, make_run_folder
from rightbatch.run.interrupt import Interrupt
from rightbatch.run.loop import TraceRow, train_rows
from rightbatch.training import Training

LONGEST_EPOCHS = 1000  # a run to a target gives up after so many [assumed]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Run:
    """A finished run.

    Attributes:
        reached: Whether the target was met; None where there is none.
        interrupted: Whether Ctrl-C ended it.
        batch_size: Examples per step.
        scaling: How the optimizer's numbers were changed from today's.
        rows: What ``trace.jsonl`` holds.
        checkpoint: The state at the end.
        model: The trained model.
    """

    reached: bool | None
    interrupted: bool
    batch_size: int
    scaling: Scaling
    rows: tuple[TraceRow, ...]
    checkpoint: Path | None
    model: torch.nn.Module

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


def train(
    job: Job,
    plan: Plan | None = None,
    *,
    batch_size: int | None = None,
    examples: int | None = None,
    epochs: float | None = None,
    rule: str = "auto",
    noise_scale: float | None = None,
    out: str | Path | None = None,
    watch: Callable[[TraceRow], None] = lambda row: None,
) -> Run:
    """Train by a plan, or at a batch size of one's own, until the target or the end.

    Args:
        job: What is trained.
        plan: Gives batch, split and learning rate.
        batch_size: Instead of a plan; the learning rate then follows ``rule``.
        examples: Stop after so many examples.
        epochs: The same, in passes over the data.
        rule: How the learning rate follows from today's batch, without a plan.
        noise_scale: For the rule; see `plan.scaling.scaling_for`.
        out: Run folder for the trace and the checkpoint; None keeps nothing.
        watch: Called with every row of the trace.

    Raises:
        SettingError: The plan is for another job or batch, both or neither of plan and
            end are given, or a number makes no sense.
        JobError: The loss became NaN or infinite, or the job's code raised.
        RunFolderError: The folder holds a run, or cannot be written.

    Example:
        >>> import rightbatch as rb
        >>> run = rb.train(rb.load_job("digits"), batch_size=64)
        >>> run.reached
        True
    """
    end = _end(job, examples, epochs)
    size, micro, scaling = _setting(job, plan, batch_size, rule, noise_scale)
    if size > job.length:
        raise SettingError(
            f"the batch is larger than the data set of {job.length} examples",
            seen=f"batch_size={size}",
            fix=f"batch_size={job.length} or less",
        )
    folder = None if out is None else make_run_folder(Path(out), job.name)
    torch.manual_seed(job.seed)
    training = Training.start(job)
    apply_scaling(training.optimizer, scaling)
    rows: list[TraceRow] = []
    checkpoint = folder / CHECKPOINTS / "last.pt" if folder else None
    with contextlib.ExitStack() as stack:
        trace = _open_trace(folder, stack)
        interrupt = stack.enter_context(Interrupt())
        try:
            for row in train_rows(
                training,
                size,
                micro_batch=micro,
                max_examples=end,
                stop=lambda: interrupt.asked,
            ):
                rows.append(row)
                if trace is not None:
                    trace.write(json.dumps(to_plain(row)) + "\n")
                    trace.flush()
                watch(row)
        except (RuntimeError, MemoryError) as error:
            if not rows and folder is not None:
                (folder / TRACE).unlink(missing_ok=True)
            if not is_out_of_memory(error):
                raise
            raise JobError(
                f"a batch of {size} does not fit in memory",
                seen=str(error).splitlines()[0][:70],
                fix=f"a plan (it splits batches), or --batch-size {max(1, size // 2)}",
            ) from error
        except RightbatchError:
            if not rows and folder is not None:
                (folder / TRACE).unlink(missing_ok=True)
            raise
        if checkpoint is not None:
            save_checkpoint(training, checkpoint, size)
    metric = rows[-1].metric
    reached = None if job.target is None or metric is None else job.met(metric)
    return Run(
        reached=reached,
        interrupted=interrupt.asked,
        batch_size=size,
        scaling=scaling,
        rows=tuple(rows),
        checkpoint=checkpoint,
        model=training.model,
    )


def _end(job: Job, examples: int | None, epochs: float | None) -> float:
    if examples is not None and epochs is not None:
        raise SettingError("give examples or epochs, not both")
    if examples is not None:
        check_batch_size(examples, "examples")
        return examples
    if epochs is not None:
        if not 0 < epochs < math.inf:
            raise SettingError("epochs must be positive", seen=f"epochs={epochs}")
        return max(1, round(epochs * job.length))
    if job.target is None:
        raise SettingError(
            "the job has no target, so the run has no end",
            fix="--epochs 10 or --examples 100000, or a Job with evaluate= and target=",
        )
    return LONGEST_EPOCHS * job.length


def _setting(
    job: Job,
    plan: Plan | None,
    batch_size: int | None,
    rule: str,
    noise_scale: float | None,
) -> tuple[int, int, Scaling]:
    """Batch, micro-batch and scaling from a plan, or from a batch size alone.

    Raises:
        SettingError: Both are given, or the plan is for another job.
    """
    if plan is not None and batch_size is not None:
        raise SettingError("give a plan or a batch size, not both")
    if plan is None:
        size = job.batch_size if batch_size is None else batch_size
        check_batch_size(size)
        optimizer = job.make_optimizer(job.make_model())
        scaling = scaling_for(
            optimizer_family(optimizer),
            job.batch_size,
            size,
            rule=rule,
            noise_scale=noise_scale,
            decoupled_decay=decay_is_decoupled(optimizer),
        )
        return size, size, scaling
    # A job without a name of its own is called after its file by the command line.
    named = DEFAULT_NAME not in (plan.job, job.name)
    if plan.today != job.batch_size or (named and plan.job != job.name):
        raise SettingError(
            "the plan is for another job",
            seen=f"plan: {plan.job} at batch {plan.today}; "
            f"job: {job.name} at batch {job.batch_size}",
            why="its learning rate follows from that job's own",
            fix="rightbatch tune this job first",
        )
    optimizer = job.make_optimizer(job.make_model())
    today = float(optimizer.param_groups[0]["lr"])
    kind = type(optimizer).__name__
    same_rate = math.isclose(today * plan.scaling.lr, plan.lr, rel_tol=1e-6)
    if kind != plan.optimizer or not same_rate:
        raise SettingError(
            "the job's optimizer has changed since the plan was made",
            seen=f"plan: {plan.optimizer} to lr {plan.lr:.4g}; job: {kind} at lr "
            f"{today:.4g}, which the plan would make {today * plan.scaling.lr:.4g}",
            why="the plan changes today's rate by a factor; it would be applied twice",
            fix="leave the job at the optimizer and rate it was tuned with, or tune "
            "it again",
        )
    return plan.batch_size, plan.micro_batch, plan.scaling


def _open_trace(folder: Path | None, stack: contextlib.ExitStack):
    if folder is None:
        return None
    try:
        return stack.enter_context((folder / TRACE).open("w", encoding="utf-8"))
    except OSError as error:
        raise RunFolderError(
            f"cannot write {folder / TRACE}", seen=str(error.strerror)
        ) from error


def read_trace(path: Path) -> tuple[TraceRow, ...]:
    """Read a ``trace.jsonl``; a last line cut short by a crash is left out.

    Raises:
        RunFolderError: It cannot be read, or another line is damaged.
    """
    from rightbatch.record import from_plain

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise RunFolderError(f"cannot read {path}", seen=str(error.strerror)) from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(from_plain(TraceRow, json.loads(line)))
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                break
            raise RunFolderError(
                f"{path} is damaged in line {number}", seen=str(error)
            ) from error
    return tuple(rows)
