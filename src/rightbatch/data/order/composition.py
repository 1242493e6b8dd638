"""What a batch is made of: the shape that every way of drawing examples has."""

from __future__ import annotations

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
        extra: Integers of the composition itself.
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
        fences: Where a micro-batch must end, ascending, without 0 and the batch's end.
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
        assert self.weights is None
        assert self.groups is None
        own = len(self.indices)
        tokens = None
        if self.tokens is not None and more.tokens is not None:
            tokens = np.concatenate([self.tokens, more.tokens])
        fences = (*self.fences, own, *(own + fence for fence in more.fences))
        return replace(
            self,
            indices=np.concatenate([self.indices, more.indices]),
            # Another randomness than that of the first time.
            seeds=np.concatenate([self.seeds, mix(more.seeds + np.uint64(own))]),
            tokens=tokens,
            fences=fences if self.fences else (),
            repeats=self.repeats + len(more.indices),
        )


class Composition:
    """A pure function from (seed, cursor, batch size) to the examples of one step.

    What most have in common is here: they take any batch size, are told nothing, and
    keep no integers of their own.

    Attributes:
        name: For people and for the saved state.
        length: Examples in the data set.
        covers: Whether an epoch holds every example exactly once.
        counts: What ``batch_size`` counts: ``"examples"``, ``"tokens"`` or ``"runs"``.
        counts_tokens: Whether it knows the examples' lengths.
        steady: Whether every step has as many examples as asked for, but for tails.
        version: Another number whenever it begins to compose differently.
    """

    name: str
    length: int
    covers: bool
    counts: str = "examples"
    counts_tokens: bool = False
    steady: bool = True
    version: int = 0

    def start(self) -> tuple[int, ...]:
        """Its own integers at the start of a stream."""
        return ()

    def accepts(self, extra: tuple[int, ...]) -> bool:
        """Whether these can be its integers."""
        return len(extra) == len(self.start())

    def moved(self, extra: tuple[int, ...]) -> tuple[int, ...]:
        """Its integers after a jump to another epoch."""
        return extra

    def check(self, batch_size: int) -> None:
        """Refuse a batch size that cannot be composed.

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
        raise NotImplementedError  # the one thing that every composition has of its own

    def alike(self, batch_size: int, cursor: Cursor, most: int) -> int:
        """Into how many runs of equal composition a batch can be cut; 1: into none.

        What measures noise by comparing groups must compare such runs.
        """
        return most

    def saved(self, extra: tuple[int, ...]) -> tuple[int, ...]:
        """Its integers to be saved, with what it has been told since the last step."""
        return extra

    def loaded(self) -> None:
        """A saved state is in force: what it was told before no longer holds."""

    def fingerprint(self) -> dict[str, Any]:
        """Plain values that tell another data set, or another composition."""
        return {}


def check_index_count(batch_size: int, length: int, what: str) -> None:
    """Refuse a batch larger than the data it is drawn from without replacement.

    Raises:
        SettingError: It is larger.
    """
    if batch_size > length:
        raise SettingError(
            f"batch_size {batch_size} is more than the {length} {what}",
            seen=f"batch_size={batch_size}, {length} {what}",
            why="a batch would hold the same example twice",
            fix=f"batch_size={length} or less",
        )


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


def whole(value: object, name: str, least: int = 1) -> int:
    """An integer setting.

    Raises:
        SettingError: It is none, or too small.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise SettingError(f"{name} must be an integer", seen=f"{name}={value!r}")
    if value < least:
        raise SettingError(f"{name} must be at least {least}", seen=f"{name}={value}")
    return int(value)
