"""Batches with chosen numbers of each stratum, and weights that keep them unbiased."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from rightbatch.core.errors import SettingError
from rightbatch.core.whole_number import whole_number
from rightbatch.data.order.allocation import (
    Counts,
    allocate,
    allocation_table,
    importance_weights,
)
from rightbatch.data.order.draws import augment
from rightbatch.data.order.labels import check_shares, members
from rightbatch.data.order.order import Cursor, Cut, Order, digest_of
from rightbatch.data.order.permutation import key_of, keys_at, permute

RULES = ("proportional", "neyman", "balanced")
UNOBSERVED = 100  # steps after which missing noise is warned of [assumed]
UNIT = 1 << 20  # measured noise is kept in integers: its largest is so many [assumed]


class Strata(Order):
    """Every batch holds k_s examples of stratum s, weighted to be unbiased.

    Where a rare stratum carries much of the gradient, a batch that always holds some of
    it has far less noise than a random one, for the same objective: each example is
    weighted by w = pi_s B / k_s, and the stream yields ``(batch, weights)``; the loss
    is ``(weights * losses).mean()``. Each stratum is a fixed stream of its own: within
    its epochs nothing is lost or repeated, and a small one comes around more often.

    Args:
        labels: Stratum of each example: integers, strings, …, shape ``(examples,)``. Of
            measured numbers ``np.digitize(y, np.quantile(y, [0.25, 0.5, 0.75]))``.
        counts: ``"proportional"`` to the strata's sizes, at least one each;
            ``"neyman"``: also to their measured gradient noise (`StratumMeter`, or
            `observe`), chosen again whenever it is measured, proportional until then; a
            mapping from label to a fixed count, the other strata sharing the rest; or
            ``"balanced"``: equal counts **without weights**, which is another
            objective: that of a data set in which all strata are equally frequent.
        multiple: Make counts multiples of this where possible: with 8, a
            `NoiseMonitor` compares eight groups of equal composition.

    Raises:
        SettingError: Labels or counts make no sense.

    Example:
        >>> import torch, rightbatch as rb
        >>> x, y = torch.randn(1000, 2), (torch.arange(1000) % 100 == 0).long()
        >>> strata = rb.data.Strata(y, counts={1: 8})
        >>> stream = rb.BatchStream((x, y), batch_size=64, order=strata)
        >>> (inputs, labels), weights = next(iter(stream))
        >>> int(labels.sum()), round(float(weights.mean()), 6)
        (8, 1.0)

    References:
        Zhao and Zhang 2014, arXiv:1405.3080; Neyman 1934, "On the two different
        aspects of the representative method".
    """

    covers = False

    def __init__(
        self,
        labels: Any,
        counts: str | Mapping[Any, int] = "proportional",
        *,
        multiple: int = 1,
    ) -> None:
        self.labels, self._members, self.sizes = members(labels)
        self._starts = np.cumsum(self.sizes) - self.sizes
        self.length, self.multiple = (
            int(self.sizes.sum()),
            whole_number(multiple, "multiple"),
        )
        self._chosen: tuple[Any, Counts] | None = None
        self.rule = counts if isinstance(counts, str) else "fixed"
        self._fixed = {} if isinstance(counts, str) else self._checked(counts)
        if isinstance(counts, str) and counts not in RULES:
            raise SettingError(
                f"counts must be one of {', '.join(RULES)}, or a mapping",
                seen=f"counts={counts!r}",
                fix='counts="neyman", or counts={1: 8} for 8 of label 1',
            )
        if self._fixed and multiple > 1:
            raise SettingError(
                "multiple has no effect on fixed counts",
                seen=f"counts={counts!r}, multiple={multiple}",
                fix=f"counts that are multiples of {multiple}, and multiple left out",
            )
        self._observed: tuple[int, ...] | None = None
        self._warned = False
        self.name = f"strata ({self.rule})"

    def observe(self, stds: Sequence[float]) -> None:
        """Say how noisy each stratum's gradient is; holds from the next step on.

        To be called on all ranks with the same values. What was observed travels with
        the stream's state.

        Args:
            stds: Standard deviation of a single example's gradient in each stratum
                (root of the trace of its covariance), in the order of ``labels``. Any
                common scale.

        Raises:
            SettingError: Negative, not finite, of another length, or all zero; or the
                counts are not chosen by Neyman's rule.
        """
        if self.rule != "neyman":
            raise SettingError(
                "observed noise has no effect on these strata",
                seen=f"counts are {self.rule}",
                fix='Strata(labels, counts="neyman")',
            )
        values = check_shares(stds, len(self.sizes), "noise of the strata")
        scaled = np.maximum(np.rint(values / values.max() * UNIT), 1)
        observed = tuple(int(v) for v in scaled)
        if observed != self._observed:
            self._observed = observed
            self.version += 1

    def counts_at(self, batch_size: int, cursor: Cursor | None = None) -> Counts:
        """How many examples of each stratum a batch of this size has now."""
        noise = self._noise(self.start() if cursor is None else cursor.extra)
        if self._chosen is None or self._chosen[0] != (batch_size, noise):
            counts = self._choose(batch_size, np.array(noise, dtype=np.float64))
            self._chosen = (batch_size, noise), counts
        return self._chosen[1].copy()

    def explain(self, batch_size: int, cursor: Cursor | None = None) -> str:
        """What a batch holds, and how often an example then comes in an epoch.

        An example of a small stratum that comes a hundred times an epoch is soon known
        by heart, however right its weight: a smaller count is the remedy.

        Args:
            batch_size: Of a step, over all ranks.
            cursor: Where the stream stands; default: by the noise observed so far.

        Example:
            >>> import rightbatch as rb
            >>> strata = rb.data.Strata([0] * 990 + [1] * 10, counts={1: 8})
            >>> print(strata.explain(64))
                 stratum    examples  in a batch    weight  seen in an epoch
                       0         990          56      1.13       0.884 times
                       1          10           8      0.08        12.5 times
        """
        counts = self.counts_at(batch_size, cursor)
        weighted = self.rule != "balanced"
        return allocation_table(self.labels, self.sizes, counts, weighted=weighted)

    def _choose(self, batch_size: int, noise: Float64[np.ndarray, " strata"]) -> Counts:
        """Counts by the rule."""
        if self.rule == "balanced":
            wanted = np.ones(len(self.sizes))
        elif self.rule == "neyman":
            wanted = self.sizes * noise
        else:
            wanted = self.sizes.astype(np.float64)
        if not self._fixed:
            # Two can differ, and so be measured; one cannot.
            least = 2 if self.rule == "neyman" else 1
            return allocate(wanted, batch_size, self.sizes, self.multiple, least)
        counts = np.zeros(len(self.sizes), dtype=np.int64)
        for stratum, count in self._fixed.items():
            counts[stratum] = count
        others = np.flatnonzero(counts == 0)
        fixed = int(counts.sum())
        most = int(self.sizes[others].sum())
        if not len(others) <= batch_size - fixed <= most:
            raise SettingError(
                f"a batch of {batch_size} does not fit the fixed counts",
                seen=f"fixed counts sum to {fixed}; {len(others)} other strata need "
                f"one each or more, and hold {most} examples",
                fix=f"batch_size from {fixed + len(others)} to {fixed + most}",
            )
        if len(others):
            rest = batch_size - fixed
            counts[others] = allocate(wanted[others], rest, self.sizes[others])
        return counts

    def start(self) -> tuple[int, ...]:
        """Draws from each stratum so far, then the noise observed of each."""
        return (0,) * len(self.sizes) + (UNIT,) * len(self.sizes)

    def check(self, batch_size: int) -> None:
        """Every stratum needs one.

        Raises:
            SettingError: The batch is too small, or larger than the data set.
        """
        self.counts_at(batch_size)

    def cut(
        self, seed: int, cursor: Cursor, batch_size: int, stop: int
    ) -> tuple[Cut, Cursor]:
        """The next k_s examples of every stratum, evenly interleaved."""
        strata = len(self.sizes)
        counts = self.counts_at(batch_size, cursor)
        if cursor.step == UNOBSERVED:
            self._warn_unobserved(cursor)
        drawn = np.array(cursor.extra[:strata], dtype=np.int64)
        group = np.repeat(np.arange(strata), counts)
        place = np.arange(batch_size) - np.repeat(np.cumsum(counts) - counts, counts)
        # Interleaved, so that any part of the batch has nearly its composition: micro-
        # batches, ranks, and the groups that measure the noise.
        turn = np.argsort((place + 0.5) / counts[group], kind="stable")
        group, place = group[turn], place[turn]
        number = drawn[group] + place
        epoch, offset = np.divmod(number, self.sizes[group])
        keys = keys_at(keys_at(key_of("strata", seed), group), epoch)
        offset = permute(offset, self.sizes[group], keys)
        weights = importance_weights(self.sizes, counts)[group].astype(np.float32)
        cut = Cut(
            indices=self._members[self._starts[group] + offset],
            seeds=keys_at(keys_at(augment(seed), group), number),
            weights=None if self.rule == "balanced" else weights,
            groups=group,
        )
        extra = tuple((drawn + counts).tolist()) + self._noise(cursor.extra)
        return cut, cursor.behind(cursor.position + batch_size, extra)

    def _warn_unobserved(self, cursor: Cursor) -> None:
        unknown = set(self._noise(cursor.extra)) == {UNIT}
        if self.rule == "neyman" and unknown and not self._warned:
            self._warned = True
            warnings.warn(
                f"counts='neyman', but after {UNOBSERVED} steps the noise of the "
                "strata is not known, so counts are in proportion to their sizes: call "
                "a rb.data.StratumMeter before each backward pass, or strata.observe; "
                "a meter needs two examples of each stratum in a micro-batch, as with "
                "multiple=2 * ranks * micro-batches per step",
                stacklevel=2,
            )

    def equal_groups(self, batch_size: int, cursor: Cursor, most: int) -> int:
        """So many groups that each have the batch's composition exactly."""
        common = int(np.gcd.reduce(self.counts_at(batch_size, cursor)))
        return max(d for d in range(1, most + 1) if common % d == 0)

    def saved(self, extra: tuple[int, ...]) -> tuple[int, ...]:
        """With the noise observed since the last step."""
        return extra[: len(self.sizes)] + self._noise(extra)

    def loaded(self) -> None:
        """The state's own noise holds."""
        self._observed = None
        self.version += 1

    def fingerprint(self) -> dict[str, Any]:
        """Which examples are in which stratum, and the rule."""
        return {
            "members": digest_of(self._members),
            "sizes": self.sizes.tolist(),
            "rule": self.rule,
            "fixed": sorted(self._fixed.items()),
            "multiple": self.multiple,
        }

    def _noise(self, extra: tuple[int, ...]) -> tuple[int, ...]:
        return extra[len(self.sizes) :] if self._observed is None else self._observed

    def _checked(self, counts: Mapping[Any, int]) -> dict[int, int]:
        """Fixed counts by stratum number."""
        numbers = {label: number for number, label in enumerate(self.labels)}
        fixed = {}
        for label, count in counts.items():
            if label not in numbers:
                raise SettingError(
                    f"no example has label {label!r}",
                    seen=f"labels {', '.join(map(str, self.labels[:8]))}",
                    fix="fixed counts for labels that occur",
                )
            number, count = numbers[label], whole_number(count, "count", 0)
            size = int(self.sizes[number])
            if not 1 <= count <= size:
                raise SettingError(
                    f"label {label!r} cannot have {count} examples in every batch",
                    seen=f"it has {size} in all",
                    why="every batch would hold the same example twice"
                    if count > size
                    else "a stratum that is left out makes the gradient biased",
                    fix=f"a count from 1 to {size}",
                )
            fixed[number] = count
        return fixed
