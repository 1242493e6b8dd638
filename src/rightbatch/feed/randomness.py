"""The random numbers that reading an example may draw, and where they come from."""

from __future__ import annotations

import functools
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch

from rightbatch.isolation import preserved_rng

MOST_LOOKED_AT = 10_000  # objects of a data set among which generators are looked for
MOST_ITEMS = 256  # of a list or dict: transforms are few, records are many [assumed]
WORD = 2**64 - 1
ODD = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: seeds of several lie far apart


@dataclass(frozen=True, slots=True, eq=False)
class Generator:
    """One generator: how its state is read and put back, and how it is seeded."""

    get: Callable[[], Any]
    put: Callable[[Any], object]
    seed: Callable[[int], object]  # with 64 bits

    @classmethod
    def of(cls, found: Any) -> Generator | None:
        """``found`` as one, or None if it is none."""
        if isinstance(found, torch.Generator):
            return cls(
                get=found.get_state,
                put=found.set_state,
                seed=lambda seed: found.manual_seed(seed >> 1),
            )
        if isinstance(found, random.SystemRandom):
            return None  # has no state
        if isinstance(found, random.Random):
            return cls(found.getstate, found.setstate, found.seed)
        if isinstance(found, np.random.RandomState):
            return cls(
                get=lambda: found.get_state(legacy=False),
                put=found.set_state,
                seed=lambda seed: found.seed(seed & 0xFFFFFFFF),
            )
        if isinstance(found, np.random.Generator):
            bits = found.bit_generator

            def put(state: Any) -> None:
                bits.state = state

            return cls(
                get=lambda: bits.state,
                put=put,
                seed=lambda seed: put(type(bits)(seed).state),
            )
        return None


PROCESS = (
    Generator(
        get=torch.default_generator.get_state,
        put=torch.default_generator.set_state,
        seed=lambda seed: torch.default_generator.manual_seed(seed >> 1),
    ),
    Generator(
        get=lambda: np.random.get_state(legacy=False),
        put=np.random.set_state,
        seed=lambda seed: np.random.seed(seed & 0xFFFFFFFF),
    ),
    Generator(random.getstate, random.setstate, random.seed),
)


class Randomness:
    """The generators of this process, and those that a data set keeps for itself.

    Args:
        data: The data set.
    """

    def __init__(self, data: Any) -> None:
        self.data, self.own = data, list[Generator]()

    def look(self) -> None:
        """Find the data set's own.

        Looked for are generators of torch (on the CPU), numpy and Python in the
        attributes of the data set, of its transforms and so on, and among what their
        functions name. Not found is one that is made anew for every example.
        """
        found = map(Generator.of, _reached(self.data))
        self.own = [generator for generator in found if generator is not None]

    def seed(self, seed: int) -> None:
        """Begin anew from ``seed``, all of them."""
        for generator in PROCESS:
            generator.seed(seed)
        for number, generator in enumerate(self.own, 1):
            generator.seed((seed + number * ODD) & WORD)

    def state(self) -> list[Any]:
        """Compares as equal as long as nothing has been drawn."""
        return [_comparable(g.get()) for g in (*PROCESS, *self.own)]

    @contextmanager
    def preserved(self) -> Iterator[None]:
        """Leave all of them as they were."""
        before = [(generator, generator.get()) for generator in self.own]
        try:
            with preserved_rng():
                yield
        finally:
            for generator, state in before:
                generator.put(state)


def _comparable(state: Any) -> Any:
    if isinstance(state, torch.Tensor):
        return state.numpy().tobytes()
    if isinstance(state, np.ndarray):
        return state.tobytes()
    if isinstance(state, dict):
        return [_comparable(value) for value in state.values()]
    return state


def _reached(data: Any) -> Iterator[Any]:
    """``data`` and what it holds, and what that holds, nearest first."""
    seen: set[int] = set()
    queue = deque([data])
    while queue and len(seen) < MOST_LOOKED_AT:
        one = queue.popleft()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        queue.extend(_held(one))


def _held(one: Any) -> Iterator[Any]:
    if isinstance(one, (str, bytes, int, float, type, ModuleType, torch.Tensor)):
        return
    if isinstance(one, (list, tuple, set, frozenset)):
        if len(one) <= MOST_ITEMS:
            yield from one
        return
    if isinstance(one, dict):
        if len(one) <= MOST_ITEMS:
            yield from one.values()
        return
    if isinstance(one, functools.partial):
        yield from (one.func, one.args, one.keywords)
    elif isinstance(one, MethodType):
        yield from (one.__self__, one.__func__)
    elif isinstance(one, FunctionType):
        yield from _named(one)
    else:
        for name in ("__getitem__", "__getitems__", "__call__", "forward"):
            method = getattr(type(one), name, None)
            if isinstance(method, FunctionType):
                yield method
        yield from list(getattr(one, "__dict__", {}).values())


def _named(function: FunctionType) -> Iterator[Any]:
    """What a function's code takes from outside."""
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # empty as yet
            yield cell.cell_contents
    outside = function.__globals__
    yield from (outside[n] for n in function.__code__.co_names if n in outside)
    yield from function.__dict__.values()
