"""Examples drawn with given probabilities, unbiased by importance weights."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from rightbatch.core.errors import SettingError
from rightbatch.data.order.composition import Composition, Cursor, Cut
from rightbatch.data.order.draws import augment
from rightbatch.data.order.labels import finite
from rightbatch.data.order.permutation import key_of, keys_at


class Weighted(Composition):
    """Independent draws with probability p_i in proportion to a weight.

    Like ``WeightedRandomSampler``, but of any length (it stops at 2**24), the same on
    any number of ranks, resumable, and unbiased: each example comes with the importance
    weight 1 / (N p_i). For a given number of each class in every batch, which has less
    noise, see `Strata`.

    Args:
        weights: One for each example, shape ``(examples,)``, none negative.
        objective: ``"unweighted"``: importance weights keep the mean over the data set
            the objective (examples of weight 0 must then not exist); ``"weighted"``:
            no importance weights, and the objective is the weighted mean.

    Raises:
        SettingError: Weights are negative, NaN or all zero.

    Example:
        >>> import torch, rightbatch as rb
        >>> from rightbatch.data.order.weighted import Weighted
        >>> order = Weighted([1.0, 2.0, 3.0, 4.0])
        >>> stream = rb.BatchStream((torch.arange(4),), batch_size=2, order=order)
        >>> (indices,), weights = next(iter(stream))
    """

    covers = False

    def __init__(self, weights: Any, objective: str = "unweighted") -> None:
        weights = np.asarray(weights)
        found = finite(weights, weights.size, "weights")
        if objective not in ("unweighted", "weighted"):
            raise SettingError(
                "objective must be 'unweighted' or 'weighted'",
                seen=f"objective={objective!r}",
            )
        if objective == "unweighted" and not found.all():
            raise SettingError(
                f"{int((found == 0).sum())} examples have weight 0",
                why="they are never drawn, so no weight can make up for them",
                fix="a small positive weight, or objective='weighted'",
            )
        self.length, self.objective = len(found), objective
        self._upto = np.cumsum(found)
        self._weights = found / self._upto[-1]
        self.name = f"weighted (of the {objective} mean)"

    def cut(
        self, seed: int, cursor: Cursor, batch_size: int, stop: int
    ) -> tuple[Cut, Cursor]:
        """The next draws."""
        after = cursor.position + batch_size
        positions = np.arange(cursor.position, after)
        words = keys_at(key_of("weighted", seed), positions)
        uniform = (words >> np.uint64(11)) * 2.0**-53 * self._upto[-1]
        indices = np.searchsorted(self._upto, uniform, side="right")
        indices = np.minimum(indices, self.length - 1)
        weights = 1 / (self.length * self._weights[indices])
        cut = Cut(
            indices=indices,
            seeds=keys_at(augment(seed), positions),
            weights=weights.astype(np.float32)
            if self.objective == "unweighted"
            else None,
        )
        return cut, cursor.behind(after)

    def fingerprint(self) -> dict[str, Any]:
        """A digest of the weights."""
        digest = hashlib.blake2b(self._weights.tobytes(), digest_size=8)
        return {"weights": digest.hexdigest()}
