"""Batches with chosen numbers of each stratum, and weights that keep them unbiased."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from rightbatch.core.errors import SettingError
from rightbatch.data.order.allocation import (
    Counts,
    allot,
    batch_variance,
    composition_table,
    importance_weights,
)
from rightbatch.data.order.composition import Composition, Cursor, Cut, whole
from rightbatch.data.order.draws import augment
from rightbatch.data.order.labels import finite, members, quantiles, rarest
from rightbatch.data.order.permutation import key_of, keys_at, permute

RULES = ("proportional", "neyman", "balanced")
UNOBSERVED = 100  # steps after which it is worth a word [assumed]
UNIT = 1 << 20  # measured noise is kept in integers: its largest is so many [assumed]


class Strata(Composition):
    """Every batch holds k_s examples of stratum s, weighted to be unbiased.

    Where a rare stratum carries much of the gradient, a batch that always holds some of
    it has far less noise than a random one, for the same objective: each example is
    weighted by w = pi_s B / k_s, and the stream yields ``(batch, weights)``; the loss
    is ``(weights * losses).mean()``. Each stratum is a fixed stream of its own: within
    its epochs nothing is lost or repeated, and a small one comes around more often.

    Args:
        labels: Stratum of each example: integers, strings, …, shape ``(examples,)``.
        counts: ``"proportional"`` to the strata's sizes, at least one each;
            ``"neyman"``: also to their measured gradient noise (`observe`), re-chosen
            whenever it is measured, proportional until then; a mapping from label to
            a fixed count, the other strata sharing the rest; or ``"balanced"``: equal
            counts **without weights**, which is another objective: that of a data set
            in which all strata are equally frequent.
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
        Zhao and Zhang 2014, arXiv:1405.3080; Neyman 1934.
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
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        self.length, self.multiple = int(self.sizes.sum()), whole(multiple, "multiple")
        self.version = 0
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
        self.metered = False  # whether somebody is going to observe
        self.name = f"strata ({self.rule})"

    @classmethod
    def by_quantiles(cls, values: Any, strata: int = 10, **options: Any) -> Strata:
        """Strata of a regression target: equally many examples of similar value.

        Args:
            values: Target of each example, shape ``(examples,)``; ties stay together.
            strata: How many, at most.
            options: As for the class.

        Raises:
            SettingError: A value is NaN or infinite.
        """
        return cls(quantiles(values, strata), **options)

    @classmethod
    def by_rarest_label(
        cls,
        labels: Any,
        counts: str | Mapping[Any, int] = "proportional",
        *,
        multiple: int = 1,
    ) -> Strata:
        """Strata of multi-label data: each example goes by its rarest positive label.

        Args:
            labels: Zeros and ones, shape ``(examples, labels)``; examples with none
                are stratum -1.
            counts: As for the class.
            multiple: As for the class.
        """
        return cls(rarest(labels), counts, multiple=multiple)

    def observe(self, stds: Sequence[float] | Mapping[Any, float]) -> None:
        """Say how noisy each stratum's gradient is; holds from the next step on.

        To be called on all ranks with the same values. What was observed travels with
        the stream's state.

        Args:
            stds: Standard deviation of a single example's gradient in each stratum
                (root of the trace of its covariance), in the order of ``labels`` or by
                label. Any common scale.

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
        if isinstance(stds, Mapping):
            missing = [label for label in self.labels if label not in stds]
            if missing:
                raise SettingError(
                    "the noise of every stratum must be told",
                    seen=f"nothing of {', '.join(map(str, missing[:5]))}",
                )
            stds = [stds[label] for label in self.labels]
        values = finite(stds, len(self.sizes), "noise of the strata")
        scaled = np.maximum(np.rint(values / values.max() * UNIT), 1)
        observed, self.metered = tuple(int(v) for v in scaled), True
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
            >>> strata = Strata([0] * 990 + [1] * 10, counts={1: 8})
            >>> print(strata.explain(64))
            stratum  examples  in a batch  weight  seen in an epoch
                  0       990          56    1.13       0.884 times
                  1        10           8    0.08        12.5 times
        """
        counts = self.counts_at(batch_size, cursor)
        weighted = self.rule != "balanced"
        return composition_table(self.labels, self.sizes, counts, weighted=weighted)

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
            return allot(wanted, batch_size, self.sizes, self.multiple, least)
        counts = np.zeros(len(self.sizes), dtype=np.int64)
        for stratum, count in self._fixed.items():
            counts[stratum] = count
        others = np.flatnonzero(counts == 0)
        rest = batch_size - int(counts.sum())
        most = int(self.sizes[others].sum())
        if not len(others) <= rest <= most:
            least = int(counts.sum()) + len(others)
            raise SettingError(
                f"a batch of {batch_size} does not fit the fixed counts",
                seen=f"fixed counts sum to {int(counts.sum())}; {len(others)} other "
                f"strata need one each or more, and hold {most} examples",
                fix=f"batch_size from {least} to {int(counts.sum()) + most}",
            )
        if len(others):
            counts[others] = allot(wanted[others], rest, self.sizes[others])
        return counts

    def variance(self, counts: Counts, stds: Float64[np.ndarray, " strata"]) -> float:
        """Trace of the covariance of a batch gradient of this composition."""
        return batch_variance(self.sizes, counts, stds)

    def start(self) -> tuple[int, ...]:
        """Draws from each stratum so far, then the noise observed of each."""
        return (0,) * len(self.sizes) + (UNIT,) * len(self.sizes)

    def check(self, batch_size: int) -> None:
        """Every stratum needs one."""
        self.counts_at(batch_size)

    def cut(
        self, seed: int, cursor: Cursor, batch_size: int, stop: int
    ) -> tuple[Cut, Cursor]:
        """The next k_s examples of every stratum, evenly interleaved."""
        strata = len(self.sizes)
        counts = self.counts_at(batch_size, cursor)
        if cursor.step == UNOBSERVED and not self.metered:
            self._tell_unobserved(cursor)
        drawn = np.array(cursor.extra[:strata], dtype=np.int64)
        group = np.repeat(np.arange(strata), counts)
        place = np.arange(batch_size) - np.repeat(np.cumsum(counts) - counts, counts)
        # Interleaved, so that any run of the batch has nearly its composition: micro-
        # batches, ranks, and the groups that measure the noise.
        turn = np.argsort((place + 0.5) / counts[group], kind="stable")
        group, place = group[turn], place[turn]
        number = drawn[group] + place
        epoch, offset = np.divmod(number, self.sizes[group])
        with np.errstate(over="ignore"):
            own = keys_at(key_of("strata", seed), group)
            offset = permute(offset, self.sizes[group], keys_at(own, epoch))
            seeds = keys_at(keys_at(augment(seed), group), number)
        weights = importance_weights(self.sizes, counts)[group].astype(np.float32)
        cut = Cut(
            indices=self._members[self._starts[group] + offset],
            seeds=seeds,
            weights=None if self.rule == "balanced" else weights,
            groups=group,
        )
        extra = tuple(int(d) for d in drawn + counts) + self._noise(cursor.extra)
        return cut, cursor.behind(cursor.position + batch_size, extra)

    def _tell_unobserved(self, cursor: Cursor) -> None:
        if self.rule == "neyman" and set(self._noise(cursor.extra)) == {UNIT}:
            self.metered = True  # said once
            warnings.warn(
                f"counts='neyman', but after {UNOBSERVED} steps no noise of the strata "
                "has been observed, so counts are in proportion to their sizes: call a "
                "rb.data.StratumMeter before each backward pass, or "
                "strata.observe",
                stacklevel=8,
            )

    def alike(self, batch_size: int, cursor: Cursor, most: int) -> int:
        """So many runs that each have the batch's composition exactly."""
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
        digest = hashlib.blake2b(self._members.tobytes(), digest_size=8).hexdigest()
        return {
            "members": digest,
            "sizes": self.sizes.tolist(),
            "rule": self.rule,
            "fixed": sorted(self._fixed.items()),
            "multiple": self.multiple,
        }

    def _noise(self, extra: tuple[int, ...]) -> tuple[int, ...]:
        return extra[len(self.sizes) :] if self._observed is None else self._observed

    def _checked(self, counts: Mapping[Any, int]) -> dict[int, int]:
        """Fixed counts by stratum number."""
        place = {label: number for number, label in enumerate(self.labels)}
        found = {}
        for label, count in counts.items():
            if label not in place:
                raise SettingError(
                    f"no example has label {label!r}",
                    seen=f"labels {', '.join(map(str, self.labels[:8]))}",
                    fix="fixed counts for labels that occur",
                )
            size, count = int(self.sizes[place[label]]), whole(count, "count", 0)
            if not 1 <= count <= size:
                raise SettingError(
                    f"label {label!r} cannot have {count} examples in every batch",
                    seen=f"it has {size} in all",
                    why="every batch would hold the same example twice"
                    if count > size
                    else "a stratum that is left out makes the gradient biased",
                    fix=f"a count from 1 to {size}",
                )
            found[place[label]] = int(count)
        return found
