"""What the contrastive losses ask of features, and of their scale."""

from __future__ import annotations

import torch
from torch import Tensor

from rightbatch.core.errors import JobError, NotFiniteError, SettingError


def checked_features(**features: Tensor) -> list[Tensor]:
    """The features, in float32 at least; an argument's name tells it in errors.

    Raises:
        SettingError: One is no float matrix, or their widths differ.
    """
    for name, rows in features.items():
        if not isinstance(rows, Tensor) or rows.dim() != 2:
            seen = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows)
            raise SettingError(
                f"{name} must be a matrix of examples by features",
                seen=f"{name}: {seen}",
                fix=f"{name}.flatten(1); torch.as_tensor({name}) where it is an array",
            )
        if not rows.is_floating_point():
            raise SettingError(f"{name} must hold floats", seen=f"{rows.dtype}")
    shapes = {name: tuple(rows.shape) for name, rows in features.items()}
    if len({shape[1] for shape in shapes.values()}) > 1:
        raise SettingError("the features differ in width", seen=str(shapes))
    dtypes = [rows.dtype for rows in features.values()]
    wide = torch.float64 if torch.float64 in dtypes else torch.float32
    return [rows.to(wide) for rows in features.values()]


def checked_number(value: float | Tensor, name: str, like: Tensor) -> Tensor:
    """A scale, temperature or bias as a tensor of one number.

    Raises:
        SettingError: It is of another shape.
    """
    number = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    if number.numel() != 1:
        raise SettingError(f"{name} must be one number", seen=str(tuple(number.shape)))
    return number.reshape(())


def too_few(count: int) -> JobError:
    """The error of a batch in which nothing is negative."""
    return JobError(
        "a contrastive loss of fewer than two examples",
        seen=f"{count} example(s) over all ranks",
        why="an example's negatives are the others: without them the loss is zero",
        fix="a batch of two or more; drop_last=True where the last one is smaller",
    )


def not_finite(seen: str) -> NotFiniteError:
    """The error of features that are NaN or infinite, on this rank or another."""
    return NotFiniteError(
        "features or scale are not finite",
        seen=seen,
        why="every example meets every other, so one NaN is the whole gradient's",
        fix="a smaller learning rate, a clipped scale, or a temperature above zero",
    )


def no_second_derivative() -> SettingError:
    """The error of ``create_graph=True``."""
    return SettingError(
        "this loss has no second derivative",
        seen="create_graph=True",
        why="its gradient is made tile by tile, without a graph",
        fix="torch.nn.functional.cross_entropy on the whole table of similarities",
    )
