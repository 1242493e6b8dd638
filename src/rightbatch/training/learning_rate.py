"""A learning rate that is another during one update, and afterwards what it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rightbatch.core.errors import JobError


@contextmanager
def rate_multiplied(optimizer: torch.optim.Optimizer, factor: float) -> Iterator[None]:
    """Inside, every learning rate is so many times itself; afterwards it is as before.

    So what an optimizer holds between two steps is always the rate without a schedule:
    it can be scaled, saved and put back with no thought of one.

    Raises:
        JobError: The optimizer has changed its learning rate by itself.
    """
    groups = [g for g in optimizer.param_groups if g.get("lr") is not None]
    before = [group["lr"] for group in groups]
    inside = before if factor == 1 else [lr * factor for lr in before]
    for group, lr in zip(groups, inside, strict=True):
        group["lr"] = lr
    try:
        yield
        for group, lr in zip(groups, inside, strict=False):
            # A tensor may lie on a device, whose queue must not be waited for.
            if isinstance(lr, float) and group["lr"] != lr:
                raise JobError(
                    "the optimizer changes its learning rate by itself",
                    seen=f"{lr:.4g} before an update, {group['lr']:.4g} after it",
                    why="its schedule counts steps, which mean other numbers of "
                    "examples at another batch",
                    fix="Job(rate=lambda optimizer: CosineAnnealingLR(optimizer, ...), "
                    "epochs=9), and the optimizer at its plain rate",
                )
    finally:
        for group, lr in zip(groups, before, strict=False):
            group["lr"] = lr
