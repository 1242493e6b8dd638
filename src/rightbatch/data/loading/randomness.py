"""The random numbers that reading an example may draw: seeded for each example."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

from rightbatch.data.loading.arguments import parts_of

Seed = Callable[[int], object]
LOW_32 = 0xFFFFFFFF  # numpy's legacy seeds have no more bits
FIRST = 0  # seed from which it is told whether a generator was drawn from


class Generator(NamedTuple):
    """One of this process's generators.

    Attributes:
        seed: Seeds it by 64 bits.
        draw: The next number from it.
        first: That number right behind ``seed(FIRST)``.
    """

    seed: Seed
    draw: Callable[[], float]
    first: float


def _torch_number(generator: torch.Generator) -> float:
    # Whatever the default device and dtype are.
    return torch.rand((), generator=generator, dtype=torch.float64, device="cpu").item()


# Each takes other bits: numpy's and torch's are the same Mersenne twister.
GENERATORS = (
    Generator(
        lambda seed: torch.default_generator.manual_seed(seed >> 32),
        lambda: _torch_number(torch.default_generator),
        _torch_number(torch.Generator().manual_seed(FIRST)),
    ),
    Generator(
        lambda seed: np.random.seed(seed & LOW_32),
        np.random.random_sample,
        np.random.RandomState(FIRST).random_sample(),
    ),
    Generator(random.seed, random.random, random.Random(FIRST).random()),
)


class ExampleSeeds:
    """Seeds what reading an example draws from, and notices what that is.

    Args:
        data: The data set.
        seed_fn: Seeds what else there is.
    """

    def __init__(self, data: Any, seed_fn: Seed | None) -> None:
        self._data, self._seed_fn = data, seed_fn
        self._drawn_from: list[Generator] = []

    def seeders(self) -> list[Seed]:
        """Whatever must be seeded before each example; empty while nothing draws."""
        seeders = [g.seed for g in self._drawn_from]
        setters = setters_of(self._data)
        if self._seed_fn is not None:
            setters.append(self._seed_fn)
        for setter in setters:
            seeders.append(lambda seed, setter=setter: setter(seed & LOW_32))
        return seeders

    @staticmethod
    def begin(seed: int = FIRST) -> None:
        """Seed the process's three generators."""
        for generator in GENERATORS:
            generator.seed(seed)

    def newly_drawn_from(self) -> bool:
        """Whether since `begin` a generator was drawn from that never was before."""
        new = [
            generator
            for generator in GENERATORS
            if generator not in self._drawn_from and generator.draw() != generator.first
        ]
        self._drawn_from += new
        return bool(new)


def setters_of(data: Any) -> list[Seed]:
    """``set_random_seed`` of a data set and of its transforms, where they have it.

    Looked at are the data set, its ``transform``, ``target_transform`` and
    ``transforms`` (or each of a list of those); of torch's ``Subset``,
    ``ConcatDataset`` and ``StackDataset`` their parts.
    """
    if parts := parts_of(data):
        return [setter for part in parts for setter in setters_of(part)]
    holders = [data]
    for name in ("transform", "target_transform", "transforms"):
        transform = getattr(data, name, None)
        several = isinstance(transform, (list, tuple))
        holders += transform if several else [transform]
    setters = [getattr(holder, "set_random_seed", None) for holder in holders]
    return [setter for setter in setters if callable(setter)]


# numpy's bits while examples are read: to copy the state of the loop's takes 70 us.
_BITS = np.random.MT19937(FIRST)


@contextmanager
def loop_generators_kept() -> Iterator[None]:
    """Leave the training loop's generators as they were.

    But for the second of two normal numbers that ``np.random.randn`` keeps.
    """
    python, tensors = random.getstate(), torch.default_generator.get_state()
    bits = np.random.get_bit_generator()
    np.random.set_bit_generator(_BITS)
    try:
        yield
    finally:
        np.random.set_bit_generator(bits)
        torch.default_generator.set_state(tensors)
        random.setstate(python)
