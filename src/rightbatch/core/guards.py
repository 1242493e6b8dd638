"""Doing things to a model, and to random numbers, without leaving a trace."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Restore Python's, numpy's and torch's random states (every device) on leaving."""
    python, legacy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)


def set_buffers(model: nn.Module, saved: Mapping[str, torch.Tensor]) -> None:
    """Put a model's buffers back, those too that have taken another shape since.

    Args:
        model: Its buffers of these names are set.
        saved: By name; left as they are.
    """
    with torch.no_grad():
        for name, buffer in list(model.named_buffers()):
            before = saved.get(name, buffer)
            if before.shape == buffer.shape:
                buffer.copy_(before)
            else:  # such as a table of positions that has grown
                place, _, leaf = name.rpartition(".")
                owner = model.get_submodule(place)
                setattr(owner, leaf, before.to(buffer.device).clone())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; every submodule's own mode is restored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def untouched(model: nn.Module, parameters: Sequence[Tensor]) -> Iterator[None]:
    """Gradients, buffers and modes are as before on leaving."""
    gradients = [p.grad for p in parameters]
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    modes = [(m, m.training) for m in model.modules()]
    try:
        yield
    finally:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        set_buffers(model, buffers)
        for module, mode in modes:
            module.training = mode
