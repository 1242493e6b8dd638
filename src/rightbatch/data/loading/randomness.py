"""The random numbers that reading an example may draw, and where they come from."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rightbatch.data.loading.reached import MOST_LOOKED_AT, Reached
from rightbatch.data.order.permutation import key_of

WORD = 2**64 - 1
WIDE = 0x9E3779B97F4A7C15F39CC0605CEDC835  # 2^128 over the golden ratio


@dataclass(frozen=True, slots=True, eq=False)
class Generator:
    """One generator, and what can be done with it.

    Attributes:
        source: The object.
        salt: What tells its numbers from those of others with the same seed.
        get: Its state.
        put: Puts a state back.
        begin: Seeds it with 64 bits.
        tell: Something that is another after a number has been drawn; may draw.
    """

    source: Any
    salt: int
    get: Callable[[], Any]
    put: Callable[[Any], object]
    begin: Callable[[int], object]
    tell: Callable[[], Any]

    @classmethod
    def of(cls, found: Any, salt: int = 0) -> Generator | None:
        """``found`` as one, or None if it is none, or none that can be seeded."""
        kind = type(found)
        made = None
        if issubclass(kind, torch.Generator) and found.device.type == "cpu":
            made = cls(
                source=found,
                salt=salt,
                get=found.get_state,
                put=found.set_state,
                begin=lambda seed: found.manual_seed(seed >> 1),
                tell=lambda: found.get_state().numpy().tobytes(),
            )
        elif issubclass(kind, random.Random):
            made = cls(
                source=found,
                salt=salt,
                get=found.getstate,
                put=found.setstate,
                begin=found.seed,
                tell=found.random,
            )
        elif issubclass(kind, np.random.RandomState):
            made = cls(
                source=found,
                salt=salt,
                get=lambda: found.get_state(legacy=False),
                put=found.set_state,
                begin=lambda seed: _begin_legacy(found, seed),
                tell=found.random_sample,
            )
        elif issubclass(kind, np.random.Generator):
            bits = found.bit_generator
            made = cls(
                source=bits,
                salt=salt,
                get=lambda: bits.state,
                put=lambda state: setattr(bits, "state", state),
                begin=lambda seed: _begin(bits, seed),
                tell=found.random,
            )
        elif issubclass(kind, np.random.BitGenerator):
            made = cls(
                source=found,
                salt=salt,
                get=lambda: found.state,
                put=lambda state: setattr(found, "state", state),
                begin=lambda seed: _begin(found, seed),
                tell=found.random_raw,
            )
        return made if made is None or _works(made) else None


def _works(made: Generator) -> bool:
    """Whether it can be seeded, told and put back; some have no state."""
    with suppress(Exception):  # whatever a class of somebody's own raises
        before = made.get()
        try:
            made.begin(1)
            made.tell()
        finally:
            made.put(before)
        return True
    return False


def _begin(bits: Any, seed: int) -> None:
    if type(bits) in (np.random.PCG64, np.random.PCG64DXSM):  # the default: 5 times
        wide = seed * WIDE & (WORD << 64 | WORD)  # as fast as by numpy's seeding
        bits.state = {
            "bit_generator": type(bits).__name__,
            "state": {"state": wide, "inc": WIDE},
            "has_uint32": 0,
            "uinteger": 0,
        }
    else:
        bits.state = type(bits)(seed).state


def _begin_legacy(found: np.random.RandomState, seed: int) -> None:
    bits = found._bit_generator
    if type(bits) is np.random.MT19937:
        found.seed(seed & 0xFFFFFFFF)
    else:
        found.set_state({**found.get_state(legacy=False), "has_gauss": 0})
        _begin(bits, seed)


PROCESS: list[Any] = [  # torch's, numpy's and Python's
    Generator.of(torch.default_generator),
    Generator.of(np.random.mtrand._rand),
    Generator.of(getattr(random.seed, "__self__", None)),
]
States = list[tuple[Generator, Any]]


class Randomness:
    """The generators of this process, and those that a data set keeps for itself.

    Args:
        data: The data set.
    """

    def __init__(self, data: Any) -> None:
        self.data = data
        self.all: list[Generator] = []  # looked for where the data are read
        self.cut_short = False
        self._drawn: set[Any] = set()

    @property
    def own(self) -> list[Generator]:
        """The data set's."""
        return self.all[len(PROCESS) :]

    @property
    def draws(self) -> bool:
        """Whether any has been seen to be drawn from."""
        return bool(self._drawn)

    def look(self) -> list[Generator]:
        """Find the data set's own; those that had not been found before."""
        known = {id(g.source): g for g in self.all}
        found = {id(g.source): g for g in PROCESS}
        reached = Reached(self.data)
        for way, one in reached:
            source = one.bit_generator if type(one) is np.random.Generator else one
            made = known.get(id(source)) or Generator.of(one, key_of("generator", way))
            if made is not None:
                found.setdefault(id(made.source), made)
        self.cut_short = reached.cut_short
        self.all = list(found.values())
        return [g for number, g in found.items() if number not in known]

    def states(self) -> States:
        """Where all of them stand."""
        return [(generator, generator.get()) for generator in self.all]

    @staticmethod
    def restore(states: States) -> None:
        """Put them back."""
        for generator, state in states:
            generator.put(state)

    def seed(self, value: int) -> None:
        """Begin anew, all of them."""
        for generator in self.all:
            generator.begin(value ^ generator.salt)

    def seeder(self) -> Callable[[int], None]:
        """Seeds those that are known to be drawn from."""
        chosen = [(g.salt, g.begin) for g in self.all if g in self._drawn]

        def seed(value: int) -> None:
            for salt, begin in chosen:
                begin(value ^ salt)

        return seed

    def notice(self, value: int) -> bool:
        """Whether any has been drawn from since all were seeded with ``value``.

        Only those that were not known to be; now they are.
        """
        moved = set()
        for generator in self.all:
            if generator not in self._drawn:
                here = generator.tell()
                generator.begin(value ^ generator.salt)
                if here != generator.tell():
                    moved.add(generator)
        self.add(moved)
        return bool(moved)

    def add(self, generators: Iterable[Generator]) -> None:
        """These are drawn from too."""
        self._drawn |= set(generators)
        if self._drawn and self.cut_short:
            self.cut_short = False  # said once
            warnings.warn(
                f"the data set draws random numbers and holds more than "
                f"{MOST_LOOKED_AT:,} objects: generators of its own among the others "
                "are not seeded, so what they draw is not the same after a resume; "
                "keep its transforms in an attribute of the data set",
                stacklevel=2,
            )
