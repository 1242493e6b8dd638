"""What a loss function returns: a mean, or a sum with its count."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch.core.errors import JobError
from rightbatch.core.user_code import user_code

Loss = Callable[[nn.Module, Any], "Tensor | tuple[Tensor, Tensor | int | float]"]
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}
# A mean of two halves lies between them up to rounding, and half as high as their sum;
# a sum is off by what random numbers in the loss make, or not at all. [assumed]
BETWEEN, FAR = 1e-3, 0.2
DRAWN = 3.0  # times what two draws of random numbers differ by [assumed]
BOTH_MEANS = ("sum", "count")  # values of a pair that may turn out to be means
LOSS_FORM = "loss=lambda model, batch: criterion(model(batch[0]), batch[1])"
_PAIR_FIX = "return the mean loss alone, or (loss.sum(), number of terms)"


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
        JobError: It is neither a scalar nor a pair of a scalar and a number, or the
            code raised.
    """
    device = next(model.parameters()).device
    cast = torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
    form = f"it gets the model itself and a batch: {LOSS_FORM}"
    with user_code("loss(model, batch)", form=form), cast:
        result = loss(model, batch)
    pair = isinstance(result, tuple) and len(result) == 2
    value, count = result if pair else (result, None)
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise JobError(
            "the loss is not a scalar",
            seen=f"loss(model, batch) returned {_described(result)}",
            why="one step needs one number; a vector leaves its mean undefined",
            fix="return loss.mean(), or (loss.sum(), count) for ragged targets",
        )
    if pair and not _may_be_count(count):
        raise JobError(
            "the second value of the loss is no count",
            seen=f"loss(model, batch) returned {_described(result)}",
            why="a pair is the sum of all losses and the number of its terms",
            fix=_PAIR_FIX,
        )
    return value.reshape(()), count


def means_in(
    pair: Callable[[int, int], tuple[float, float]], count: int
) -> dict[str, str] | None:
    """Which values of a pair are means, where a sum and a count should be; and why.

    A sum or a count of two halves of a batch is that of one and that of the other
    added; a mean lies between them. One that is drawn (targets masked inside the loss)
    may lie there by chance: it must be further from the sum than it is from itself.

    Args:
        pair: ``(start, stop) ->`` what the loss returns for these examples.
        count: How many there are.

    Returns:
        None where they tell nothing: one example, no loss or count, or none that is
        finite.

    Example:
        >>> means_in(lambda start, stop: (1.5 * (stop - start), stop - start), 8)
        {}
        >>> means_in(lambda start, stop: (1.2 + 0.1 * start, stop - start), 4)
        {'sum': '1.2 and 1.4 for two halves of a batch, 1.2 for both'}
    """
    half = count // 2
    if not half:
        return None
    ranges = ((0, half), (0, half), (half, 2 * half), (0, 2 * half))
    sums, counts = zip(*(pair(*r) for r in ranges), strict=True)
    if not any(sums) or not all(map(math.isfinite, sums)):
        return None
    means = {
        name: f"{a:.4g} and {b:.4g} for two halves of a batch, {whole:.4g} for both"
        for name, (a, again, b, whole) in zip(BOTH_MEANS, (sums, counts), strict=True)
        if _mean(a, b, whole, random=abs(a - again))
    }
    if any(counts):
        return means
    # No targets, or an accuracy before anything is learned.
    return means | {"count": "0 throughout"} if means else None


def no_pair(means: dict[str, str]) -> JobError:
    """The error for a pair such as (mean loss, accuracy).

    Args:
        means: Of `means_in`.
    """
    seen = (
        f"{text}: a mean where the {name} should be" for name, text in means.items()
    )
    return JobError(
        "the loss does not return (sum, count)",
        seen="; ".join(seen),
        why="a pair is the sum of all losses and the number of its terms, so its first "
        "value is divided by its second",
        fix=_PAIR_FIX,
    )


def first_value(loss: Loss) -> Loss:
    """The same loss without the second value of its pair."""

    def alone(model: nn.Module, batch: Any) -> Tensor:
        result = loss(model, batch)
        return result[0] if isinstance(result, tuple) else result

    return alone


def check_differentiable(reached: bool) -> None:
    """Refuse a loss that no gradient comes from.

    Args:
        reached: Whether any part of the batch had a loss that requires a gradient.

    Raises:
        JobError: None had.
    """
    if not reached:
        raise JobError(
            "the loss does not depend on the parameters",
            seen="loss.requires_grad is False",
            why="nothing can be learned from it",
            fix="leave out .item(), .detach() and no_grad inside the loss",
        )


def _mean(first: float, second: float, both: float, random: float) -> bool:
    """Whether the number for both halves lies between theirs, far from their sum."""
    far = FAR * (abs(first) + abs(second)) + DRAWN * random
    slack = BETWEEN * max(abs(first), abs(second), abs(both))
    between = min(first, second) - slack <= both <= max(first, second) + slack
    return between and abs(both - first - second) > far


def _may_be_count(count: Any) -> bool:
    """A number that no gradient comes from; whether it counts, two sizes tell."""
    if isinstance(count, Tensor):
        return count.numel() == 1 and not (
            count.requires_grad or count.is_complex() or count.dtype == torch.bool
        )
    return isinstance(count, numbers.Real) and not isinstance(count, bool)


def _described(result: Any) -> str:
    """What a loss returned, in a few words."""
    if isinstance(result, (tuple, list)):
        return f"({', '.join(_described(part) for part in result[:4])})"
    if isinstance(result, Tensor):
        graph = ", which requires a gradient" if result.requires_grad else ""
        return f"a tensor of shape {tuple(result.shape)}{graph}"
    return f"{type(result).__name__}"
