"""What runs in a worker: examples by number, each with a randomness of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt64
from torch import Tensor
from torch.utils.data import Subset, TensorDataset, default_collate, get_worker_info

from rightbatch.data.loading.randomness import Randomness, States

COLLATE = 0x9E3779B97F4A7C15  # sets a collate's numbers apart from its examples'


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """The examples of one micro-batch of this rank.

    Attributes:
        indices: Which examples, shape ``(examples,)``.
        seeds: The randomness of each.
    """

    indices: Int64[np.ndarray, " examples"]
    seeds: UInt64[np.ndarray, " examples"]

    def same(self, other: Piece) -> bool:
        """Whether the same draws are meant, in the same order."""
        return (
            len(self.indices) == len(other.indices)
            and bool((self.seeds == other.seeds).all())
            and bool((self.indices == other.indices).all())
        )


class Fetch:
    """A data set for a ``DataLoader`` whose batches are pieces of a stream.

    Examples are read as the data set likes best, a batch at a time where it can, as
    long as reading them draws no random numbers: then their seeds do not matter. The
    first time that it does they are read once more, one by one, each after seeding what
    was drawn from, and so are all that follow.

    Args:
        data: Map-style data set, or a tuple of tensors.
        collate: Makes a batch of a list of examples.
        seeded: Whether every example that draws random numbers has its own seed.
            Tensors draw none, so they are not even watched.
        current: One shared integer: pieces of an earlier generation are not fetched.
    """

    def __init__(
        self,
        data: Any,
        collate: Callable[[list[Any]], Any] | None,
        seeded: bool,
        current: Tensor,
    ) -> None:
        self.data, self.collate = data, collate or default_collate
        self._own_collate = self.collate is not default_collate
        self.seeded = seeded and (self._own_collate or not _plain(data))
        self.current = current
        self._at_once = not self._own_collate and _dense(data)
        self._randomness = Randomness(data)
        self._fresh, self._singly = True, False

    def renew(self) -> None:
        """The data set may have changed."""
        self._fresh = True

    def __getitems__(self, task: tuple[int, int, Piece]) -> tuple[int, Any]:
        """The batch of a task, with the task's number."""
        number, generation, piece = task
        if generation < int(self.current[0]):
            return number, None  # no longer wanted: the batch size has changed
        return number, self._batch(piece)

    def _batch(self, piece: Piece) -> Any:
        index = torch.from_numpy(piece.indices)
        if isinstance(self.data, tuple):
            return tuple(t[index.to(t.device)] for t in self.data)
        if self._at_once:  # what the collate would make of its examples
            return [t[index.to(t.device)].contiguous() for t in self.data.tensors]
        wanted = piece.indices.tolist()
        if not self.seeded:
            return self._collated(wanted, self._read(wanted))
        if self._fresh:
            self._randomness.look()
        alone = get_worker_info() is not None
        before = [] if alone else self._randomness.states()  # the training loop's
        try:
            examples = self._seeded(wanted, piece.seeds.tolist(), before)
            if self._own_collate:
                self._randomness.seed(int(piece.seeds[0]) ^ COLLATE)
            return self._collated(wanted, examples)
        finally:
            self._randomness.restore(before)

    def _seeded(self, wanted: list[int], seeds: list[int], before: States) -> list[Any]:
        randomness, first = self._randomness, seeds[0]
        examples: Any
        if not randomness.draws:
            randomness.seed(first)  # so that even what is kept of it is no chance
            examples = self._read(wanted)
            if self._fresh:  # some data sets make their generators when they are read
                made = randomness.look()
                before += [(generator, generator.get()) for generator in made]
                randomness.add(made)
                self._fresh = False
            if not randomness.notice(first) and not randomness.draws:
                return examples
        while True:
            randomness.seed(first)
            seed, examples = randomness.seeder(), []
            for index, value in zip(wanted, seeds, strict=True):
                seed(value)
                examples.append(self._one(index))
            self._fresh = False
            if not randomness.notice(first):  # from others too: once more
                return examples

    def _read(self, wanted: list[int]) -> Any:
        many = None if self._singly else getattr(self.data, "__getitems__", None)
        if many is None:
            return [self._one(index) for index in wanted]
        try:
            examples = many(wanted)
        except Exception as error:
            for index in wanted:  # which one it is
                self._one(index)
            error.add_note(f"while reading examples {_some(wanted)} of the data set")
            raise
        whole = isinstance(examples, (list, tuple)) and len(examples) == len(wanted)
        if self.seeded and not whole:  # a made batch: it could not be read singly
            self._singly = True
            return [self._one(index) for index in wanted]
        return examples

    def _collated(self, wanted: list[int], examples: Any) -> Any:
        try:
            return self.collate(examples)
        except Exception as error:
            error.add_note(f"while collating examples {_some(wanted)} of the data set")
            if not self._own_collate:
                error.add_note(
                    "torch's default collate stacks tensors of one shape; for others, "
                    "such as texts or None: collate_fn=..., which pads or packs them"
                )
            raise

    def _one(self, index: int) -> Any:
        try:
            return self.data[index]
        except Exception as error:
            error.add_note(f"while reading example {index} of the data set")
            raise

    @staticmethod
    def as_it_is(batch: Any) -> Any:
        """The loader's collate: the batch is made already."""
        return batch


def _some(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")


def _plain(data: Any) -> bool:
    """Tensors: they draw no random numbers."""
    return isinstance(data, tuple) or type(_whole(data)) is TensorDataset


def _dense(data: Any) -> bool:
    """A data set of ordinary tensors, which can be indexed at once."""
    return type(data) is TensorDataset and all(
        type(t) is Tensor and t.layout is torch.strided for t in data.tensors
    )


def _whole(data: Any) -> Any:
    while type(data) is Subset:
        data = data.dataset
    return data
