"""Batches in which no two examples share a key: no false negatives."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from rightbatch.core.errors import SettingError
from rightbatch.data.order.composition import Composition, Cursor, Cut, unique
from rightbatch.data.order.draws import augment
from rightbatch.data.order.permutation import Permutation, keys_at

AHEAD = 8  # batches to look through where several keys hinder each other [assumed]


class Distinct(Composition):
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
        >>> from rightbatch.data.order.distinct import Distinct
        >>> questions = torch.arange(100) // 4  # each four times
        >>> order = Distinct(questions)
        >>> stream = rb.BatchStream((questions,), batch_size=16, order=order)
        >>> all(len(q.unique()) == 16 for (q,) in stream)
        True

    References:
        Gao et al. 2021, arXiv:2104.08821 (other examples of a batch as negatives).
    """

    name, covers = "distinct", False

    def __init__(self, keys: Any) -> None:
        try:
            found = np.asarray(keys)
        except ValueError as error:
            raise SettingError(
                "every example must have as many keys", seen=str(error)
            ) from error
        if found.ndim not in (1, 2) or not found.size:
            raise SettingError(
                "keys must have an axis of examples, and at most one of keys",
                seen=f"shape {found.shape}",
            )
        self.length = len(found)
        _, inverse, _ = unique(found, "keys")
        self._keys = inverse.reshape(self.length, -1).astype(np.int64)
        # Twice in one example is no conflict: count examples, not places.
        each = np.sort(self._keys, axis=1)
        new = np.ones(each.shape, dtype=bool)
        new[:, 1:] = each[:, 1:] != each[:, :-1]
        counts = np.bincount(each[new])
        self._common = int(counts.max())
        self._largest = self.length // self._common
        self.steady = self._keys.shape[1] == 1

    def accepts(self, extra: tuple[int, ...]) -> bool:
        """Places of the order that wait."""
        return extra == tuple(sorted(set(extra)))

    def check(self, batch_size: int) -> None:
        """The most frequent key must not come faster than one in a batch.

        Raises:
            SettingError: It would.
        """
        if batch_size > self._largest:
            raise SettingError(
                f"a batch of {batch_size} cannot be without repeated keys",
                seen=f"one key is in {self._common} of {self.length} examples",
                why="a batch holds it once, so ever more of them would have to wait",
                fix=f"batch_size={self._largest} or less, or leave out some of its "
                "examples",
            )

    def cut(
        self, seed: int, cursor: Cursor, batch_size: int, stop: int
    ) -> tuple[Cut, Cursor]:
        """Those that wait and the next of the order, as far as they fit together."""
        waiting = np.array(cursor.extra, dtype=np.int64)
        drawn = cursor.position + len(waiting)  # so many were looked at
        # With one key an epoch always holds a whole batch (`check`), and two epochs'
        # length a whole epoch. With several those chosen may stand in everybody's way:
        # then a step is short.
        most = 2 * self.length
        if self._keys.shape[1] > 1:
            room = AHEAD * batch_size
            most = min(most, room) if len(waiting) < room else 0
        reach = min(batch_size, most)
        while True:
            places = np.concatenate([waiting, np.arange(drawn, drawn + reach)])
            indices = self._examples(seed, places)
            taken = np.flatnonzero(compatible(self._keys[indices]))[:batch_size]
            if len(taken) == batch_size or reach == most:
                break
            reach = min(2 * reach + len(waiting), most)
        left = np.ones(len(places), dtype=bool)
        left[taken] = False
        left[max(len(waiting), int(taken[-1]) + 1) :] = False  # not looked at
        cut = Cut(
            indices=indices[taken],
            seeds=keys_at(augment(seed), places[taken]),
        )
        extra = tuple(places[left].tolist())
        return cut, cursor.behind(cursor.position + len(taken), extra)

    def moved(self, extra: tuple[int, ...]) -> tuple[int, ...]:
        """Nobody waits: what is left behind by a jump is left out."""
        return ()

    def fingerprint(self) -> dict[str, Any]:
        """A digest of the keys."""
        digest = hashlib.blake2b(self._keys.tobytes(), digest_size=8)
        return {"keys": digest.hexdigest()}

    def _examples(
        self, seed: int, places: Int64[np.ndarray, " n"]
    ) -> Int64[np.ndarray, " n"]:
        """The examples at places of the shuffled order, over all epochs."""
        found = np.empty(len(places), dtype=np.int64)
        epochs, offsets = np.divmod(places, self.length)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            found[here] = Permutation(self.length, seed, epoch)(offsets[here])
        return found


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
        own = keys[row].tolist()
        if used.isdisjoint(own):
            used.update(own)
            taken[row] = True
    return taken
