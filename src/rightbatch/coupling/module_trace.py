"""What every module is given and returns in a pass, and where a leak begins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from rightbatch.core.torch_private import remove_global_hook
from rightbatch.core.trees import tensors
from rightbatch.coupling.movement import difference, touched
from rightbatch.coupling.perturbation import Question


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One call of a module.

    Attributes:
        module: What was called.
        inputs: Copies of the tensors it was given.
        outputs: Copies of those it returned.
    """

    module: nn.Module
    inputs: list[Tensor]
    outputs: list[Tensor]


@dataclass(frozen=True, slots=True)
class Source:
    """The first call that spreads a change.

    Attributes:
        module: What was called.
        call: Its place among the calls.
        output: The place of the tensor among its outputs.
    """

    module: nn.Module
    call: int
    output: int


@contextmanager
def traced(*, outermost: bool = False) -> Iterator[list[Call]]:
    """The calls of all modules inside, in the order in which they end.

    By torch's hooks for all modules: the modules themselves get none, as those of
    their own would switch off the fast path of a transformer layer.

    Args:
        outermost: Only calls that are made by no other module.
    """
    calls: list[Call] = []
    running: list[tuple[nn.Module, list[Tensor]]] = []

    def before(module: nn.Module, args: Any) -> None:
        running.append((module, [] if outermost else copies(args)))

    def after(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        while running[-1][0] is not module:  # a call that ended in an error
            running.pop()
        given = running.pop()[1]
        if not (outermost and running):
            given += [] if outermost else copies(kwargs)
            calls.append(Call(module, given, copies(result)))

    hooks = [
        register_module_forward_pre_hook(before),
        register_module_forward_hook(after, with_kwargs=True),
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            remove_global_hook(hook)


def first_source(
    before: Sequence[Call],
    after: Sequence[Call],
    again: Sequence[Call] | None,
    question: Question,
) -> Source | None:
    """The first module whose inputs stayed where they had to and whose outputs moved.

    A leak made between modules is that of the module around it.

    Args:
        before: The calls of a pass on the batch as it is.
        after: Those of a pass on the changed one.
        again: Those of the batch as it is, once more; None: the same to the bit.
        question: What was changed, and what is watched.

    Returns:
        None where nothing of the kind is seen.
    """
    for number, (old, new) in enumerate(zip(before, after, strict=False)):
        if old.module is not new.module:
            return None
        repeat = old if again is None else again[number]
        given = _moved(old.inputs, new.inputs, repeat.inputs)
        if given is None or any(_spread(moved, question) for moved in given):
            continue
        made = _moved(old.outputs, new.outputs, repeat.outputs)
        for place, moved in enumerate(made or ()):
            if touched(moved, question):
                return Source(old.module, number, place)
    return None


def _spread(moved: Tensor, question: Question) -> bool:
    """Whether an input brings a change along; without examples, any change."""
    answer = touched(moved, question)
    return bool(moved.any()) if answer is None else answer


def _moved(
    before: list[Tensor],
    after: list[Tensor],
    again: list[Tensor],
) -> list[Tensor] | None:
    """The differences of tensors; None where they have no counterparts."""
    if [t.shape for t in before] != [t.shape for t in after]:
        return None
    return [difference(a, b, c) for a, b, c in zip(before, after, again, strict=True)]


def copies(values: Any) -> list[Tensor]:
    """Of all plain tensors, as they may be written to later."""
    return [
        t.detach().clone()
        for t in tensors(values)
        if t.layout == torch.strided and not t.is_nested
    ]
