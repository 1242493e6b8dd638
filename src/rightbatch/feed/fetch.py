"""What runs in a worker: examples by number, each with a randomness of its own."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt64
from torch import Tensor
from torch.utils.data import Subset, TensorDataset, default_collate, get_worker_info

from rightbatch.isolation import preserved_rng


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

    Args:
        data: Map-style data set, or a tuple of tensors.
        collate: Makes a batch of a list of examples.
        seeded: Whether to seed torch, numpy and Python for each example. Tensors draw
            no random numbers, so they are not.
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

    def __getitems__(self, task: tuple[int, Piece]) -> Any:
        generation, piece = task
        if generation < int(self.current[0]):
            return None  # no longer wanted: the batch size has changed
        if isinstance(self.data, tuple):
            index = torch.from_numpy(piece.indices)
            return tuple(t[index.to(t.device)] for t in self.data)
        if get_worker_info() is None and self.seeded:
            with preserved_rng():  # the training loop's own random numbers
                return self._examples(piece)
        return self._examples(piece)

    def _examples(self, piece: Piece) -> Any:
        wanted = piece.indices.tolist()
        if self.seeded:
            examples = []
            for index, seed in zip(wanted, piece.seeds.tolist(), strict=True):
                seed_all(seed)
                examples.append(self._one(index))
            seed_all(int(piece.seeds[0]) ^ 1)  # for a collate that draws numbers
        else:
            many = getattr(self.data, "__getitems__", None)
            examples = many(wanted) if many else [self._one(i) for i in wanted]
        try:
            return self.collate(examples)
        except Exception as error:
            shown = ", ".join(map(str, wanted[:8])) + (
                ", ..." if len(wanted) > 8 else ""
            )
            error.add_note(f"while collating examples {shown} of the data set")
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


def reads_many(data: Any) -> bool:
    """Whether it could read a batch at a time, were it not to be seeded."""
    return not _plain(data) and hasattr(_whole(data), "__getitems__")


def _plain(data: Any) -> bool:
    """Tensors: they draw no random numbers."""
    return isinstance(data, tuple) or type(_whole(data)) is TensorDataset


def _whole(data: Any) -> Any:
    while type(data) is Subset:
        data = data.dataset
    return data


def seed_all(seed: int) -> None:
    """Seed torch's, numpy's and Python's generators of this process, on the CPU."""
    torch.default_generator.manual_seed(seed >> 1)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)
