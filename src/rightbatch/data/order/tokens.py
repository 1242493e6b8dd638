"""Micro-batches by tokens: neighbours of like length, padded or packed."""

from __future__ import annotations

import bisect
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64

from rightbatch.core.errors import SettingError
from rightbatch.core.whole_number import whole_number
from rightbatch.data.order.draws import augment
from rightbatch.data.order.epochs import BLOCK, Blocks
from rightbatch.data.order.order import Cursor, Cut, Order, digest_of
from rightbatch.data.order.permutation import Permutation, key_of, keys_at, permute


class Tokens(Order):
    """Every micro-batch holds as many examples as fit a budget of tokens.

    A step takes the next examples of the shuffled order, sorts them by length and cuts
    them into runs that fit the budget: its micro-batches. So its gradient has no more
    noise than that of any random batch. Padding falls as steps grow.

    With a ``window``, so many examples of the order are sorted together before steps
    are taken, and their runs are shuffled. That pads less in small steps, but a step
    then holds few lengths: where gradients depend on length, it has many times the
    noise of a random batch (``rb.audit`` with ``lengths`` says how many).

    Either way every example comes once in an epoch whatever the steps' sizes, the state
    is a position, and ranks get as many runs each, with like numbers of tokens.

    Micro-batches have different numbers of examples: multiply their mean losses by
    ``micro.share`` (mean over examples) or ``micro.token_share`` (mean over tokens).
    A plain mean of means would give short examples 5 times too little weight.

    Args:
        lengths: Tokens of each example, shape ``(examples,)``; may be memory-mapped.
        budget: Tokens that a micro-batch may have, padding included.
        packed: Whether examples are joined without padding: then a run's lengths sum
            to at most the budget (best-fit decreasing), else longest times number.
        count: What ``batch_size`` counts over all ranks: ``"examples"``, or
            ``"tokens"``: as many examples as have at most so many tokens.
        window: Examples sorted together; default those of a step.

    Raises:
        SettingError: An example is longer than the budget, or empty.

    Example:
        >>> import numpy as np, torch, rightbatch as rb
        >>> lengths = np.arange(1, 101)
        >>> order = rb.data.Tokens(lengths, budget=200)
        >>> stream = rb.BatchStream((torch.arange(100),), batch_size=16, order=order)
        >>> step = next(stream.steps())
        >>> step.examples, round(sum(micro.share for micro in step), 6)
        (16, 1.0)

    References:
        Ott et al. 2019, arXiv:1904.01038 (batches by tokens); Krell et al. 2021,
        arXiv:2107.02027 (packing).
    """

    covers = True

    def __init__(
        self,
        lengths: Any,
        budget: int,
        *,
        packed: bool = False,
        count: Literal["examples", "tokens"] = "examples",
        window: int | None = None,
    ) -> None:
        self.lengths = np.asanyarray(lengths)
        if self.lengths.ndim != 1 or self.lengths.dtype.kind not in "iu":
            raise SettingError(
                "lengths must be integers, along one axis of examples",
                seen=f"shape {self.lengths.shape}, {self.lengths.dtype}",
            )
        if not len(self.lengths):
            raise SettingError("there are no lengths", seen="0 examples")
        if count not in ("examples", "tokens"):
            raise SettingError(
                "count must be 'examples' or 'tokens'", seen=f"count={count!r}"
            )
        self.budget, self.packed, self.counts = (
            whole_number(budget, "budget"),
            packed,
            count,
        )
        self.window = None if window is None else whole_number(window, "window")
        self.length, self.steady = len(self.lengths), count == "examples"
        self.name = f"tokens (budget {budget}, {'packed' if packed else 'padded'})"
        self._longest = int(self.lengths.max())
        self._check_lengths()
        self._seed = -1
        self._order: Blocks | None = None

    def _check_lengths(self) -> None:
        shortest = int(self.lengths.min())
        if self._longest <= self.budget and shortest >= 1:
            return
        bad = np.flatnonzero((self.lengths > self.budget) | (self.lengths < 1))
        long = self._longest > self.budget
        raise SettingError(
            f"{len(bad)} examples are {'longer than the budget' if long else 'empty'}",
            seen=f"lengths from {shortest} to {self._longest}, budget {self.budget}; "
            f"the first is example {bad[0]}",
            why="it fits no micro-batch" if long else "it has no loss",
            fix=f"budget={self._longest} or more, or shorten them"
            if long
            else "leave them out of the data set",
        )

    def check(self, batch_size: int) -> None:
        """A step holds at least the longest example.

        Raises:
            SettingError: It would not.
        """
        if self.counts == "tokens" and batch_size < self._longest:
            raise SettingError(
                f"a step of {batch_size} tokens does not hold the longest example",
                seen=f"batch_size={batch_size}, longest {self._longest}",
                fix=f"batch_size={self._longest} or more",
            )

    def cut(
        self, seed: int, cursor: Cursor, batch_size: int, stop: int
    ) -> tuple[Cut, Cursor]:
        """The next examples of the order, in runs of like lengths."""
        if self._order is None or self._seed != seed:
            self._seed, self._order = seed, self._order_of(seed)
        start = cursor.position
        rows, tokens = self._next(self._order, start, batch_size, stop)
        if self.window is None:
            places, ends = self._runs(tokens)
        else:  # sorted already, a run's first example marked
            places = np.arange(len(rows))
            ends = np.append(np.flatnonzero(rows[1:, 1]) + 1, len(rows))
        cut = Cut(
            indices=rows[places, 0],
            tokens=tokens[places],
            seeds=keys_at(augment(seed), start + places),
            fences=tuple(ends.tolist()),
            positions=start + places,
        )
        return cut, cursor.behind(start + len(rows))

    def fingerprint(self) -> dict[str, Any]:
        """A digest of the lengths, and the window and budget that order them."""
        return {
            "lengths": digest_of(self.lengths),
            "window": self.window,
            "budget": self.budget,
            "packed": self.packed,
            "count": self.counts,
        }

    def equal_groups(self, batch_size: int, cursor: Cursor, most: int) -> int:
        """None: neighbours are of like length."""
        return 1

    def _order_of(self, seed: int) -> Blocks:
        """The examples of all epochs, shape ``(examples, 1)``.

        With a window those of a run together, and a second column: 1 where one begins.
        """

        def block(start: int, stop: int) -> Int64[np.ndarray, "block columns"]:
            epoch, first = divmod(start, self.length)
            positions = np.arange(first, first + stop - start)
            indices = Permutation(self.length, seed, epoch)(positions)
            if self.window is None:
                return indices[:, None]
            places, ends = self._runs(self._tokens(indices))
            key = key_of("runs", seed, epoch, first)
            turns = permute(np.arange(len(ends)), len(ends), key)
            runs = np.split(indices[places], ends[:-1])
            rows = np.zeros((len(indices), 2), dtype=np.int64)
            rows[:, 0] = np.concatenate([runs[turn] for turn in turns.tolist()])
            sizes = np.diff(ends, prepend=0)[turns]
            rows[np.cumsum(sizes) - sizes, 1] = 1
            return rows

        return Blocks(block, ends=self.length, size=self.window or BLOCK)

    def _next(
        self, order: Blocks, start: int, batch_size: int, stop: int
    ) -> tuple[Int64[np.ndarray, "n columns"], Int64[np.ndarray, " n"]]:
        """Rows from position ``start`` on, as many as asked for, and their lengths."""
        reach = batch_size
        if self.counts == "tokens":
            reach = 1 + batch_size // int(self.lengths[:64].mean())
        while True:
            end = min(start + reach, stop)
            rows = order(start, end)
            tokens = self._tokens(rows[:, 0])
            if self.counts == "examples":
                return rows, tokens
            fitting = int(np.searchsorted(np.cumsum(tokens), batch_size, side="right"))
            if fitting < len(tokens) or end == stop:
                return rows[:fitting], tokens[:fitting]
            reach *= 2

    def _tokens(self, indices: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        return np.asarray(self.lengths[indices], dtype=np.int64)

    def _runs(
        self, tokens: Int64[np.ndarray, " n"]
    ) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " runs"]]:
        """Places in order of length, and where their runs that fit the budget end."""
        places = np.argsort(tokens, kind="stable")
        cut = packed_runs if self.packed else padded_runs
        runs = cut(tokens[places].tolist(), self.budget)
        return places[np.concatenate(runs)], np.cumsum([len(run) for run in runs])


def padded_runs(lengths: list[int], budget: int) -> list[list[int]]:
    """Places of ascending lengths in runs of longest times number <= budget."""
    runs: list[list[int]] = [[]]
    for place, length in enumerate(lengths):
        if (len(runs[-1]) + 1) * length > budget and runs[-1]:
            runs.append([])
        runs[-1].append(place)
    return runs


def packed_runs(lengths: list[int], budget: int) -> list[list[int]]:
    """Places of ascending lengths in runs that sum to <= budget, largest fit first."""
    runs: list[list[int]] = []
    rest, places = list(lengths), list(range(len(lengths)))
    while rest:
        run, room = [], budget
        while (fit := bisect.bisect_right(rest, room) - 1) >= 0:
            room -= rest.pop(fit)
            run.append(places.pop(fit))
        runs.append(run)
    return runs
