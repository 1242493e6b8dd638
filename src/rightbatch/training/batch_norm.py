"""Running statistics under accumulation: as one whole batch would make them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from rightbatch.core.torch_private import RunningNorm


def running_norms(model: nn.Module) -> list[Any]:
    """The layers that keep running statistics by a momentum."""
    return [
        module
        for module in model.modules()
        if isinstance(module, RunningNorm) and module.track_running_stats
    ]


@contextmanager
def corrected(layers: Sequence[Any], share: float) -> Iterator[None]:
    """Around the forward pass of a piece that is this share of the batch.

    A momentum m becomes ``1 - (1 - m) ** share``, so that all pieces together move the
    statistics as far as one update would: k pieces with the full momentum move them up
    to k times as far (pytorch issue 46516). [derived]
    """
    usual = [layer.momentum for layer in layers]
    for layer in layers:
        if layer.momentum is not None and layer.training:
            layer.momentum = 1 - (1 - layer.momentum) ** share
    try:
        yield
    finally:
        for layer, momentum in zip(layers, usual, strict=True):
            layer.momentum = momentum
