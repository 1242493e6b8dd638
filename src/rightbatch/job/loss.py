"""What a loss function returns: a mean, or a sum with its count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch.core.errors import JobError
from rightbatch.core.user_code import user_code

Loss = Callable[[nn.Module, Any], "Tensor | tuple[Tensor, Tensor | int | float]"]
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}


def scalar_loss(
    loss: Loss, model: nn.Module, batch: Any, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor | float | None]:
    """A loss as (value to differentiate, count); no count marks a plain mean.

    Args:
        loss: ``(model, batch) ->`` a mean, or ``(sum, count)``.
        model: Gives the device.
        batch: On that device.
        dtype: For autocast; None: without.

    Raises:
        JobError: It is neither a scalar nor a pair of scalars, or the code raised.
    """
    device = next(model.parameters()).device
    cast = torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
    with user_code("loss(model, batch)"), cast:
        result = loss(model, batch)
    value, count = result if isinstance(result, tuple) else (result, None)
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value)
        raise JobError(
            "the loss is not a scalar",
            seen=f"loss(model, batch) returned {shape}",
            why="one step needs one number; a vector leaves its mean undefined",
            fix="return loss.mean(), or (loss.sum(), count) for ragged targets",
        )
    return value.reshape(()), count


def check_differentiable(value: Tensor) -> None:
    """Refuse a loss that no gradient comes from.

    Raises:
        JobError: It does not require one.
    """
    if not value.requires_grad:
        raise JobError(
            "the loss does not depend on the parameters",
            seen="loss.requires_grad is False",
            why="nothing can be learned from it",
            fix="leave out .item(), .detach() and no_grad inside the loss",
        )
