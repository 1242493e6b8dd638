"""Where the examples of a batch lie in a tensor, and how they are cut into groups."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Axis = Literal["first", "second", "interleaved"]
AXES: tuple[Axis, ...] = ("first", "second", "interleaved")
ALL = slice(None)


@dataclass(frozen=True, slots=True)
class Layout:
    """How the examples of a batch lie in a tensor.

    Attributes:
        batch: Examples in the batch.
        axis: ``"first"`` where every example is a run of neighbouring entries of the
            first axis: ``(batch, ...)``, or ``(batch * length, ...)``; ``"second"``
            for ``(length, batch, ...)``, as recurrent layers and attention have it
            inside; ``"interleaved"`` for that with both axes made one.
        order: In which order to take the examples, shape (batch,); None: as they are.
    """

    batch: int
    axis: Axis
    order: Tensor | None = None

    def split(self, tensor: Tensor, examples: slice = ALL) -> Tensor:
        """Those examples as ``(examples, entries, *rest)``, entries side by side."""
        if self.axis == "second":
            split = tensor.transpose(0, 1)
        elif self.axis == "interleaved":
            split = tensor.unflatten(0, (-1, self.batch)).transpose(0, 1)
        else:
            split = tensor.reshape(self.batch, -1, *tensor.shape[1:])
        if self.order is not None:
            return split[self.order[examples]]
        return split if examples is ALL else split[examples]

    @property
    def batch_axis(self) -> int:
        """Which of the tensor's axes has the examples."""
        return int(self.axis == "second")


def possible_axes(
    tensor: Tensor, batch: int, *, features: bool = True
) -> tuple[Axis, ...]:
    """Where a tensor's shape leaves room for the examples; which it is, it cannot say.

    Args:
        tensor: Input or output of an operation.
        batch: Examples in the batch.
        features: Whether the last axis has features, not examples.
    """
    axes: list[Axis] = []
    shape, free = tensor.shape, tensor.dim() - features
    divisible = free > 0 and shape[0] % batch == 0 and shape[0] > 0
    if divisible:
        axes.append("first")
    if free > 1 and shape[1] == batch:
        axes.append("second")
    if divisible and shape[0] > batch:
        axes.append("interleaved")
    return tuple(axes)


@functools.cache
def _slices(batch: int, count: int) -> tuple[tuple[int, int], ...]:
    small, larger = divmod(batch, count)
    bounds = (j * small + min(j, larger) for j in range(count + 1))
    return tuple(itertools.pairwise(bounds))


@functools.cache
def _sizes(batch: int, count: int) -> tuple[int, ...]:
    return tuple(b - a for a, b in _slices(batch, count))


@dataclass(frozen=True, slots=True)
class Groups:
    """A batch cut into groups of neighbours, whose sizes differ by at most one.

    Attributes:
        batch: Examples in all.
        count: How many groups; at most ``batch``.

    Example:
        >>> Groups.of(batch=10, count=4).sizes
        (3, 3, 2, 2)
    """

    batch: int
    count: int

    @classmethod
    @functools.cache
    def of(cls, batch: int, count: int) -> Groups:
        """So many groups, or as many as there are examples."""
        return cls(batch, min(count, batch))

    @property
    def slices(self) -> tuple[tuple[int, int], ...]:
        """Each group's first example, and the one after its last."""
        return _slices(self.batch, self.count)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Examples in each group."""
        return _sizes(self.batch, self.count)

    @property
    def equal_size(self) -> int:
        """The common size of all groups, or 0 where sizes differ."""
        size, rest = divmod(self.batch, self.count)
        return 0 if rest else size

    def strided_order(self, device: torch.device) -> Tensor:
        """The order in which neighbours come into different groups, (batch,)."""
        every = torch.arange(self.batch, device=device)
        return torch.cat([every[j :: self.count] for j in range(self.count)])

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum ``(batch, ...)`` over the examples of each group: ``(groups, ...)``."""
        if self.count == self.batch:
            return tensor
        if self.equal_size:
            return tensor.unflatten(0, (self.count, self.equal_size)).sum(1)
        return torch.stack([tensor[a:b].sum(0) for a, b in self.slices])
