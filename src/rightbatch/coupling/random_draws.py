"""Which random numbers a piece of code draws."""

from __future__ import annotations

from typing import Any

import torch

from rightbatch.core.torch_private import LightDispatchMode
from rightbatch.core.trees import tensors


class RandomDraws(LightDispatchMode):
    """Keeps which random numbers torch draws inside, and of which shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.shapes += [(str(func), tuple(x.shape)) for x in tensors(result)]
        return result
