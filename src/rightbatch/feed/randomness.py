"""The random numbers that reading an example may draw, and where they come from."""

from __future__ import annotations

import functools
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch

MOST_LOOKED_AT = 10_000  # objects of a data set among which generators are looked for
MOST_ITEMS = 256  # of a list or dict: transforms are few, records are many [assumed]
WORD = 2**64 - 1
ODD = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: seeds of several lie far apart


@dataclass(frozen=True, slots=True, eq=False)
class Generator:
    """One generator: how its state is read and put back, and how it is seeded."""

    source: Any
    get: Callable[[], Any]
    put: Callable[[Any], object]
    seed: Callable[[int], object]  # with 64 bits

    @classmethod
    def of(cls, found: Any) -> Generator | None:
        """``found`` as one, or None if it is none."""
        if isinstance(found, torch.Generator):
            return cls(
                source=found,
                get=found.get_state,
                put=found.set_state,
                seed=lambda seed: found.manual_seed(seed >> 1),
            )
        if isinstance(found, random.SystemRandom):
            return None  # has no state
        if isinstance(found, random.Random):
            return cls(found, found.getstate, found.setstate, found.seed)
        if isinstance(found, np.random.RandomState):
            return cls(
                source=found,
                get=lambda: found.get_state(legacy=False),
                put=found.set_state,
                seed=lambda seed: found.seed(seed & 0xFFFFFFFF),
            )
        if isinstance(found, np.random.Generator):
            bits = found.bit_generator

            def put(state: Any) -> None:
                bits.state = state

            return cls(
                source=bits,
                get=lambda: bits.state,
                put=put,
                seed=lambda seed: put(type(bits)(seed).state),
            )
        return None


PROCESS: list[Any] = [  # torch's, numpy's and Python's
    Generator.of(torch.default_generator),
    Generator.of(np.random.mtrand._rand),
    Generator.of(getattr(random.seed, "__self__", None)),
]
States = dict[Generator, Any]


class Randomness:
    """The generators of this process, and those that a data set keeps for itself.

    Args:
        data: The data set.
    """

    def __init__(self, data: Any) -> None:
        self.data = data
        self.all: list[Generator] = []  # looked for where the data are read
        self._drawn: set[Generator] = set()

    def look(self) -> None:
        """Find the data set's own.

        Looked for are generators of torch (on the CPU), numpy and Python in the
        attributes of the data set, of its transforms and so on, and among what their
        functions name. Not found is one that is made anew for every example.
        """
        known = {id(g.source): g for g in self.all}
        found = {id(g.source): g for g in PROCESS}
        for one in _reached(self.data):
            if (made := Generator.of(one)) and (number := id(made.source)) not in found:
                found[number] = known.get(number, made)
        self.all = list(found.values())

    @property
    def own(self) -> list[Generator]:
        """The data set's."""
        return self.all[len(PROCESS) :]

    @property
    def draws(self) -> bool:
        """Whether any has been seen to be drawn from."""
        return bool(self._drawn)

    def states(self) -> States:
        """Where all of them stand."""
        return {generator: generator.get() for generator in self.all}

    def notice(self, before: States) -> bool:
        """Whether any has been drawn from that was not known to be; now it is."""
        moved = {
            generator
            for generator in self.all
            if generator not in self._drawn
            and not _same(generator.get(), before.get(generator))
        }
        self._drawn |= moved
        return bool(moved)

    def seeder(self, *, drawn: bool) -> Callable[[int], None]:
        """Seeds all generators, or those known to be drawn from."""
        chosen = [
            (max(number - len(PROCESS) + 1, 0) * ODD, generator.seed)
            for number, generator in enumerate(self.all)
            if generator in self._drawn or not drawn
        ]

        def seed(value: int) -> None:
            for salt, begin in chosen:
                begin((value + salt) & WORD)

        return seed

    @staticmethod
    def restore(states: States) -> None:
        """Put all of them back."""
        for generator, state in states.items():
            generator.put(state)


def _same(one: Any, other: Any) -> bool:
    return bool(_comparable(one) == _comparable(other))


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
