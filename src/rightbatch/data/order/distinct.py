"""Batches in which no two examples share a key: no false negatives."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from rightbatch.core.errors import SettingError
from rightbatch.data.order.draws import augment
from rightbatch.data.order.epochs import ShuffledEpochs
from rightbatch.data.order.order import Cursor, Cut, Order, digest_of, unique
from rightbatch.data.order.permutation import keys_at

AHEAD = 8  # batches to look through where several keys hinder each other [assumed]


class Distinct(Order):
    """No two examples of a batch share a key, on whatever ranks they are.

    For losses that take the other examples of a batch as negatives: with the same
    question, product or text twice in a batch, one of them would be pushed away from
    its own positive. The stream's order is that of a shuffled one; an example whose key
    is in the batch already waits for the next. So batches are whole and nothing is lost
    or repeated: an epoch's last waiting examples come at the start of the next. With
    several keys to an example and batches near the most that fit, a step may be short.

    Args:
        keys: Key of each example, shape ``(examples,)``: integers, strings, …; or
            several, shape ``(examples, keys)``, of which none may meet any other's
            (such as question and answer of a pair).

    Raises:
        SettingError: There are no keys, or they have another shape.

    Example:
        >>> import torch, rightbatch as rb
        >>> questions = torch.arange(100) // 4  # each four times
        >>> order = rb.data.Distinct(questions)
        >>> stream = rb.BatchStream((questions,), batch_size=16, order=order)
        >>> all(len(q.unique()) == 16 for (q,) in stream)
        True

    References:
        Gao et al. 2021, arXiv:2104.08821 (other examples of a batch as negatives).
    """

    name, covers = "distinct", False

    def __init__(self, keys: Any) -> None:
        try:
            values = np.asarray(keys)
        except ValueError as error:
            raise SettingError(
                "every example must have as many keys", seen=str(error)
            ) from error
        if values.ndim not in (1, 2) or not values.size:
            raise SettingError(
                "keys must have an axis of examples, and at most one of keys",
                seen=f"shape {values.shape}",
            )
        self.length = len(values)
        _, inverse, _ = unique(values, "keys")
        self._keys = inverse.reshape(self.length, -1).astype(np.int64)
        # Twice in one example is no conflict: count examples, not places.
        each = np.sort(self._keys, axis=1)
        new = np.ones(each.shape, dtype=bool)
        new[:, 1:] = each[:, 1:] != each[:, :-1]
        self._most_frequent = int(np.bincount(each[new]).max())
        self.largest = self.length // self._most_frequent
        self.steady = self._keys.shape[1] == 1
        self._order: ShuffledEpochs | None = None

    def check(self, batch_size: int) -> None:
        """The most frequent key must not come faster than one in a batch.

        Raises:
            SettingError: It would.
        """
        if batch_size > self.largest:
            raise SettingError(
                f"a batch of {batch_size} cannot be without repeated keys",
                seen=f"one key is in {self._most_frequent} of {self.length} examples",
                why="a batch holds it once, so ever more of them would have to wait",
                fix=f"batch_size={self.largest} or less, or leave out some of its "
                "examples",
            )

    def cut(
        self, seed: int, cursor: Cursor, batch_size: int, stop: int
    ) -> tuple[Cut, Cursor]:
        """Those that wait and the next of the order, as far as they fit together."""
        if self._order is None or self._order.seed != seed:
            self._order = ShuffledEpochs(self.length, seed)
        # With one key an epoch always holds a whole batch (`check`), and two epochs'
        # length a whole epoch. With several those chosen may stand in everybody's way:
        # then a step is short.
        ahead = 2 * self.length
        if self._keys.shape[1] > 1:
            room = AHEAD * batch_size
            ahead = min(ahead, room) if len(cursor.extra) < room else 0
        indices, positions, waiting = take_distinct(
            self._order, self._keys, cursor.position, cursor.extra, batch_size, ahead
        )
        cut = Cut(indices=indices, seeds=keys_at(augment(seed), positions))
        return cut, cursor.behind(cursor.position + len(indices), waiting)

    def moved(self, extra: tuple[int, ...]) -> tuple[int, ...]:
        """Nobody waits: what is left behind by a jump is left out."""
        return ()

    def fingerprint(self) -> dict[str, Any]:
        """A digest of the keys."""
        return {"keys": digest_of(*self._keys.T)}


def take_distinct(
    order: ShuffledEpochs,
    keys: Int64[np.ndarray, "items keys"],
    taken_before: int,
    waiting: tuple[int, ...],
    count: int,
    ahead: int,
) -> tuple[Int64[np.ndarray, " taken"], Int64[np.ndarray, " taken"], tuple[int, ...]]:
    """The next items of an endless order that share no key; the others wait.

    Args:
        order: Of the items.
        keys: Of each item.
        taken_before: Items taken since the start of the order.
        waiting: Positions that were passed over, ascending; they come first.
        count: How many to take.
        ahead: Positions to look through at most, beside those that wait.

    Returns:
        The items, their positions, and the positions that wait now.
    """
    held = np.array(waiting, dtype=np.int64)
    first = taken_before + len(held)  # so many were looked at
    reach = min(count, ahead)
    while True:
        positions = np.concatenate([held, np.arange(first, first + reach)])
        items = np.concatenate([order.at(held), order(first, first + reach)])
        taken = np.flatnonzero(compatible(keys[items]))[:count]
        if len(taken) == count or reach == ahead:
            break
        reach = min(2 * reach + len(held), ahead)
    passed = np.ones(len(positions), dtype=bool)
    passed[taken] = False
    passed[max(len(held), int(taken[-1]) + 1) :] = False  # not looked at
    return items[taken], positions[taken], tuple(positions[passed].tolist())


def compatible(keys: Int64[np.ndarray, "n keys"]) -> Bool[np.ndarray, " n"]:
    """Which rows can be together: each, unless an earlier one of them is in its way.

    Rows whose keys are nobody else's are taken at once; only the others are looked at
    one after another.
    """
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    shared = (counts[inverse] > 1).reshape(keys.shape).any(1)
    taken = np.logical_not(shared)
    used: set[int] = set()
    for row in np.flatnonzero(shared).tolist():
        row_keys = keys[row].tolist()
        if used.isdisjoint(row_keys):
            used.update(row_keys)
            taken[row] = True
    return taken
