"""A Hugging Face Trainer as a job: its model, loss, data and recipe."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from rightbatch.core.trees import example_count, to_device
from rightbatch.integrations.refusals import refuse
from rightbatch.integrations.trainer_loss import TrainerLoss, refuse_unsupported
from rightbatch.job.job import Job, copied_module
from rightbatch.job.loss import PRECISIONS, scalar_loss

BY_METRIC = ("reduce_lr_on_plateau", "greedy")  # schedulers that follow evaluations


def job(trainer: Any) -> Job:
    """The `Job` that a Hugging Face ``Trainer`` describes, at its initial weights.

    Loss, collator, optimizer (with its groups of weight decay) and scheduler come from
    the Trainer's own methods, overridden ones too; the Trainer is left as it is, and
    the model is copied. Where the Trainer averages over the labels of a whole step, the
    job's loss is ``(sum, count)``. Its ``evaluate`` is the mean loss on
    ``eval_dataset``. ``rightbatch tune my_trainer.py:trainer`` calls this.

    Args:
        trainer: Not trained yet; in one process.

    Raises:
        SettingError: It uses what a job has not: float16, DeepSpeed, FSDP, an
            ``IterableDataset``, a scheduler that follows evaluations.

    Example:
        ``rb.tune(rb.integrations.transformers.job(trainer))``
    """
    refuse_unsupported(trainer)
    args, kind = trainer.args, scheduler_kind(trainer.args)
    sampling = getattr(args, "train_sampling_strategy", "random")
    made = trainer.state.global_step
    refuse(
        "this Trainer is no job",
        (args.fp16, "fp16=True, which needs a gradient scaler", "bf16=True"),
        (args.world_size > 1, f"{args.world_size} processes", "measure in one"),
        (made, f"it has made {made:,} steps", "job(trainer) before trainer.train()"),
        (trainer.lr_scheduler, "a scheduler of one optimizer", "lr_scheduler_type=..."),
        (kind in BY_METRIC, f"lr_scheduler_type={kind!r}", "one that counts steps"),
        (args.neftune_noise_alpha, "neftune_noise_alpha: train() adds it", "none"),
        (sampling != "random", f"train_sampling_strategy={sampling!r}", "'random'"),
    )
    loss = TrainerLoss(trainer)
    if args.gradient_accumulation_steps > 1 and not loss.right:
        warnings.warn(str(loss.wrong()), stacklevel=2)
    batch = trainer.get_total_train_batch_size(args)
    model, data = copied_module(trainer.model), loss.loader.dataset
    precision = "bfloat16" if args.bf16 else "float32"
    fixed = args.max_steps > 0
    passes = max(1, round(args.num_train_epochs * len(data)))
    steps = args.max_steps if fixed else math.ceil(passes / batch)
    return Job(
        model=model,
        loss=loss,
        data=data,
        collate=loss.loader.collate_fn,
        optimizer=_optimizer(trainer, model),
        batch_size=batch,
        evaluate=_held_out(trainer, loss, precision),
        device=str(args.device),
        precision=precision,
        seed=args.seed,
        rate=_rate(trainer, steps),
        clip_norm=args.max_grad_norm or None,
        examples=steps * batch if fixed else None,
        epochs=None if fixed else args.num_train_epochs,
        num_workers=args.dataloader_num_workers,
    )


def scheduler_kind(args: Any) -> str:
    """Its name, of old versions a text."""
    return str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))


@contextmanager
def _lent(trainer: Any, **attributes: Any) -> Iterator[None]:
    """The Trainer with other attributes, put back on leaving."""
    before = {name: getattr(trainer, name) for name in attributes}
    try:
        vars(trainer).update(attributes)
        yield
    finally:
        vars(trainer).update(before)


def _optimizer(trainer: Any, model: nn.Module) -> Callable[..., Any]:
    """Parameters with names -> what the Trainer's own ``create_optimizer`` makes."""
    given = trainer.optimizer
    names = {id(p): name for name, p in trainer.model.named_parameters()}

    def optimizer(named_params: Any) -> torch.optim.Optimizer:
        new = dict(named_params)
        if given is not None:  # of the Trainer's own parameters: the same of these
            groups = [
                {**g, "params": [new[names[id(p)]] for p in g["params"]]}
                for g in given.param_groups
            ]
            return type(given)(groups)
        # The same modules around these parameters; nothing large is copied.
        kept = {id(p): new.get(name, p) for name, p in model.named_parameters()}
        around = copy.deepcopy(model, kept | {id(b): b for b in model.buffers()})
        with _lent(trainer, model=around, model_wrapped=around, optimizer=None):
            return trainer.create_optimizer()

    return optimizer


def _rate(trainer: Any, steps: int) -> Callable[..., Any] | None:
    """Optimizer -> the Trainer's own scheduler over the whole run."""
    overridden = type(trainer).create_scheduler.__module__ != "transformers.trainer"
    if scheduler_kind(trainer.args) == "constant" and not overridden:
        return None

    def rate(optimizer: torch.optim.Optimizer) -> Any:
        with _lent(trainer, lr_scheduler=None, optimizer=optimizer):
            return trainer.create_scheduler(steps, optimizer)

    return rate


def _held_out(
    trainer: Any, loss: TrainerLoss, precision: str
) -> Callable[[nn.Module], float] | None:
    """Model -> the mean loss on ``eval_dataset``; several are taken as one."""
    held = trainer.eval_dataset
    if held is None:
        return None
    parts = list(held.values()) if isinstance(held, dict) else [held]
    loaders = [trainer.get_eval_dataloader(part) for part in parts]

    def mean_loss(model: nn.Module) -> float:
        device = next(model.parameters()).device
        total = terms = 0.0
        for batch in (to_device(b, device) for loader in loaders for b in loader):
            value, count = scalar_loss(loss, model, batch, PRECISIONS[precision])
            examples = example_count(batch)
            total += float(value) * (examples if count is None else 1)
            terms += examples if count is None else float(count)
        return total / terms

    return mean_loss
