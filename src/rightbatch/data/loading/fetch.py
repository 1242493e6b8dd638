"""What reads examples, here or in a worker: by number, each with its own seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt64
from torch import Tensor
from torch.utils.data import TensorDataset, default_collate

from rightbatch.core.user_code import where_made
from rightbatch.data.loading.randomness import (
    ExampleSeeds,
    Seed,
    loop_generators_kept,
)

COLLATE = 0x9E3779B97F4A7C15  # sets a collate's numbers apart from its examples'


class Piece(NamedTuple):
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
    """Makes the batch of a `Piece`.

    Tensors are indexed at once. Other data sets are read as they like best, many
    examples at a time where they can, as long as that draws no random numbers; then
    one by one, each after seeding what is drawn from. The first batch that draws is
    read twice.

    Args:
        data: Map-style data set, or a tuple of tensors.
        collate: Makes a batch of a list of examples; None: torch's.
        seeded: Whether examples have seeds. Tensors need none.
        seed_fn: Seeds what only the user knows of.
    """

    def __init__(
        self,
        data: Any,
        collate: Callable[[list[Any]], Any] | None,
        *,
        seeded: bool,
        seed_fn: Seed | None,
    ) -> None:
        self.data, self._collate = data, collate or default_collate
        self._default_collate = self._collate is default_collate
        self._tensors = _tensors(data) if self._default_collate else None
        self._seeded = seeded
        self._seeds = ExampleSeeds(data, seed_fn)

    def __call__(self, piece: Piece) -> Any:
        """The collated examples.

        Raises:
            Exception: What the data set or the collate raised, with a note that says
                for which examples.
        """
        if self._tensors is not None:
            index = torch.from_numpy(piece.indices)
            rows = [t.index_select(0, index.to(t.device)) for t in self._tensors]
            return tuple(rows) if isinstance(self.data, tuple) else rows
        indices = piece.indices.tolist()
        if not self._seeded:
            return self._collated(indices, self._read(indices))
        seeds = piece.seeds.tolist()
        with loop_generators_kept():
            examples = self._read_seeded(indices, seeds)
            if not self._default_collate:
                self._seeds.begin(seeds[0] ^ COLLATE)
            return self._collated(indices, examples)

    def _read_seeded(self, indices: list[int], seeds: list[int]) -> Any:
        """Again for each generator that is newly drawn from; three times at most."""
        while True:
            self._seeds.begin()
            seeders = self._seeds.seeders()
            if seeders:
                examples = []
                for index, value in zip(indices, seeds, strict=True):
                    for seed in seeders:
                        seed(value)
                    examples.append(self._example(index))
            else:
                examples = self._read(indices)
            if not self._seeds.newly_drawn_from():
                return examples

    def _read(self, indices: list[int]) -> Any:
        """As the data set likes best."""
        read_many = getattr(self.data, "__getitems__", None)
        if read_many is None:
            return [self._example(index) for index in indices]
        try:
            return read_many(indices)
        except Exception as error:
            for index in indices:  # which one it is
                self._example(index)
            error.add_note(f"while reading examples {_some(indices)} of the data set")
            raise

    def _example(self, index: int) -> Any:
        try:
            return self.data[index]
        except Exception as error:
            error.add_note(f"while reading example {index} of the data set")
            raise

    def _collated(self, indices: list[int], examples: Any) -> Any:
        try:
            return self._collate(examples)
        except Exception as error:
            error.add_note(f"while collating examples {_some(indices)} of the data set")
            if self._default_collate:
                if made := where_made(self.data):
                    error.add_note(f"which are made by {made}")
                error.add_note(
                    "torch's default collate stacks tensors of one shape; for others, "
                    "such as texts or None: collate_fn=..., which pads or packs them"
                )
            raise


def _some(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")


def _tensors(data: Any) -> tuple[Tensor, ...] | None:
    """Tensors that can be indexed at once, if the data set is nothing else."""
    if isinstance(data, tuple):
        return data
    if type(data) is not TensorDataset:
        return None
    dense = all(type(t) is Tensor and t.layout is torch.strided for t in data.tensors)
    return data.tensors if dense else None
