"""What a model is called with: how many examples, and where they lie."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rightbatch.core.torch_private import storage_id, tree_iter
from rightbatch.core.trees import tensors
from rightbatch.noise.capture.layout import Axis


@dataclass(frozen=True, slots=True, eq=False)
class ModelInputs:
    """The inputs of one forward pass.

    Attributes:
        first: The first tensor among them that has the batch's axis.
        axis: Which one that is.
        shapes: Of all tensors.
        manner: What else is given: names, flags, kinds; not numbers.
    """

    first: Tensor
    axis: int
    shapes: tuple[torch.Size, ...]
    manner: Hashable

    @classmethod
    def of(cls, args: Any, kwargs: Any, axis: int) -> ModelInputs | None:
        """None if no tensor has such an axis."""
        every = tensors((args, kwargs))
        first = next((t for t in every if t.dim() > max(axis, -axis - 1)), None)
        if first is None:
            return None
        flags = tuple(v for v in tree_iter((args, kwargs)) if isinstance(v, str | bool))
        manner = len(args), tuple(kwargs), flags, tuple(t.dtype for t in every)
        return cls(first, axis % first.dim(), tuple(t.shape for t in every), manner)

    @property
    def batch(self) -> int:
        """Examples."""
        return int(self.first.shape[self.axis])

    def examples_axis(self, tensor: Tensor) -> Axis | None:
        """Where a view of the first input has the examples; None if that is unsure."""
        if storage_id(tensor) != storage_id(self.first):
            return None
        batch, stride = self.batch, self.first.stride(self.axis)
        axes = list(zip(tensor.shape, tensor.stride(), strict=True))
        places = [i for i, axis in enumerate(axes) if axis == (batch, stride)]
        if places in ([0], [1]):
            return "second" if places[0] else "first"
        if not axes or axes[0][0] % batch or axes[0][0] == batch:
            return None
        entries = axes[0][0] // batch
        if axes[0][1] * entries == stride:
            return "first"
        return "interleaved" if axes[0][1] == stride else None

    @torch.no_grad()
    def fingerprint(self) -> Tensor:
        """Two numbers that other examples do not share."""
        numbers = self.first.detach().reshape(-1).double()
        places = torch.arange(len(numbers), device=numbers.device) % 9973
        return torch.stack([numbers.sum(), (numbers * places).sum()])
