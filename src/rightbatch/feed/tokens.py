"""Micro-batches by tokens: neighbours of like length, padded or packed."""

from __future__ import annotations

import bisect
import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64

from rightbatch.errors import SettingError
from rightbatch.feed.composition import Composition, Cursor, Cut, whole
from rightbatch.feed.draws import augment
from rightbatch.feed.permutation import Permutation, key_of, keys_at

WINDOW = 8192  # examples sorted together: 2 % padding [measured: research of lengths]


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

    Each epoch's shuffled order is cut into windows; a window is sorted by length, cut
    into runs that fit the budget, and the runs are shuffled. That is the stream's fixed
    order: a step of any size takes the next examples of it, and a run that does not fit
    whole into a step is cut there. So the state is a position, nothing is lost when the
    step's size changes, and runs are dealt to ranks in equal number.

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
            ``"runs"``: micro-batches.
        window: Examples sorted together: larger pads less, and mixes lengths less.

    Raises:
        SettingError: An example is longer than the budget, or empty.

    Example:
        >>> import numpy as np, torch, rightbatch as rb
        >>> lengths = np.arange(1, 101)
        >>> order = rb.Tokens(lengths, budget=200)
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
        count: Literal["examples", "tokens", "runs"] = "examples",
        window: int = WINDOW,
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
        self.length, self.window = len(self.lengths), whole(window, "window")
        self.name = f"tokens (budget {budget}, {'packed' if packed else 'padded'})"
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
        epoch, offset = divmod(position, self.length)
        number, place = divmod(offset, self.window)
        name = (seed, epoch, number)
        if name not in self._kept:
            while len(self._kept) >= self._keep:
                del self._kept[next(iter(self._kept))]
            self._kept[name] = self._sorted(seed, epoch, number)
        return self._kept[name], place

    def _sorted(self, seed: int, epoch: int, number: int) -> Window:
        start = number * self.window
        stop = min(start + self.window, self.length)
        indices = Permutation(self.length, seed, epoch)(np.arange(start, stop))
        tokens = np.asarray(self.lengths[indices], dtype=np.int64)
        order = np.argsort(tokens, kind="stable")
        sizes = (packed_runs if self.packed else padded_runs)(
            tokens[order].tolist(), self.budget
        )
        runs = np.split(order, np.cumsum([len(r) for r in sizes])[:-1])
        if self.packed:
            runs = [order[np.array(r)] for r in sizes]
        key = key_of("runs", seed, epoch)
        turn = Permutation(len(runs), key, number)(np.arange(len(runs)))
        runs = [runs[j] for j in turn.tolist()]
        order = np.concatenate(runs)
        ends = np.cumsum([len(r) for r in runs])
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
