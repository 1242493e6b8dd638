"""Batches of P classes with K examples each, for contrastive and metric learning."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np

from rightbatch.core.errors import SettingError
from rightbatch.core.whole_number import whole_number
from rightbatch.data.order.distinct import take_distinct
from rightbatch.data.order.draws import augment
from rightbatch.data.order.epochs import ShuffledEpochs
from rightbatch.data.order.labels import members
from rightbatch.data.order.order import Cursor, Cut, Order, digest_of
from rightbatch.data.order.permutation import key_of, keys_at, permute


class Pairs(Order):
    """Every batch holds P different classes with K different examples of each.

    P is ``batch_size / each``. With ``each=2`` every example has one positive in its
    batch, and all others are negatives. Classes come around equally often: each once
    in a lap, in a new order every lap; a class's own examples come in the order of a
    permutation, all of them before any comes again but for filling the last K. No
    example and no class is twice in a batch: a class that is in it already waits for
    the next. Ranks and micro-batches get whole classes: a ``micro_batch`` below K is
    taken for K.

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
        if whole_number(each, "each") < 2:
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
        _, self._members, sizes = members(labels)
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
        self.each, self.length = each, int(sizes.sum())
        self.name = f"pairs (K = {each}, small classes: {small})"
        self._all_sizes = sizes
        # Of the classes that take part: number, examples, first place in `_members`.
        self._numbers, self._sizes = np.flatnonzero(kept), sizes[kept]
        self._starts = (np.cumsum(sizes) - sizes)[kept]
        self._keys = np.arange(len(self._sizes))[:, None]  # each class has its own
        self._order: ShuffledEpochs | None = None  # of classes, an epoch for each lap

    @property
    def classes(self) -> int:
        """Classes that take part."""
        return len(self._sizes)

    def moved(self, extra: tuple[int, ...]) -> tuple[int, ...]:
        """No class waits after a jump."""
        return ()

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
        key = key_of("classes", seed)
        if self._order is None or self._order.seed != key:
            self._order = ShuffledEpochs(self.classes, key)
        chosen, positions, waiting = take_distinct(
            self._order,
            self._keys,
            cursor.position // self.each,
            cursor.extra,
            batch_size // self.each,
            2 * self.classes,
        )
        laps = np.repeat(positions // self.classes, self.each)
        chosen = np.repeat(chosen, self.each)
        sizes = self._sizes[chosen]
        visits = -(-sizes // self.each)  # that it takes to see all of a class
        round_, visit = np.divmod(laps, visits)
        slot = np.tile(np.arange(self.each), batch_size // self.each)
        place = (visit * self.each + slot) % sizes
        keys = keys_at(keys_at(key_of("pairs", seed), chosen), round_)
        indices = self._members[self._starts[chosen] + permute(place, sizes, keys)]
        cut = Cut(
            indices=indices,
            seeds=keys_at(keys_at(keys_at(augment(seed), indices), laps), slot),
            groups=self._numbers[chosen],
            unit=self.each,
        )
        return cut, cursor.behind(cursor.position + batch_size, waiting)

    def equal_groups(self, batch_size: int, cursor: Cursor, most: int) -> int:
        """Groups of whole classes."""
        classes = batch_size // self.each
        return max(d for d in range(1, most + 1) if classes % d == 0)

    def fingerprint(self) -> dict[str, Any]:
        """A digest of which examples are in which class."""
        digest = digest_of(self._members, self._all_sizes)
        return {"members": digest, "classes": self.classes}
