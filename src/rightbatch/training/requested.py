"""From what somebody asked for to the settings of a run, all of it checked."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from rightbatch.core.errors import SettingError
from rightbatch.core.whole_number import whole_number
from rightbatch.job.job import Job
from rightbatch.job.loading import DEFAULT_NAME
from rightbatch.schedules.job_rate import rate_of
from rightbatch.schedules.rate import Rate
from rightbatch.schedules.run_checks import (
    check_decay_is_met,
    check_rate,
    check_schedule,
)
from rightbatch.schedules.schedule import Constant, Schedule
from rightbatch.training.plan import Plan
from rightbatch.training.ranks import joined
from rightbatch.training.settings import Settings

LONGEST_EPOCHS = 1000  # a run to a target gives up after so many [assumed]
# What may be another when a run is gone on with: the rest would make it another run.
_FREE = ("end", "micro_batch", "largest", "nonfinite", "num_workers", "multiple")


def settings_of(
    job: Job,
    plan: Plan | None,
    *,
    batch_size: int | None,
    schedule: Schedule | None,
    end: float | None,
    begun: Settings | None,
    options: dict[str, Any],
) -> Settings:
    """The settings of a run, from its arguments, or from those it was begun with.

    Args:
        job: What is trained.
        plan: Gives batch, split and rule, and the length of a job that has one.
        batch_size: Instead.
        schedule: Instead, or over a plan's split and rule.
        end: Examples at which it stops.
        begun: The settings of the run to go on with.
        options: Further fields of `Settings` that were asked for.

    Raises:
        SettingError: They contradict each other, the job, or the run begun.
    """
    one_of = [n for n, v in (("plan", plan), ("batch_size", batch_size)) if v]
    if len(one_of) > 1 or (schedule is not None and batch_size is not None):
        raise SettingError(
            "give a plan, a batch size or a schedule: one says the batch",
            seen=", ".join([*one_of, *(["schedule"] if schedule else [])]),
        )
    if plan is not None:
        check_plan(job, plan)
    asked = dict(options)
    if begun is None:  # what the job itself says where nothing was asked for
        asked.setdefault("clip_norm", job.clip_norm)
        asked.setdefault("num_workers", job.num_workers)
        # A schedule may have taken a decay up.
        if "rate" not in options and not hasattr(schedule, "rate"):
            asked["rate"] = planned_rate(job, plan)
    if plan is not None:
        of_plan: dict[str, Any] = {
            "schedule": Constant(plan.batch_size),
            "micro_batch": plan.micro_batch,
            "rule": plan.scaling.asked,
            "noise_scale": plan.scaling.noise_scale,
            "lr_factor": plan.lr_factor,
            "coupled": plan.coupled_batch is not None,
        }
        together = plan.coupled_batch
        if together is not None and together < plan.micro_batch:
            # A schedule's batches, and the parts of ranks, are multiples of the group
            # only; a sharded model cannot have its own layers back.
            ungrouped = schedule is not None or options.get("shard") or joined()
            if ungrouped or options.get("micro_batch") == together:
                of_plan["micro_batch"] = together
            else:
                of_plan["group"] = together
        asked = of_plan | asked
        if asked["coupled"] and asked["micro_batch"] != of_plan["micro_batch"]:
            raise _another_micro_batch(together, asked["micro_batch"])
    elif batch_size is not None or (schedule is None and begun is None):
        size = job.batch_size if batch_size is None else batch_size
        asked["schedule"] = Constant(whole_number(size, "batch_size"))
    if schedule is not None:
        asked["schedule"] = schedule
    if end is not None:
        asked["end"] = end
    if begun is None:
        rate = getattr(asked["schedule"], "rate", None) or asked.get("rate")
        asked["end"], _ = run_end(job, plan, rate=rate, asked=end)
        wanted = Settings(**asked)
    else:
        wanted = dataclasses.replace(begun, **asked)
        _same_run(begun, wanted)
    if wanted.num_workers and isinstance(job.data, tuple):
        wanted = dataclasses.replace(wanted, num_workers=0)
    _check_rate(job, wanted)
    if not wanted.multiple:
        ranks = torch.distributed.get_world_size() if joined() else 1
        multiple = (wanted.micro_batch or 1) * ranks
        wanted = dataclasses.replace(wanted, multiple=multiple)
    check_schedule(
        wanted.schedule,
        length=job.length,
        examples=wanted.end,
        largest=wanted.largest,
    )
    return wanted


def planned_rate(job: Job, plan: Plan | None) -> Rate | None:
    """The job's learning-rate schedule, of the same shape over the planned examples.

    Raises:
        SettingError: It cannot be read.
        JobError: The job's own code raised.
    """
    rate, today = rate_of(job), job.run_examples
    planned = _planned_examples(job, plan)
    if rate is None or today is None or planned is None or planned == today:
        return rate
    return rate.stretched(planned / today)


def _planned_examples(job: Job, plan: Plan | None) -> float | None:
    """The length of the run, if the plan or the job says it."""
    if plan is None or plan.examples is None:
        return job.run_examples
    return float(max(1, round(plan.examples)))


def run_end(
    job: Job, plan: Plan | None, *, rate: Rate | None, asked: float | None
) -> tuple[float, str]:
    """Examples at which a new run ends, if no target is met before, and why there.

    Args:
        job: What is trained.
        plan: Says the length of a job that has one.
        rate: The schedule of the learning rate.
        asked: Examples that were asked for.

    Raises:
        SettingError: Nothing says how long it is, and there is no target.
    """
    if asked is not None:
        return asked, "as asked for"
    planned = _planned_examples(job, plan)
    if planned is not None:
        by_plan = plan is not None and plan.examples is not None
        return planned, "as planned" if by_plan else "as the job says"
    if job.target is None:
        raise SettingError(
            "the job has no target, so the run has no end",
            fix="--epochs 10 or --examples 100000, or a Job with epochs=, or with "
            "evaluate= and target=",
        )
    # A run does not go on when its learning rate has come to nothing.
    if rate is not None and rate.factors[-1] == 0:
        return rate.examples[-1], "there the learning rate is zero"
    return LONGEST_EPOCHS * job.length, "nothing else says how long (--epochs)"


def _check_rate(job: Job, wanted: Settings) -> None:
    """Refuse a rate that does not fit the length of the run, or the schedule."""
    rate = getattr(wanted.schedule, "rate", None) or wanted.rate
    if rate is None:
        return
    check_rate(rate, end=wanted.end, step=max(job.batch_size, wanted.schedule.start))
    if wanted.rate is not None:
        check_decay_is_met(
            rate, wanted.schedule, end=wanted.end, batch_size=job.batch_size
        )


def _same_run(begun: Settings, wanted: Settings) -> None:
    """Refuse to go on with a run under settings that would make it another.

    Raises:
        SettingError: It names the first that differs.
    """
    if begun.coupled and begun.micro_batch != wanted.micro_batch:
        together = begun.group or begun.micro_batch
        raise _another_micro_batch(together, wanted.micro_batch)
    for name in Settings.__dataclass_fields__:
        then, now = getattr(begun, name), getattr(wanted, name)
        if name not in _FREE and then != now:
            raise SettingError(
                f"the run was begun with another {name}",
                seen=f"{then} then, {now} now",
                why="it would be neither the one run nor the other",
                fix="leave it out, to go on as begun; or another --out",
            )


def _another_micro_batch(together: int | None, asked: int | None) -> SettingError:
    return SettingError(
        "the examples of a micro-batch see each other in this job",
        seen=f"{together} of them as planned, micro_batch={asked} asked for",
        why="another number of them is another function, with another best rate",
        fix=f"leave micro_batch out, or micro_batch={together}; or train by "
        "batch_size, without the plan",
    )


def check_plan(job: Job, plan: Plan) -> None:
    """Refuse the plan of another job.

    Raises:
        SettingError: It is.
    """
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


def check_optimizer(plan: Plan, facts: dict[str, Any]) -> None:
    """Refuse the plan of another optimizer, or of another rate of it.

    Args:
        plan: The plan.
        facts: Of a fresh run of the job, see `training.identity.facts`.

    Raises:
        SettingError: It is.
    """
    kind, today = facts["optimizer"], facts.get("param group 0's lr", math.nan)
    planned = today * plan.scaling.lr * plan.lr_factor
    same_rate = math.isclose(planned, plan.lr, rel_tol=1e-6)
    if kind != plan.optimizer or not same_rate:
        raise SettingError(
            "the job's optimizer has changed since the plan was made",
            seen=f"plan: {plan.optimizer} to lr {plan.lr:.4g}; job: {kind} at lr "
            f"{today:.4g}, which the plan would make {planned:.4g}",
            why="the plan changes today's rate by a factor; it would be applied twice",
            fix="leave the job at the optimizer and rate it was tuned with, or tune "
            "it again",
        )
