"""Which layers normalise by statistics of the batch, and over how many values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode

from rightbatch.core.torch_private import BatchNorm
from rightbatch.coupling.ghost_norm import GhostBatchNorm

TRAINING = 5  # place of ``training`` among the arguments of both functions


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStatistic:
    """One call that normalised by mean and variance of what it was given.

    Attributes:
        layer: Name of the innermost module around the call; empty: the model itself.
        kind: Its class.
        rows: Length of the first axis, which holds the examples.
        values: Numbers behind the mean of one channel: rows times positions.
        shared: Whether the class is one that makes its statistics over all ranks.
    """

    layer: str
    kind: str
    rows: int
    values: int
    shared: bool

    def __str__(self) -> str:
        return f"{self.layer} ({self.kind})" if self.layer else self.kind


@contextmanager
def watched_statistics(model: nn.Module) -> Iterator[list[BatchStatistic]]:
    """Every call of ``batch_norm`` in training mode that is made inside.

    By layers or by functions; normalisations written by hand are not seen.

    Args:
        model: Its modules give the names.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        >>> with watched_statistics(model) as seen:
        ...     _ = model(torch.randn(8, 3))
        >>> str(seen[0]), seen[0].values
        ('1 (BatchNorm1d)', 8)
    """
    names = {id(module): name for name, module in model.named_modules()}
    running: list[nn.Module] = []
    watch = _Watch(names, running)
    hooks = [
        register_module_forward_pre_hook(lambda module, _: running.append(module)),
        register_module_forward_hook(_leave(running), always_call=True),
    ]
    try:
        with watch:
            yield watch.seen
    finally:
        for hook in hooks:
            hook.remove()


def _leave(running: list[nn.Module]) -> Callable[..., None]:
    return lambda *call: (running.pop(), None)[1]


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """With every BatchNorm that keeps running statistics using them.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(3))
        >>> with frozen(model):
        ...     model[0].training
        False
    """
    norms = [m for m in model.modules() if isinstance(m, BatchNorm) and m.training]
    norms = [norm for norm in norms if norm.running_mean is not None]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()


class _Watch(TorchFunctionMode):
    """Sees both functions that end in torch's kernels."""

    def __init__(self, names: dict[int, str], running: list[nn.Module]) -> None:
        super().__init__()
        self.names, self.running = names, running
        self.seen: list[BatchStatistic] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in (F.batch_norm, torch.batch_norm):
            x = args[0] if args else given["input"]
            training = args[TRAINING] if len(args) > TRAINING else given.get("training")
            if training and x.numel():
                self._note(x, self.running[-1] if self.running else None)
        return func(*args, **given)

    def _note(self, x: Tensor, module: nn.Module | None) -> None:
        kind = "batch_norm" if module is None else type(module).__name__
        # Its groups are channels of one row, where they are made at once.
        ghost = isinstance(module, GhostBatchNorm)
        self.seen.append(
            BatchStatistic(
                layer=self.names.get(id(module), ""),
                kind=kind,
                rows=module.group if ghost else x.shape[0],
                values=x.numel() // x.shape[1],
                shared="sync" in kind.lower(),
            )
        )
