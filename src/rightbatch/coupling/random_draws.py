"""Which random numbers a piece of code draws, and whether it moves rows about."""

from __future__ import annotations

from typing import Any

import torch

from rightbatch.core.torch_private import TorchDispatchMode
from rightbatch.core.trees import tensors

# Where these are called, rows may be taken in another order, as the data have it.
_ORDERING = {"sort", "argsort", "topk"}


class RandomDraws(TorchDispatchMode):
    """Keeps which random numbers torch draws inside, and of which shapes.

    Attributes:
        shapes: Of what is drawn, with the name of the operation.
        every: Of the results of all operations.
        reorders: Whether an order, or a shape, depends on the data.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[str, tuple[int, ...]]] = []
        self.every: list[tuple[str, tuple[int, ...]]] = []
        self.reorders = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [(str(func), tuple(x.shape)) for x in tensors(result) if not x.is_nested]
        self.every += made
        self.reorders |= (
            torch.Tag.dynamic_output_shape in func.tags
            or func.overloadpacket.__name__ in _ORDERING
        )
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.shapes += made
        return result
