"""Micro-batches by tokens: neighbours of like length, padded or packed."""

from __future__ import annotations

import bisect
import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64

from rightbatch.core.errors import SettingError
from rightbatch.data.order.composition import Composition, Cursor, Cut, whole
from rightbatch.data.order.draws import augment
from rightbatch.data.order.epochs import Walk
from rightbatch.data.order.permutation import Permutation, key_of, keys_at, permute

WINDOW = 8192  # examples sorted together where a step is counted in runs: 2 % padding
# [measured: benchmarks/feed.py]


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Examples that are sorted together: their order, and where runs of it end.

    Attributes:
        indices: Which examples, in the order of the stream.
        tokens: Length of each.
        ends: One behind the last of every run, ascending.
    """

    indices: Int64[np.ndarray, " window"]
    tokens: Int64[np.ndarray, " window"]
    ends: Int64[np.ndarray, " runs"]


class Tokens(Composition):
    """Every micro-batch holds as many examples as fit a budget of tokens.

    A step takes the next examples of the shuffled order, sorts them by length and cuts
    them into runs that fit the budget: its micro-batches. So its gradient has no more
    noise than that of any random batch. Padding falls as steps grow.

    With a ``window``, so many examples of the order are sorted together instead and cut
    into runs, which are shuffled; a step takes the next runs, the last of them in part.
    That pads less in small steps, but a step then holds few lengths: where gradients
    depend on length, it has many times the noise of a random batch (``rb.audit`` with
    ``lengths`` says how many).

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
        count: What ``batch_size`` counts over all ranks: ``"examples"``, ``"tokens"``
            (as many examples as have at most so many tokens, at least one), or
            ``"runs"``: micro-batches, which needs a window (default 8192).
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

    covers, counts_tokens = True, True

    def __init__(
        self,
        lengths: Any,
        budget: int,
        *,
        packed: bool = False,
        count: Literal["examples", "tokens", "runs"] = "examples",
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
        if count not in ("examples", "tokens", "runs"):
            raise SettingError(
                "count must be 'examples', 'tokens' or 'runs'", seen=f"count={count!r}"
            )
        self.budget, self.packed, self.counts = whole(budget, "budget"), packed, count
        longest, shortest = int(self.lengths.max()), int(self.lengths.min())
        if longest > budget or shortest < 1:
            wrong = "longer than the budget" if longest > budget else "empty"
            bad = np.flatnonzero((self.lengths > budget) | (self.lengths < 1))
            raise SettingError(
                f"{len(bad)} examples are {wrong}",
                seen=f"lengths from {shortest} to {longest}, budget {budget}; the "
                f"first is example {bad[0]}",
                why="it fits no micro-batch" if longest > budget else "it has no loss",
                fix=f"budget={longest} or more, or shorten them"
                if longest > budget
                else "leave them out of the data set",
            )
        self.length, self.steady = len(self.lengths), count == "examples"
        if window is None and count == "runs":
            window = WINDOW
        self.window = None if window is None else whole(window, "window")
        self.name = f"tokens (budget {budget}, {'packed' if packed else 'padded'})"
        self._order: Walk | None = None
        self._kept: dict[tuple[int, int, int], Window] = {}
        self._keep = 8  # windows: what workers fetch ahead, and what is trained

    def check(self, batch_size: int) -> None:
        """A step holds at least the longest example."""
        if self.counts == "tokens" and batch_size < int(self.lengths.max()):
            raise SettingError(
                f"a step of {batch_size} tokens does not hold the longest example",
                seen=f"batch_size={batch_size}, longest {int(self.lengths.max())}",
                fix=f"batch_size={int(self.lengths.max())} or more",
            )

    def cut(
        self, seed: int, cursor: Cursor, batch_size: int, stop: int
    ) -> tuple[Cut, Cursor]:
        """The next examples, with fences between runs."""
        if self.window is None:
            return self._sorted_within(seed, cursor, batch_size, stop)
        indices: list[Any] = []
        tokens: list[Any] = []
        fences: list[int] = []
        have, left, position = 0, batch_size, cursor.position
        while left > 0 and position < stop:
            window, at = self._at(seed, position)
            taken = min(self._fitting(window, at, left), stop - position)
            if taken == 0:
                break
            ends = window.ends[(window.ends > at) & (window.ends <= at + taken)]
            fences += (ends - at + have).tolist()
            indices.append(window.indices[at : at + taken])
            tokens.append(window.tokens[at : at + taken])
            have, position = have + taken, position + taken
            left -= self._amount(tokens[-1], len(ends))
        self._keep = max(self._keep, 4 * len(indices))
        cut = Cut(
            indices=np.concatenate(indices),
            tokens=np.concatenate(tokens),
            seeds=keys_at(augment(seed), np.arange(cursor.position, position)),
            fences=tuple(f for f in fences if f < have) or (have,),
        )
        return cut, cursor.behind(position)

    def fingerprint(self) -> dict[str, Any]:
        """A digest of the lengths, and the window and budget that order them."""
        digest = hashlib.blake2b(digest_size=8)
        for start in range(0, self.length, 1 << 20):
            part = np.ascontiguousarray(self.lengths[start : start + (1 << 20)])
            digest.update(part.astype(np.int64).tobytes())
        return {
            "lengths": digest.hexdigest(),
            "window": self.window,
            "budget": self.budget,
            "packed": self.packed,
            "count": self.counts,
        }

    def alike(self, batch_size: int, cursor: Cursor, most: int) -> int:
        """None: neighbours are of like length."""
        return 1

    def _sorted_within(
        self, seed: int, cursor: Cursor, batch_size: int, stop: int
    ) -> tuple[Cut, Cursor]:
        """The next examples of the shuffled order, in runs of like lengths."""
        if self._order is None or self._order.seed != seed:
            self._order = Walk(self.length, seed)
        start, reach = cursor.position, batch_size
        if self.counts == "tokens":
            reach = 1 + batch_size // int(self.lengths[:64].mean())
        while True:
            end = min(start + reach, stop)
            indices = self._order(start, end)
            tokens = np.asarray(self.lengths[indices], dtype=np.int64)
            if self.counts == "examples":
                break
            fitting = int(np.searchsorted(np.cumsum(tokens), batch_size, side="right"))
            if fitting < len(tokens) or end == stop:
                indices, tokens = indices[:fitting], tokens[:fitting]
                break
            reach *= 2
        order, ends = self._runs(tokens)
        cut = Cut(
            indices=indices[order],
            tokens=tokens[order],
            seeds=keys_at(augment(seed), start + order),
            fences=tuple(ends.tolist()),
            positions=start + order,
        )
        return cut, cursor.behind(start + len(indices))

    def _runs(
        self, tokens: Int64[np.ndarray, " n"], turn: int | None = None
    ) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " runs"]]:
        """Places in order of length, cut into runs; and one behind the end of each.

        Args:
            tokens: Length of each example.
            turn: Key to shuffle the runs by; None leaves them in order.
        """
        order = np.argsort(tokens, kind="stable")
        cut = packed_runs if self.packed else padded_runs
        runs = [order[np.array(r)] for r in cut(tokens[order].tolist(), self.budget)]
        if turn is not None:
            places = np.arange(len(runs))
            runs = [runs[j] for j in permute(places, len(runs), turn).tolist()]
        return np.concatenate(runs), np.cumsum([len(r) for r in runs])

    def _amount(self, tokens: Any, runs: int) -> int:
        """What a part of a step counts."""
        return {"examples": len(tokens), "tokens": int(tokens.sum()), "runs": runs}[
            self.counts
        ]

    def _fitting(self, window: Window, at: int, left: int) -> int:
        """How many examples of the window, from ``at`` on, a step still takes."""
        if self.counts == "examples":
            return min(left, len(window.indices) - at)
        if self.counts == "runs":
            ends = window.ends[window.ends > at]
            return int(ends[min(left, len(ends)) - 1]) - at
        return int(np.searchsorted(np.cumsum(window.tokens[at:]), left, side="right"))

    def _at(self, seed: int, position: int) -> tuple[Window, int]:
        """The window that has a position, and the place in it."""
        assert self.window is not None
        epoch, offset = divmod(position, self.length)
        number, place = divmod(offset, self.window)
        name = (seed, epoch, number)
        if name not in self._kept:
            while len(self._kept) >= self._keep:
                del self._kept[next(iter(self._kept))]
            self._kept[name] = self._sorted(seed, epoch, number)
        return self._kept[name], place

    def _sorted(self, seed: int, epoch: int, number: int) -> Window:
        assert self.window is not None
        start = number * self.window
        stop = min(start + self.window, self.length)
        indices = Permutation(self.length, seed, epoch)(np.arange(start, stop))
        tokens = np.asarray(self.lengths[indices], dtype=np.int64)
        order, ends = self._runs(tokens, key_of("runs", seed, epoch, number))
        return Window(indices[order], tokens[order], ends)


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
