"""What an order of examples is: a pure function that each kind of order fills in."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt64

from rightbatch.core.errors import SettingError
from rightbatch.data.order.permutation import mix


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a stream stands: a few integers, equal on all ranks.

    Attributes:
        position: Examples taken since the start of epoch 0.
        step: Optimizer steps made.
        first_step: Steps made before this epoch began.
        extra: Integers that the order itself keeps.
    """

    position: int = 0
    step: int = 0
    first_step: int = 0
    extra: tuple[int, ...] = ()

    def behind(self, position: int, extra: tuple[int, ...] | None = None) -> Cursor:
        """The cursor one step on."""
        extra = self.extra if extra is None else extra
        return Cursor(position, self.step + 1, self.first_step, extra)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cut:
    """The examples of one optimizer step, over all ranks.

    Attributes:
        indices: Which examples, shape ``(batch,)``.
        seeds: Each draw's own randomness, a function of (seed, epoch, position).
        weights: Importance weights, mean 1 in expectation; None: all are 1.
        groups: The stratum or class of each example; None: there are none.
        tokens: Tokens of each example; None: not known.
        fences: Where micro-batches end, ascending; none: anywhere.
        unit: Neighbours that must stay on one rank and in one micro-batch.
        factor: Weight of this step's mean, beside 1 only where the number of examples
            is random (Poisson sampling).
        repeats: The last so many are examples of this epoch once more (padding).
        positions: Where each stands in the order, over all epochs; None: one behind
            the other.
    """

    indices: Int64[np.ndarray, " batch"]
    seeds: UInt64[np.ndarray, " batch"]
    weights: Float32[np.ndarray, " batch"] | None = None
    groups: Int64[np.ndarray, " batch"] | None = None
    tokens: Int64[np.ndarray, " batch"] | None = None
    fences: tuple[int, ...] = ()
    unit: int = 1
    factor: float = 1.0
    repeats: int = 0
    positions: Int64[np.ndarray, " fresh"] | None = None

    def padded(self, more: Cut) -> Cut:
        """With the examples of another cut behind, as repeats.

        For orders that cover an epoch: they have no weights and no groups.
        """
        size = len(self.indices)
        tokens = None
        if self.tokens is not None and more.tokens is not None:
            tokens = np.concatenate([self.tokens, more.tokens])
        fences = (*self.fences, size, *(size + fence for fence in more.fences))
        return replace(
            self,
            indices=np.concatenate([self.indices, more.indices]),
            # Another randomness than that of the first time.
            seeds=np.concatenate([self.seeds, mix(more.seeds + np.uint64(size))]),
            tokens=tokens,
            fences=fences if self.fences else (),
            repeats=self.repeats + len(more.indices),
        )


class Order:
    """A pure function from (seed, cursor, batch size) to the examples of one step.

    What most orders have in common is here: they take any batch size, measure nothing,
    and keep no integers of their own.

    Attributes:
        name: For people and for the saved state.
        length: Examples in the data set.
        covers: Whether an epoch holds every example exactly once.
        counts: What ``batch_size`` counts: ``"examples"`` or ``"tokens"``.
        steady: Whether every step has as many examples as asked for, but for tails.
        version: Another number whenever the same cursor begins to give another step.
    """

    name: str
    length: int
    covers: bool
    counts: str = "examples"
    steady: bool = True
    version: int = 0

    def start(self) -> tuple[int, ...]:
        """Its own integers at the start of a stream."""
        return ()

    def moved(self, extra: tuple[int, ...]) -> tuple[int, ...]:
        """Its integers after a jump to another epoch."""
        return extra

    def check(self, batch_size: int) -> None:
        """Refuse a batch size that it cannot fill.

        Raises:
            SettingError: It cannot.
        """

    def cut(
        self, seed: int, cursor: Cursor, batch_size: int, stop: int
    ) -> tuple[Cut, Cursor]:
        """The step at ``cursor``, and the cursor behind it.

        Args:
            seed: Of the stream.
            cursor: Where it begins.
            batch_size: How much to take.
            stop: Position that it must not reach over.
        """
        raise NotImplementedError  # the one method that every kind of order writes

    def equal_groups(self, batch_size: int, cursor: Cursor, most: int) -> int:
        """Into how many groups of equal composition a batch can be cut; 1: into none.

        What measures noise by comparing groups must compare such groups.
        """
        return most

    def saved(self, extra: tuple[int, ...]) -> tuple[int, ...]:
        """Its integers to be saved, with what was observed since the last step."""
        return extra

    def loaded(self) -> None:
        """A saved state is in force: what was observed before no longer holds."""

    def fingerprint(self) -> dict[str, Any]:
        """Plain values that differ for another data set, or other settings."""
        return {}


def digest_of(*arrays: np.ndarray) -> str:
    """A short hash of numbers; memory-mapped arrays are read piece by piece."""
    digest = hashlib.blake2b(digest_size=8)
    for array in arrays:
        kind = np.float64 if array.dtype.kind == "f" else np.int64
        for start in range(0, len(array), 1 << 20):
            piece = array[start : start + (1 << 20)]
            digest.update(np.ascontiguousarray(piece, kind).tobytes())
    return digest.hexdigest()


def unique(values: np.ndarray, what: str) -> tuple[Any, Any, Any]:
    """The values that occur, the number of each place's among them, and how often.

    Raises:
        SettingError: They cannot be sorted.
    """
    try:
        return np.unique(values, return_inverse=True, return_counts=True)
    except TypeError as error:
        raise SettingError(
            f"{what} must be of one kind, that can be sorted",
            seen=str(error),
            fix="integers, or strings",
        ) from error
