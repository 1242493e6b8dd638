"""Where the examples of a batch lie in a tensor, and how they are cut into groups."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Axis = Literal["first", "second", "interleaved"]


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

    def split(self, tensor: Tensor) -> Tensor:
        """View as ``(batch, entries, *rest)``, an example's entries side by side."""
        if self.axis == "second":
            found = tensor.transpose(0, 1)
        elif self.axis == "interleaved":
            found = tensor.unflatten(0, (-1, self.batch)).transpose(0, 1)
        else:
            found = tensor.reshape(self.batch, -1, *tensor.shape[1:])
        return found if self.order is None else found[self.order]

    @property
    def index(self) -> int:
        """Which of the tensor's axes has the examples."""
        return int(self.axis == "second")


def layouts(
    tensor: Tensor,
    batch: int,
    *,
    inside: bool = False,
    features: bool = True,
    order: Tensor | None = None,
) -> tuple[Layout, ...]:
    """The layouts a tensor may have, the likeliest first; empty if none fits.

    Args:
        tensor: Input or output of an operation.
        batch: Examples in the batch.
        inside: Whether it is inside an operation that has the length first.
        features: Whether the last axis has features, not examples.
        order: In which order to take the examples.
    """
    found: list[Axis] = []
    shape = tensor.shape
    whole = tensor.dim() > 0 and shape[0] % batch == 0 and shape[0] > 0
    if whole and not inside:
        found.append("first")
    if tensor.dim() > 1 + features and shape[1] == batch:
        found.append("second")
    if whole and shape[0] > batch:
        found.append("interleaved")
    return tuple(Layout(batch, axis, order) for axis in found)


@dataclass(frozen=True, slots=True)
class Groups:
    """A batch cut into groups of neighbouring examples.

    Attributes:
        bounds: Where each group begins, and the batch ends: ``(0, 4, 8)``.

    Example:
        >>> Groups.of(batch=10, count=4).sizes
        (3, 3, 2, 2)
    """

    bounds: tuple[int, ...]

    @classmethod
    @functools.cache
    def of(cls, batch: int, count: int) -> Groups:
        """Cut into ``count`` groups whose sizes differ by at most one."""
        count = min(count, batch)
        small, larger = divmod(batch, count)
        bounds = [0]
        for j in range(count):
            bounds.append(bounds[-1] + small + (j < larger))
        return cls(tuple(bounds))

    @property
    def count(self) -> int:
        """How many groups."""
        return len(self.bounds) - 1

    @property
    def batch(self) -> int:
        """Examples in all."""
        return self.bounds[-1]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Examples in each group."""
        return tuple(b - a for a, b in self.slices)

    @property
    def slices(self) -> tuple[tuple[int, int], ...]:
        """First and last-but-one example of each group."""
        return tuple(zip(self.bounds, self.bounds[1:], strict=False))

    @property
    def concentration(self) -> float:
        """Sum of the squared shares of the groups; 1 / count if they are equal."""
        return sum((m / self.batch) ** 2 for m in self.sizes)

    def strided(self, device: torch.device) -> Tensor:
        """The order in which neighbours come into different groups, (batch,)."""
        every = torch.arange(self.batch, device=device)
        return torch.cat([every[j :: self.count] for j in range(self.count)])

    @property
    def equal(self) -> int:
        """The common size, or 0 where sizes differ."""
        size, rest = divmod(self.batch, self.count)
        return 0 if rest else size

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum ``(batch, ...)`` over the examples of each group: ``(groups, ...)``."""
        if self.count == self.batch:
            return tensor
        if self.equal:
            return tensor.unflatten(0, (self.count, self.equal)).sum(1)
        return torch.stack([tensor[a:b].sum(0) for a, b in self.slices])
