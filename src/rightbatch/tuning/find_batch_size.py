"""A training function is called with what fits; the batch stays what it was."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from rightbatch.core.errors import SettingError
from rightbatch.core.torch_private import is_out_of_memory
from rightbatch.core.whole_number import whole_number
from rightbatch.job.job import Job
from rightbatch.memory.largest_batch import largest_batch
from rightbatch.training.plan import Plan
from rightbatch.training.ranks import joined
from rightbatch.training.recovery import release
from rightbatch.tuning.tune import tune


def find_batch_size(
    batch_size: int | None = None,
    *,
    plan: Plan | str | Path | None = None,
    job: Job | None = None,
    starting_micro_batch: int | None = None,
    budget_s: float = 60.0,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Call a training function with a batch that is right, split so that it fits.

    The function gets ``micro_batch`` and ``accumulation`` first. Where memory runs out
    it is called again, from the beginning, with a smaller micro-batch of which more are
    accumulated: the batch over all ranks, and with it the learning rate, stays. (What
    Accelerate's ``find_executable_batch_size`` and Lightning's ``scale_batch_size``
    shrink is the batch itself.)

    Ranks that have joined (torch.distributed) agree before they begin: the batch is the
    first one's, the micro-batch the smallest that any of them would take. There is no
    second try there, since the others would wait for the rank that failed: the error
    says which ``starting_micro_batch`` to start all of them with.

    Args:
        batch_size: Examples per optimizer step, over all ranks.
        plan: Or a `Plan`, or its file: its batch where it is decided, today's where
            not, with a warning.
        job: Or a `Job`, tuned within the budget when the function is first called.
        starting_micro_batch: The first to try on a rank; default: the plan's, or what
            the memory law of the job says, or the whole batch.
        budget_s: Seconds for tuning a job.

    Returns:
        A decorator. What it makes has ``batch_size`` and ``plan`` as attributes while
        the function runs: the learning rate of a decided plan is ``plan.lr``.

    Raises:
        SettingError: Not one of batch, plan and job is given; the ranks do not divide
            the batch; not even a micro-batch of 1 fits; or one of several ranks has run
            out of memory.

    Example:
        >>> import torch, warnings, rightbatch as rb
        >>> @rb.find_batch_size(256)
        ... def training(micro_batch, accumulation):
        ...     if micro_batch > 100:
        ...         raise torch.OutOfMemoryError("emulated")
        ...     return micro_batch, accumulation
        >>> with warnings.catch_warnings(action="ignore"):
        ...     training()
        (64, 4)
    """
    if callable(batch_size):
        raise SettingError(
            "the decorator needs the batch",
            seen="@rb.find_batch_size",
            fix="@rb.find_batch_size(256)",
        )
    given = [value for value in (batch_size, plan, job) if value is not None]
    if len(given) != 1:
        raise SettingError(
            "give a batch size, a plan or a job: one says the batch",
            seen=f"{len(given)} of them",
            fix="@rb.find_batch_size(256); or plan='runs/mine/plan.json'; or job=job",
        )

    def decorated(training: Callable[..., Any]) -> Callable[..., Any]:
        def fitted(*arguments: Any, **options: Any) -> Any:
            if batch_size is None:
                found.plan = found.plan or _plan(plan, job, budget_s)
                batch, first = _batch_of(found.plan, job)
            else:
                batch = first = whole_number(batch_size, "batch_size")
            most = whole_number(starting_micro_batch or first, "micro_batch")
            batch, share, micro = _agreed(batch, most)
            found.batch_size = batch
            coupled = found.plan is not None and found.plan.coupled_batch
            while True:
                try:
                    return training(micro, share // micro, *arguments, **options)
                except Exception as error:
                    if not is_out_of_memory(error):
                        raise
                    release(error)
                    smaller = _smaller(micro, share, batch, coupled)
                warnings.warn(
                    f"micro-batches of {micro} do not fit: {smaller} are tried, "
                    f"{share // smaller} a step; the batch stays {batch}",
                    stacklevel=2,
                )
                micro = smaller

        found: Any = functools.wraps(training)(fitted)
        found.plan, found.batch_size = None, batch_size
        return found

    return decorated


def _plan(plan: Plan | str | Path | None, job: Job | None, budget_s: float) -> Plan:
    """The plan that was given, or is made."""
    if job is not None:
        plan = tune(job, budget_s=budget_s).plan
    made = plan if isinstance(plan, Plan) else Plan.load(plan or "")
    if not made.decided:
        warnings.warn(
            f"undecided, so the batch is today's {made.today}: {made.verdict}",
            stacklevel=3,
        )
    return made


def _batch_of(plan: Plan, job: Job | None) -> tuple[int, int]:
    """The batch, and the largest micro-batch believed to fit."""
    if plan.decided or plan.coupled_batch is not None or job is None:
        return (plan.batch_size if plan.decided else plan.today), plan.micro_batch
    return plan.today, largest_batch(job, verify=False, accumulation=2).largest


def _agreed(batch: int, most: int) -> tuple[int, int, int]:
    """Batch, a rank's share of it, and the micro-batch; the same on all ranks."""
    wanted: list[Any] = [(batch, most)]
    if joined():
        wanted *= dist.get_world_size()
        dist.all_gather_object(wanted, (batch, most))
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SettingError(
            "the ranks cannot agree before they have joined",
            seen=f"WORLD_SIZE={os.environ['WORLD_SIZE']}, no process group",
            fix="torch.distributed.init_process_group() before the call",
        )
    batch, ranks = wanted[0][0], len(wanted)
    if batch % ranks:
        raise SettingError(
            f"{ranks} ranks cannot share a batch of {batch} evenly",
            fix=f"{batch - batch % ranks or ranks}, or another number of ranks",
        )
    share = batch // ranks
    return batch, share, _divisor(share, min(most for _, most in wanted))


def _divisor(share: int, most: int) -> int:
    """The largest that divides a rank's share; 0: there is none."""
    return next((b for b in range(min(share, most), 0, -1) if share % b == 0), 0)


def _smaller(micro: int, share: int, batch: int, coupled: int | None) -> int:
    """The micro-batch to try next, where one can be tried."""
    if coupled:
        raise SettingError(
            "memory ran out, and the micro-batch cannot be smaller",
            seen=f"{coupled} examples see each other",
            why="fewer of them would be another function",
        )
    smaller = _divisor(share, micro // 2)
    if not smaller:
        raise SettingError(
            "not even one example at a time fits in memory",
            fix="a smaller model; rightbatch memory JOB says what takes it",
        )
    if share != batch:
        raise SettingError(
            f"micro-batches of {micro} do not fit on rank {dist.get_rank()}",
            why="the other ranks wait for it: they cannot try again together",
            fix=f"@rb.find_batch_size(..., starting_micro_batch={smaller}): "
            f"{share // smaller} of them make a step; the batch stays {batch}",
        )
    return smaller
