"""What runs in a worker: examples by number, each with a randomness of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt64
from torch import Tensor
from torch.utils.data import Subset, TensorDataset, default_collate, get_worker_info

from rightbatch.feed.randomness import Randomness


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
    first time that it does they are read once more, one by one, each after seeding, and
    so are all that follow.

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
        self.seeded = seeded and not _plain(data)
        self.current = current
        self._randomness = Randomness(data)
        self._fresh, self._draws = True, False  # in this process

    def __getitems__(self, task: tuple[int, Piece]) -> Any:
        generation, piece = task
        if generation < int(self.current[0]):
            return None  # no longer wanted: the batch size has changed
        if isinstance(self.data, tuple):
            index = torch.from_numpy(piece.indices)
            return tuple(t[index.to(t.device)] for t in self.data)
        if not self.seeded:
            return self._collated(piece, self._read(piece.indices.tolist()))
        if self._fresh:
            self._randomness.look()
        alone = get_worker_info() is not None
        with nullcontext() if alone else self._randomness.preserved():
            return self._seeded(piece)

    def _seeded(self, piece: Piece) -> Any:
        wanted = piece.indices.tolist()
        examples = None if self._draws else self._unless_drawn(wanted)
        if examples is None:
            self._draws, examples = True, []
            for index, seed in zip(wanted, piece.seeds.tolist(), strict=True):
                self._randomness.seed(seed)
                examples.append(self._one(index))
        self._randomness.seed(int(piece.seeds[0]) ^ 1)  # for a collate that draws
        return self._collated(piece, examples)

    def _unless_drawn(self, wanted: list[int]) -> list[Any] | None:
        """The examples, or None if a random number was drawn for them."""
        before = self._randomness.state()
        examples = self._read(wanted)
        if self._fresh:  # some data sets make their generators when they are read
            self._randomness.look()
            self._fresh = False
        return examples if self._randomness.state() == before else None

    def _read(self, wanted: list[int]) -> list[Any]:
        many = getattr(self.data, "__getitems__", None)
        return many(wanted) if many else [self._one(index) for index in wanted]

    def _collated(self, piece: Piece, examples: list[Any]) -> Any:
        try:
            return self.collate(examples)
        except Exception as error:
            wanted = piece.indices[:8].tolist()
            more = ", ..." if len(piece.indices) > 8 else ""
            error.add_note(
                f"while collating examples {', '.join(map(str, wanted))}{more} of the "
                "data set"
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


def _plain(data: Any) -> bool:
    """Tensors: they draw no random numbers."""
    return isinstance(data, tuple) or type(_whole(data)) is TensorDataset


def _whole(data: Any) -> Any:
    while type(data) is Subset:
        data = data.dataset
    return data
