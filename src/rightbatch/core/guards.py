"""Doing things to a model, and to random numbers, without leaving a trace."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# What a module holds for torch itself, such as hooks, is not for a pass to change.
_OF_TORCH = frozenset(vars(nn.Module()))
_CONTENTS = ("_buffers", "_parameters", "_modules")
_NO_INSIDE = {bool, int, float, str, tuple, type(None)}


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
    """Give a model the buffers of a checkpoint, also where their shapes differ.

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


class ModelState:
    """All that a pass may change in a model, as it was when this was made.

    Buffers, whether they are changed in place or assigned anew; modes; and every other
    attribute of a module: counters, caches, queues, generators. Parameters and
    gradients are not among it.

    Args:
        model: Whose modules are looked at.
        also: Tensors whose numbers are kept as well.
    """

    def __init__(self, model: nn.Module, also: Iterable[Tensor] = ()) -> None:
        self._names: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._undo: dict[int, Callable[[], None]] = {}  # by what it is of: once each
        for module in model.modules():
            now = vars(module)
            for names in (now, *(now.get(place) for place in _CONTENTS)):
                if isinstance(names, dict):  # a ScriptModule's are not
                    self._names.append((names, names.copy()))
            for name in now.keys() - _OF_TORCH:
                self._keep(now[name])
            if isinstance(module, torch.jit.ScriptModule):
                buffers = module.buffers(recurse=False)
            else:
                buffers = now["_buffers"].values()
            for buffer in buffers:
                self._keep(buffer)
        for tensor in also:
            self._keep(tensor)

    def restore(self) -> None:
        """Put everything back."""
        for now, before in self._names:
            now.clear()
            now.update(before)
        with torch.no_grad():
            for undo in self._undo.values():
                undo()

    def _keep(self, value: Any) -> None:
        if type(value) in _NO_INSIDE or id(value) in self._undo:
            return
        if (undo := _undo(value)) is not None:
            self._undo[id(value)] = undo


def _undo(value: Any) -> Callable[[], None] | None:
    """What gives a thing back what it holds now; None: it holds nothing we know of."""
    if isinstance(value, Tensor):
        return _undo_tensor(value)
    if isinstance(value, (dict, set)):
        inside: Any = value.copy()
        return lambda: (value.clear(), value.update(inside))[0]
    if isinstance(value, (list, deque)):
        entries = list(value)
        return lambda: (value.clear(), value.extend(entries))[0]
    if isinstance(value, np.ndarray) and value.flags.writeable:
        numbers = value.copy()
        return lambda: np.copyto(value, numbers)
    if isinstance(value, torch.Generator):
        drawn = value.get_state()
        return lambda: (value.set_state(drawn), None)[1]
    if isinstance(value, np.random.Generator):
        bits, at = value.bit_generator, value.bit_generator.state
        return lambda: setattr(bits, "state", at)
    if isinstance(value, random.Random):
        position = value.getstate()
        return lambda: value.setstate(position)
    return None


def _undo_tensor(tensor: Tensor) -> Callable[[], None] | None:
    """For one that a pass can write to: no activation, no view of repeated numbers.

    Nested ones are replaced, not written to.
    """
    if tensor.grad_fn is not None or tensor.is_nested:
        return None
    if tensor.layout == torch.strided and any(
        size > 1 and not stride
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    ):
        return None
    numbers = tensor.detach().clone()

    def undo() -> None:
        if tensor.shape == numbers.shape and tensor.dtype == numbers.dtype:
            tensor.detach().copy_(numbers)
        else:  # its ``.data`` was set
            tensor.data = numbers.clone()

    return undo


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
def untouched(
    model: nn.Module, parameters: Sequence[Tensor], also: Iterable[Tensor] = ()
) -> Iterator[ModelState]:
    """Gradients, buffers, modes and all other state are as before on leaving.

    Args:
        model: Its gradients are set to None on entering.
        parameters: More tensors with gradients.
        also: Tensors whose numbers are put back as well.
    """
    trained = {id(p): p for p in (*model.parameters(), *parameters)}.values()
    gradients = [p.grad for p in trained]
    state = ModelState(model, also)
    for parameter in trained:
        parameter.grad = None
    try:
        yield state
    finally:
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient
        state.restore()
