"""What an accumulator is made of, checked before it is made."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rightbatch.core.errors import SettingError
from rightbatch.core.real_number import real_number
from rightbatch.job.loss import PRECISIONS
from rightbatch.job.several_optimizers import as_one, members_of

AUTOCAST = {**PRECISIONS, "float16": torch.float16}


def checked_parts(model: nn.Module, loss: Any, optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer, several as one; what cannot be trained is refused.

    Raises:
        SettingError: It says what was given instead.
    """
    optimizers = isinstance(optimizer, (list, tuple, torch.optim.Optimizer))
    if not optimizers or not callable(loss):
        raise SettingError(
            "Accumulator takes a model, a loss and an optimizer, in this order",
            seen=f"{type(model).__name__}, {type(loss).__name__}, "
            f"{type(optimizer).__name__}",
            fix="rb.Accumulator(model, loss, optimizer, micro_batch=16)",
        )
    optimizer = as_one(optimizer)
    if any(isinstance(o, torch.optim.LBFGS) for o in members_of(optimizer)):
        raise SettingError(
            "LBFGS evaluates the loss several times per step",
            why="one step has no single batch",
            fix="SGD, Adam or another optimizer of one gradient per step",
        )
    own = {id(p) for p in model.parameters()}
    if not any(id(p) in own for g in optimizer.param_groups for p in g["params"]):
        raise SettingError(
            "the optimizer holds no parameter of the model",
            why="its steps would change nothing",
            fix="make it from this model's parameters, after wrapping or sharding",
        )
    return optimizer


def check_settings(
    clip_norm: float | None, precision: str, scaler: Any, nonfinite: str
) -> None:
    """Refuse settings that make no sense together.

    Raises:
        SettingError: They do not.
    """
    if precision not in AUTOCAST:
        raise SettingError(
            f"precision must be one of {', '.join(AUTOCAST)}",
            seen=f"precision={precision!r}",
            fix="precision='bfloat16'",
        )
    if precision == "float16" and scaler is None:
        raise SettingError(
            "float16 needs a scaler",
            seen="precision='float16', scaler=None",
            why="small gradients would vanish",
            fix="scaler=torch.amp.GradScaler(), or precision='bfloat16'",
        )
    if clip_norm is not None:
        real_number(clip_norm, "clip_norm", positive=True)
    if nonfinite not in ("stop", "skip"):
        raise SettingError(
            "nonfinite must be 'stop' or 'skip'", seen=f"nonfinite={nonfinite!r}"
        )
