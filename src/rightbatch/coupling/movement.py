"""Whether numbers moved where they had to stay."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from rightbatch.coupling.perturbation import Question

# Where a pass takes other shapes or orders inside (tokens sent to experts, unpadding),
# a kernel sums in another order: roundings of the largest number, at most this share of
# it. [assumed; measured: 4 roundings, an MLP in float32]
ROUNDINGS, MOST = 256, 0.05
SPREAD = 4.0  # times what two equal passes differ by, where they do (GPU) [assumed]


def difference(
    before: Tensor, after: Tensor, again: Tensor | None = None, *, rounded: bool = False
) -> Tensor:
    """How far each number moved, in float64; 0 where that may be chance.

    Args:
        before: Of the batch as it is.
        after: Of the changed one; of the same shape.
        again: Of the batch as it is, once more; None: the same to the bit.
        rounded: Whether sums may have been taken in another order.
    """
    a, b = _numbers(before), _numbers(after)
    moved = (b - a).abs()
    moved[a.isnan() & b.isnan() | (a == b)] = 0.0  # infinities too
    moved[moved.isnan()] = torch.inf  # one of the two is not a number
    finite = a[a.isfinite()].abs()
    floor = 0.0
    if again is not None:
        floor = SPREAD * float((_numbers(again) - a).abs().nan_to_num(0.0).max())
    if rounded and before.is_floating_point() and finite.numel():
        share = min(MOST, ROUNDINGS * torch.finfo(before.dtype).eps)
        floor += share * float(finite.max())
    return torch.where(moved > floor, moved, 0.0)


def layouts(
    tensor: Tensor, question: Question, *, strict: bool = False
) -> Iterator[Tensor]:
    """The tensor with the question's positions as leading axes, rest flattened.

    In every way in which the sizes allow it: an inner tensor may have its examples on
    any axis, or folded together with others into the first.

    Args:
        tensor: Any.
        question: Its positions.
        strict: Only as the inputs have them, where that is possible.
    """
    shape = tuple(question.changed.shape)
    depth = len(shape)
    if not tensor.numel():
        return
    if strict and question.concerns(tensor):
        front = tensor.movedim(question.axes, tuple(range(depth)))
        yield front.reshape(*shape, -1)
        return
    for axes in itertools.permutations(range(tensor.dim()), depth):
        if tuple(tensor.shape[a] for a in axes) == shape:
            front = tensor.movedim(axes, tuple(range(depth)))
            yield front.reshape(*shape, -1)
    rows, size = (tensor.shape[0] if tensor.dim() else 0), question.changed.numel()
    if rows and rows % size == 0 and (depth, rows) != (1, size):
        yield tensor.reshape(*shape, -1)
        backwards = tensor.reshape(rows // size, *reversed(shape), -1)
        yield backwards.movedim(
            tuple(range(1, depth + 1)), tuple(reversed(range(depth)))
        ).reshape(*shape, -1)


def moved_positions(
    moved: Tensor, question: Question, *, strict: bool = False
) -> list[Tensor] | None:
    """Which positions moved, in every layout; None: the tensor has no such positions.

    Args:
        moved: A `difference`.
        question: Its positions.
        strict: See `layouts`.
    """
    found = [layout.any(-1).cpu() for layout in layouts(moved, question, strict=strict)]
    return found or None


def touched(moved: Tensor, question: Question, *, strict: bool = False) -> bool | None:
    """Whether watched positions moved, in whatever way they lie; None: there are none.

    A tensor in which only what was changed moves, read in one way, is taken for clean.

    Example:
        >>> from rightbatch.coupling.perturbation import one_row
        >>> touched(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]), one_row(1, 3))
        False
    """
    found = moved_positions(moved, question, strict=strict)
    if found is None:
        return None
    return all(bool((positions & question.watched).any()) for positions in found)


def shares(moved: Tensor, question: Question) -> tuple[float, float]:
    """Sums of squared movements: of what is watched, and of what was changed."""
    for layout in layouts(moved, question):
        squares = layout.square().sum(-1).cpu()
        watched, changed = squares[question.watched], squares[question.changed]
        return float(watched.sum()), float(changed.sum())
    return 0.0, 0.0


def _numbers(tensor: Tensor) -> Tensor:
    wide = torch.complex128 if tensor.is_complex() else torch.float64
    numbers = tensor.detach().to(wide)
    return torch.view_as_real(numbers) if tensor.is_complex() else numbers
