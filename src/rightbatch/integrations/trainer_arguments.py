"""A plan written into a Trainer's arguments."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path
from typing import Any

from rightbatch.integrations.refusals import refuse
from rightbatch.schedules.scaling import scaled_group
from rightbatch.training.plan import Plan


def apply_plan(args: Any, plan: Plan | str | Path) -> Any:
    """``TrainingArguments`` as a plan says: batch, accumulation, rate, betas, length.

    Warm-up steps, and those of ``lr_scheduler_kwargs``, become as many as come to the
    same examples, or the same share of a ``max_steps`` whose examples the plan changes.
    Steps of logging, evaluation and saving stay as they are.

    Args:
        args: Today's, which the plan started from; left as they are.
        plan: Of ``rightbatch tune``, or where it lies.

    Returns:
        A copy.

    Raises:
        SettingError: The plan started from another batch, or its micro-batches do not
            fill the batch on so many processes.

    Example:
        ``args = rb.integrations.transformers.apply_plan(args, "run/plan.json")``
    """
    plan = plan if isinstance(plan, Plan) else Plan.load(plan)
    if not plan.decided:
        warnings.warn(f"a plan that is not decided: {plan.verdict}", stacklevel=2)
    world, micro, batch = args.world_size, plan.micro_batch, plan.batch_size
    today = args.train_batch_size * args.gradient_accumulation_steps * world
    refuse(
        "the plan is for other arguments",
        (
            today != plan.today,
            f"it started from a batch of {plan.today:,}, these have {today:,}",
            "the arguments that were tuned; a plan is applied once",
        ),
        (
            args.n_gpu > 1 or batch % (micro * world),
            f"{batch:,} examples of {world} processes with {micro:,} each; n_gpu="
            f"{args.n_gpu}",
            f"processes of one device, as many as divide it; {plan.world_size} did",
        ),
    )
    numbers = scaled_group(
        {
            "betas": (args.adam_beta1, args.adam_beta2),
            "eps": args.adam_epsilon,
            "weight_decay": args.weight_decay,
        },
        plan.scaling,
    )
    steps = args.max_steps
    if plan.examples is not None:
        steps = math.ceil(plan.examples / batch)
    elif steps > 0:
        steps = math.ceil(steps * today / batch)
    longer = steps / args.max_steps if args.max_steps > 0 else today / batch

    def stretched(steps: float) -> float:
        return steps if steps < 1 else max(1, round(steps * longer))  # or it's a share

    shape = args.lr_scheduler_kwargs or {}
    new = copy.copy(args)
    changed = {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": batch // (micro * world),
        "learning_rate": plan.lr,
        "adam_beta1": numbers["betas"][0],
        "adam_beta2": numbers["betas"][1],
        "adam_epsilon": numbers["eps"],
        "weight_decay": numbers["weight_decay"],
        "max_steps": steps,
        "warmup_steps": stretched(args.warmup_steps),
        "lr_scheduler_kwargs": {
            name: stretched(value) if name.endswith("_steps") else value
            for name, value in shape.items()
        },
    }
    for name, value in changed.items():
        setattr(new, name, value)
    return new
