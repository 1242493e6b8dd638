"""Whether numbers moved where they had to stay."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from rightbatch.coupling.perturbation import Question

# Rows that reach a kernel in other places (tokens of experts, unpadding), or beside
# another largest number (a softmax made safe by it), come out with other roundings: so
# many of their own size and of a small number's, the tenth smallest of a hundred; at
# most a quarter, in low precision. [assumed; measured: 4, an MLP in float32]
ROUNDINGS, MOST, SMALL = 256, 0.25, 0.1
SPREAD = 4.0  # times what two equal passes differ by, where they do (GPU) [assumed]


def difference(before: Tensor, after: Tensor, again: Tensor | None = None) -> Tensor:
    """How far each number moved, in float64; 0 where that may be rounding or chance.

    Args:
        before: Of the batch as it is.
        after: Of the changed one; of the same shape.
        again: Of the batch as it is, once more; None: the same to the bit.

    Example:
        >>> difference(torch.tensor([1.0, 2.0]), torch.tensor([1.0 + 1e-6, 2.5]))
        tensor([0.0000, 0.5000], dtype=torch.float64)
    """
    a, b = _numbers(before), _numbers(after)
    moved = (b - a).abs()
    moved[a.isnan() & b.isnan() | (a == b)] = 0.0  # infinities too
    moved[moved.isnan()] = torch.inf  # one of the two is not a number
    if not moved.any():
        return moved
    floor = torch.zeros_like(moved)
    if before.is_floating_point() or before.is_complex():
        share = min(MOST, ROUNDINGS * torch.finfo(before.dtype).eps)
        sizes = a.abs()
        usual = sizes[a.isfinite() & (a != 0)]
        if usual.numel():
            floor += float(usual.kthvalue(1 + int(SMALL * (len(usual) - 1))).values)
        floor = share * (floor + sizes.nan_to_num(0.0, 0.0, 0.0))
    if again is not None:
        floor += SPREAD * float((_numbers(again) - a).abs().nan_to_num(0.0).max())
    return torch.where(moved > floor, moved, 0.0)


def layouts(tensor: Tensor, question: Question) -> list[Tensor]:
    """The tensor with the question's positions as leading axes, rest flattened.

    In every way in which the sizes allow it: examples may be on any axis, or folded
    together with others into the first. Where there are no ``T`` steps ``T - 1`` do,
    with one added that stays: a loss may cut the last input off, as a target.
    """
    shape = tuple(question.changed.shape)
    found = list(_layouts(tensor, shape))
    if found or question.across != "time":
        return found
    return [pad(x, (0, 0, 0, 1)) for x in _layouts(tensor, (shape[0] - 1,))]


def _layouts(tensor: Tensor, shape: tuple[int, ...]) -> Iterator[Tensor]:
    depth = len(shape)
    if not tensor.numel():
        return
    for axes in itertools.permutations(range(tensor.dim()), depth):
        if tuple(tensor.shape[a] for a in axes) == shape:
            front = tensor.movedim(axes, tuple(range(depth)))
            yield front.reshape(*shape, -1)
    rows, size = (tensor.shape[0] if tensor.dim() else 0), math.prod(shape)
    if rows and rows % size == 0 and (depth, rows) != (1, size):
        yield tensor.reshape(*shape, -1)
        backwards = tensor.reshape(rows // size, *reversed(shape), -1)
        yield backwards.movedim(
            tuple(range(1, depth + 1)), tuple(reversed(range(depth)))
        ).reshape(*shape, -1)


def moved_positions(moved: Tensor, question: Question) -> list[Tensor]:
    """Which positions of a `difference` moved, in every layout."""
    return [layout.any(-1).cpu() for layout in layouts(moved, question)]


def touched(moved: Tensor, question: Question) -> bool | None:
    """Whether watched positions moved, in whatever way they lie; None: there are none.

    A tensor in which only what was changed moves, read in one way, is taken for clean.

    Example:
        >>> from rightbatch.coupling.perturbation import one_row
        >>> touched(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]), one_row(1, 3))
        False
    """
    found = moved_positions(moved, question)
    if not found:
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
