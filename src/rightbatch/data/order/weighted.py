"""Examples drawn with given probabilities, unbiased by importance weights."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from rightbatch.core.errors import SettingError
from rightbatch.data.order.draws import augment
from rightbatch.data.order.labels import check_shares
from rightbatch.data.order.order import Cursor, Cut, Order, digest_of
from rightbatch.data.order.permutation import key_of, keys_at, uniform


class Weighted(Order):
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
        >>> order = rb.data.Weighted([1.0, 2.0, 3.0, 4.0])
        >>> stream = rb.BatchStream((torch.arange(4),), batch_size=2, order=order)
        >>> (indices,), weights = next(iter(stream))
        >>> bool((weights == 10 / 4 / (indices + 1)).all())
        True

    References:
        Zhao and Zhang 2015, arXiv:1401.2753 (importance sampling).
    """

    covers = False

    def __init__(
        self,
        weights: Any,
        objective: Literal["unweighted", "weighted"] = "unweighted",
    ) -> None:
        weights = np.asarray(weights)
        shares = check_shares(weights, weights.size, "weights")
        if objective not in ("unweighted", "weighted"):
            raise SettingError(
                "objective must be 'unweighted' or 'weighted'",
                seen=f"objective={objective!r}",
            )
        if objective == "unweighted" and not shares.all():
            raise SettingError(
                f"{int((shares == 0).sum())} examples have weight 0",
                why="they are never drawn, so no weight can make up for them",
                fix="a small positive weight, or objective='weighted'",
            )
        self.length, self.objective = len(shares), objective
        self._cumulative = np.cumsum(shares)
        self._probabilities = shares / self._cumulative[-1]
        self.name = f"weighted (of the {objective} mean)"

    def cut(
        self, seed: int, cursor: Cursor, batch_size: int, stop: int
    ) -> tuple[Cut, Cursor]:
        """The next draws."""
        after = cursor.position + batch_size
        positions = np.arange(cursor.position, after)
        drawn = uniform(keys_at(key_of("weighted", seed), positions))
        places = drawn * self._cumulative[-1]
        indices = np.searchsorted(self._cumulative, places, side="right")
        indices = np.minimum(indices, self.length - 1)
        weights = None
        if self.objective == "unweighted":
            weights = 1 / (self.length * self._probabilities[indices])
            weights = weights.astype(np.float32)
        seeds = keys_at(augment(seed), positions)
        cut = Cut(indices=indices, seeds=seeds, weights=weights)
        return cut, cursor.behind(after)

    def fingerprint(self) -> dict[str, Any]:
        """A digest of the probabilities."""
        return {"weights": digest_of(self._probabilities)}
