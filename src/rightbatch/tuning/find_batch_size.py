"""A training function is called with what fits; the batch stays what it was."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from rightbatch.core.errors import JobError, SettingError
from rightbatch.core.torch_private import is_out_of_memory
from rightbatch.core.whole_number import whole_number
from rightbatch.job.job import Job
from rightbatch.memory.largest_batch import largest_batch
from rightbatch.training.plan import Plan
from rightbatch.training.ranks import joined
from rightbatch.training.recovery import release
from rightbatch.tuning.tune import tune

PATIENCE = timedelta(days=1)  # longer than a training without exchanges takes [assumed]


def find_batch_size(
    batch_size: int | None = None,
    *,
    plan: Plan | str | Path | None = None,
    job: Job | None = None,
    starting_micro_batch: int | None = None,
    budget_s: float = 60.0,
    timeout_s: float = 1800.0,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Call a training function with a batch that is right, split so that it fits.

    The function gets ``micro_batch`` and ``accumulation`` first. Where memory runs out
    it is called again, from the beginning, with a smaller micro-batch of which more are
    accumulated: the batch over all ranks, and with it the learning rate, stays. (What
    Accelerate's ``find_executable_batch_size`` and Lightning's ``scale_batch_size``
    shrink is the batch itself.)

    Under torch.distributed all ranks have joined before, and all retry where one fails.
    The others may be waiting for it in an exchange: they come back when that times out,
    so ``init_process_group`` needs a ``timeout`` that can be waited for. The group is
    then another, so whatever talks to other ranks (DDP, ``accelerator.prepare``) is
    made inside the function. Run with gloo only: NCCL ends a process that times out.

    Args:
        batch_size: Examples per optimizer step, over all ranks.
        plan: Or a `Plan`, or its file: its batch where it is decided, today's where
            not, with a warning.
        job: Or a `Job`, tuned within the budget when the function is first called.
        starting_micro_batch: The first to try on a rank; default: the plan's, or what
            the memory law of the job says, or the whole batch.
        budget_s: Seconds for tuning a job.
        timeout_s: Of exchanges in a group that is made anew; torch's own by default.

    Returns:
        A decorator. What it makes has ``batch_size`` and ``plan`` as attributes while
        the function runs: the learning rate of a decided plan is ``plan.lr``.

    Raises:
        SettingError: Not one of batch, plan and job is given; the ranks do not divide
            the batch; or not even a micro-batch of 1 fits.

    Example:
        >>> import torch, warnings, rightbatch as rb
        >>> from rightbatch.tuning.find_batch_size import find_batch_size
        >>> @find_batch_size(256)
        ... def training(micro_batch, accumulation):
        ...     if micro_batch > 100:
        ...         raise torch.OutOfMemoryError("emulated")
        ...     return micro_batch, accumulation
        >>> with warnings.catch_warnings(action="ignore"):
        ...     training()
        (64, 4)
    """
    given = [value for value in (batch_size, plan, job) if value is not None]
    if len(given) != 1:
        raise SettingError(
            "give a batch size, a plan or a job: one says the batch",
            seen=f"{len(given)} of them",
            fix="@rb.find_batch_size(256); or plan='runs/mine/plan.json'; or job=job",
        )

    def decorated(training: Callable[..., Any]) -> Callable[..., Any]:
        def fitted(*arguments: Any, **options: Any) -> Any:
            ranks = dist.get_world_size() if joined() else 1
            if ranks == 1 and int(os.environ.get("WORLD_SIZE", "1")) > 1:
                raise SettingError(
                    "the ranks cannot agree before they have joined",
                    seen=f"WORLD_SIZE={os.environ['WORLD_SIZE']}, no process group",
                    fix="torch.distributed.init_process_group() before the call",
                )
            if batch_size is None:
                found.plan = found.plan or _plan(plan, job, budget_s)
                batch, first = _batch_of(found.plan, job)
            else:
                batch = first = whole_number(batch_size, "batch_size")
            if batch % ranks:
                raise SettingError(
                    f"{ranks} ranks cannot share a batch of {batch} evenly",
                    fix=f"{batch - batch % ranks or ranks}, or another number of ranks",
                )
            found.batch_size, share = batch, batch // ranks
            most = whole_number(starting_micro_batch or first, "micro_batch")
            micro = _divisor(share, most)
            while micro:
                world: Any = dist.group.WORLD if joined() else None
                store = None if world is None else world.get_group_store()
                state, result = _tried(
                    store, training, micro, share // micro, *arguments, **options
                )
                fits = state == "fits"
                if store is not None:
                    fits = _all_fit(store, state, timeout_s)
                if fits:
                    return result
                if found.plan is not None and found.plan.coupled_batch is not None:
                    raise SettingError(
                        "memory ran out, and the micro-batch cannot be smaller",
                        seen=f"{found.plan.coupled_batch} examples see each other",
                        why="fewer of them would be another function",
                    )
                before, micro = micro, _divisor(share, micro // 2)
                if micro:
                    warnings.warn(
                        f"micro-batches of {before} do not fit: {micro} are tried, "
                        f"{share // micro} a step; the batch stays {batch}",
                        stacklevel=2,
                    )
            raise SettingError(
                "not even one example at a time fits in memory",
                fix="a smaller model; rightbatch memory JOB says what takes it",
            )

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


def _divisor(share: int, most: int) -> int:
    """The largest that divides a rank's share; 0: there is none."""
    return next((b for b in range(min(share, most), 0, -1) if share % b == 0), 0)


def _tried(
    store: Any, training: Callable[..., Any], *arguments: Any, **options: Any
) -> tuple[str, Any]:
    """Whether it fits on this rank, and what the training returned."""
    try:
        return "fits", training(*arguments, **options)
    except Exception as error:
        state = "full" if is_out_of_memory(error) else "error"
        if store is not None and state == "error" and store.check(["full"]):
            state = "broken off"  # an exchange with a rank that is full
        if store is not None:
            store.set("full" if state == "full" else f"rank {dist.get_rank()}", state)
        if state == "error":
            raise
        release(error)
    return state, None


def _all_fit(store: Any, state: str, timeout_s: float) -> bool:
    """Whether it fits on all ranks; where not, they meet in a new group. Collective."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    store.set(f"rank {rank}", state)
    store.wait([f"rank {r}" for r in range(ranks)], PATIENCE)
    states = [store.get(f"rank {r}").decode() for r in range(ranks)]
    if state == "fits" and ("error" in states or set(states) == {"fits"}):
        return True
    if "error" in states:
        raise JobError("another rank has ended", seen=", ".join(states))
    backend = dist.get_backend_config()
    dist.destroy_process_group()
    dist.init_process_group(
        backend,
        store=dist.PrefixStore("next try", store),
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=timeout_s),
    )
    return False
