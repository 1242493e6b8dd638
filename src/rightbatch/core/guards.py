"""Doing things to a model, and to random numbers, without leaving a trace."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rightbatch.core.torch_private import copy_all

# What a module holds for torch itself, such as hooks, is not for a pass to change.
_OF_TORCH = frozenset(vars(nn.Module()))
_NUMBERS = {bool, int, float, str}  # an attribute that is one stays one
_NO_INSIDE = {*_NUMBERS, tuple, type(None)}


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
    """All that a pass may change in a model, as it was when this was last taken.

    Buffers, whether they are changed in place or assigned anew; modes; and every other
    attribute of a module: counters, caches, queues, generators. Parameters and
    gradients are not among it.

    Args:
        model: Whose modules are looked at.
        also: Tensors whose numbers are kept as well.
    """

    def __init__(self, model: nn.Module, also: Iterable[Tensor] = ()) -> None:
        self._model, self._also = model, list(also)
        self._numbers = _Numbers()
        self._look()
        self.take()

    def take(self) -> None:
        """Remember all anew; soon done where there are the same modules and names."""
        if self._fixed != self._fixed_before or self._sizes != self._lengths():
            self._look()
        self._before = [names.copy() for names in self._names]
        held = [names.get(name) for names, name in self._attributes]
        held += [buffer for names in self._buffers for buffer in names.values()]
        held += self._scripted + self._also
        once = {id(v): v for v in held if type(v) not in _NO_INSIDE}.values()
        others = [value for value in once if not isinstance(value, Tensor)]
        self._undo = [undo for v in others if (undo := _undo(v)) is not None]
        self._numbers.take([value for value in once if isinstance(value, Tensor)])

    def restore(self) -> None:
        """Put everything back."""
        everything = self._names + self._fixed, self._before + self._fixed_before
        for names, before in zip(*everything, strict=True):
            names.clear()
            names.update(before)
        for undo in self._undo:
            undo()
        self._numbers.restore()

    def _look(self) -> None:
        """What has names, and which of them may hold more than a plain number."""
        modules = list(self._model.modules())
        scripts = [m for m in modules if isinstance(m, torch.jit.ScriptModule)]
        self._scripted = [b for m in scripts for b in m.buffers(recurse=False)]
        own = [vars(module) for module in modules]
        buffers, parameters, children = (
            [names for now in own if isinstance(names := now.get(place), dict)]
            for place in ("_buffers", "_parameters", "_modules")
        )  # a ScriptModule's are no dicts
        tensors = buffers + parameters
        self._names = own + [names for names in tensors if names]
        self._sizes, self._buffers = self._lengths(), buffers
        # Copied once, as between two steps these hardly ever change.
        self._fixed = children + [names for names in tensors if not names]
        self._fixed_before = [names.copy() for names in self._fixed]
        self._attributes = [
            (now, name)
            for now in own
            for name in now.keys() - _OF_TORCH
            if type(now[name]) not in _NUMBERS
        ]

    def _lengths(self) -> list[int]:
        return [len(names) for names in self._names]


class _Numbers:
    """What tensors hold, kept in the same memory from one time to the next."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.written: list[Tensor] = []
        self.copies: list[Tensor] = []
        self.alike: list[tuple[list[Tensor], list[Tensor]]] = []

    def take(self, tensors: list[Tensor]) -> None:
        """Keep those that a pass can write to."""
        same = len(tensors) == len(self.tensors) and all(
            map(is_, tensors, self.tensors)
        )
        if same and [t.shape for t in self.written] == [c.shape for c in self.copies]:
            for copies, written in self.alike:
                copy_all(copies, written)
            return
        self.tensors = tensors
        self.written = [tensor for tensor in tensors if _is_written(tensor)]
        self.copies = [tensor.detach().clone() for tensor in self.written]
        alike: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
        for copy, tensor in zip(self.copies, self.written, strict=True):
            key = (type(tensor), tensor.device, tensor.dtype, tensor.layout)
            copies, written = alike.setdefault(key, ([], []))
            copies.append(copy)
            written.append(tensor)
        self.alike = list(alike.values())

    def restore(self) -> None:
        """Put them back."""
        for tensor, numbers in zip(self.written, self.copies, strict=True):
            if tensor.shape == numbers.shape and tensor.dtype == numbers.dtype:
                tensor.detach().copy_(numbers)
            else:  # its ``.data`` was set
                tensor.data = numbers.clone()


def _is_written(tensor: Tensor) -> bool:
    """Whether a pass can write to it: no activation, no view of repeated numbers.

    Nested ones are replaced, not written to.
    """
    if tensor.grad_fn is not None or tensor.is_nested:
        return False
    return tensor.layout != torch.strided or all(
        size <= 1 or stride
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )


def _undo(value: Any) -> Callable[[], None] | None:
    """What gives a thing back what it holds now; None: it holds nothing we know of."""
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
