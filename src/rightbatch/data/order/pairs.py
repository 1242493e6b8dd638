"""Batches of P classes with K examples each, for contrastive and metric learning."""

from __future__ import annotations

import hashlib
import warnings
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64

from rightbatch.core.errors import SettingError
from rightbatch.data.order.composition import Composition, Cursor, Cut, whole
from rightbatch.data.order.draws import augment
from rightbatch.data.order.epochs import Walk
from rightbatch.data.order.labels import members
from rightbatch.data.order.permutation import key_of, keys_at, permute


class Pairs(Composition):
    """Every batch holds P different classes with K different examples of each.

    P is ``batch_size / each``. With ``each=2`` every example has one positive in its
    batch, and all others are negatives. Classes come around equally often: each once
    in a lap, in a new order every lap; a class's own examples come in the order of a
    permutation, all of them before any comes again but for filling the last K. No
    example and no class is twice in a batch. Ranks and micro-batches get whole classes:
    a ``micro_batch`` below K is taken for K.

    Args:
        labels: Class of each example, shape ``(examples,)``.
        each: K, examples of a class in a batch, at least 2.
        small: Classes with fewer than K examples: ``"leave out"`` (a warning says how
            many) or ``"repeat"`` their examples.

    Raises:
        SettingError: No class has K examples.

    Example:
        >>> import torch, rightbatch as rb
        >>> y = torch.arange(100) // 10
        >>> stream = rb.BatchStream((y,), batch_size=8, order=rb.data.Pairs(y, each=2))
        >>> (labels,) = next(iter(stream))
        >>> len(labels.unique())
        4

    References:
        Hermans, Beyer and Leibe 2017, arXiv:1703.07737 (P x K batches).
    """

    covers = False

    def __init__(
        self,
        labels: Any,
        each: int = 2,
        *,
        small: Literal["leave out", "repeat"] = "leave out",
    ) -> None:
        if whole(each, "each") < 2:
            raise SettingError(
                "a class needs at least 2 examples in a batch",
                seen=f"each={each}",
                why="an example without another of its class has no positive",
                fix="each=2 or more",
            )
        if small not in ("leave out", "repeat"):
            raise SettingError(
                "small must be 'leave out' or 'repeat'", seen=f"small={small!r}"
            )
        self.labels, self._members, sizes = members(labels)
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        kept = sizes >= each if small == "leave out" else sizes >= 1
        if not kept.any():
            raise SettingError(
                f"no class has {each} examples",
                seen=f"the largest has {int(sizes.max())}",
                fix=f"each={max(2, int(sizes.max()))} or less, or small='repeat'",
            )
        if not kept.all():
            out = int((~kept).sum())
            warnings.warn(
                f"{out} of {len(kept)} classes have fewer than {each} examples and are "
                f"left out, {int(sizes[~kept].sum())} examples in all; "
                "small='repeat' keeps them",
                stacklevel=2,
            )
        self.sizes, self._starts, self._all = sizes[kept], starts[kept], sizes
        self._order: Walk | None = None  # of classes, an epoch of it for each lap
        self.each, self.length = each, int(sizes.sum())
        self._numbers = np.flatnonzero(kept)
        self.name = f"pairs (K = {each}, small classes: {small})"

    @property
    def classes(self) -> int:
        """Classes that take part."""
        return len(self.sizes)

    def start(self) -> tuple[int, ...]:
        """Lap, place in its order, and the classes a batch took from it in advance."""
        return (0, 0)

    def accepts(self, extra: tuple[int, ...]) -> bool:
        """A lap, a place in it, and some classes."""
        return len(extra) >= 2 and all(e < self.classes for e in extra[1:])

    def check(self, batch_size: int) -> None:
        """A batch is a whole number of classes, all different.

        Raises:
            SettingError: It is not.
        """
        if batch_size % self.each:
            raise SettingError(
                f"a batch of {batch_size} is no whole number of classes",
                seen=f"batch_size={batch_size}, each={self.each}",
                fix=f"batch_size={max(1, batch_size // self.each) * self.each}",
            )
        if batch_size // self.each > self.classes:
            raise SettingError(
                f"a batch of {batch_size} needs {batch_size // self.each} classes",
                seen=f"{self.classes} classes, {self.each} examples of each",
                why="a class would be twice in the batch",
                fix=f"batch_size={self.classes * self.each} or less",
            )

    def cut(
        self, seed: int, cursor: Cursor, batch_size: int, stop: int
    ) -> tuple[Cut, Cursor]:
        """The next P classes, with the next K examples of each."""
        chosen, laps, extra = self._classes(seed, cursor.extra, batch_size // self.each)
        chosen, laps = np.repeat(chosen, self.each), np.repeat(laps, self.each)
        sizes = self.sizes[chosen]
        visits = -(-sizes // self.each)  # that it takes to see all of a class
        round_, visit = np.divmod(laps, visits)
        slot = np.tile(np.arange(self.each), batch_size // self.each)
        place = (visit * self.each + slot) % sizes
        with np.errstate(over="ignore"):
            own = keys_at(key_of("pairs", seed), chosen)
            place = permute(place, sizes, keys_at(own, round_))
        indices = self._members[self._starts[chosen] + place]
        cut = Cut(
            indices=indices,
            seeds=keys_at(keys_at(keys_at(augment(seed), indices), laps), slot),
            groups=self._numbers[chosen],
            unit=self.each,
        )
        return cut, cursor.behind(cursor.position + batch_size, extra)

    def alike(self, batch_size: int, cursor: Cursor, most: int) -> int:
        """Runs of whole classes."""
        classes = batch_size // self.each
        return max(d for d in range(1, most + 1) if classes % d == 0)

    def fingerprint(self) -> dict[str, Any]:
        """Members of the classes."""
        digest = hashlib.blake2b(self._members.tobytes(), digest_size=8).hexdigest()
        return {
            "members": digest,
            "sizes": hashlib.blake2b(self._all.tobytes(), digest_size=8).hexdigest(),
            "classes": self.classes,
        }

    def _classes(
        self, seed: int, extra: tuple[int, ...], wanted: int
    ) -> tuple[Int64[np.ndarray, " p"], Int64[np.ndarray, " p"], tuple[int, ...]]:
        """So many different classes, the lap of each, and the state behind them."""
        lap, at, *early = extra
        key = key_of("classes", seed)
        if self._order is None or self._order.seed != key:
            self._order = Walk(self.classes, key)
        ahead = np.array(early, dtype=np.int64)
        chosen = laps = np.empty(0, dtype=np.int64)
        while len(chosen) < wanted:
            # Those that the batch has, or took in advance, are passed over.
            stop = min(self.classes, at + wanted + len(ahead))
            order = self._order(lap * self.classes + at, lap * self.classes + stop)
            free = np.flatnonzero(~np.isin(order, np.concatenate([chosen, ahead])))
            free = free[: wanted - len(chosen)]
            chosen = np.concatenate([chosen, order[free]])
            laps = np.concatenate([laps, np.full(len(free), lap)])
            at = at + int(free[-1]) + 1 if len(chosen) == wanted else stop
            if at < self.classes:
                continue
            lap, at = lap + 1, 0
            # The batch is filled up with the first of the next lap.
            ahead = self._early(lap, chosen, wanted - len(chosen))
            chosen = np.concatenate([chosen, ahead])
            laps = np.concatenate([laps, np.full(len(ahead), lap)])
        return chosen, laps, (lap, at, *ahead.tolist())

    def _early(
        self, lap: int, present: Int64[np.ndarray, " p"], wanted: int
    ) -> Int64[np.ndarray, " q"]:
        """The first classes of a lap that are not in the batch yet: they fill it up.

        They will be passed over when the lap itself comes to them.
        """
        assert self._order is not None
        start = lap * self.classes
        stop = start + min(self.classes, wanted + len(present))
        order = self._order(start, stop)
        return order[~np.isin(order, present)][:wanted]
