"""What a loader really does: mixing, coverage, composition, padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64
from torch.utils.data import DataLoader

from rightbatch.core.errors import SettingError
from rightbatch.core.estimate import Estimate
from rightbatch.core.findings import Finding
from rightbatch.data.audit import loader_findings
from rightbatch.data.audit.mixing import label_noise, length_noise, shuffle_noise
from rightbatch.data.audit.read_indices import Draws, read_indices, stream_of
from rightbatch.data.order.tokens import Tokens

EXAMPLES = 2_000_000  # that an audit looks at, unless told otherwise [assumed: 1 s]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderAudit:
    """What an audit found.

    Attributes:
        shuffle_noise: Variance of the batch mean of what changes slowly over the data
            set as it lies, relative to random batches: 1 is ideal, B is no mixing.
            This is the factor by which gradient noise is inflated (below 1: deflated)
            if the data set lies sorted by what the gradient depends on.
        label_noise: The same of the labels' frequencies: the factor for this data set,
            whatever its order on disk. None without labels.
        length_noise: The same of the logarithm of lengths. None without lengths.
        batches: Batches looked at.
        sizes: Smallest and largest batch, in examples.
        examples: Examples in the data set.
        whole_epoch: Whether a whole epoch was looked at.
        lost: Examples that the epoch does not hold.
        repeated: Draws of an example that the epoch already held.
        composition: Share of each label in batches relative to the data set.
        padding: Share of tokens that are padding. None without lengths.
        findings: Warnings: what should be mended; and notes: what may be meant.
    """

    shuffle_noise: Estimate
    label_noise: Estimate | None
    length_noise: Estimate | None
    batches: int
    sizes: tuple[int, int]
    examples: int
    whole_epoch: bool
    lost: int
    repeated: int
    composition: dict[str, float]
    padding: float | None
    findings: tuple[Finding, ...]

    def __bool__(self) -> bool:
        """Whether nothing is to be mended; notes do not count."""
        return all(finding.severity == "note" for finding in self.findings)

    def __str__(self) -> str:
        size = " to ".join(str(s) for s in sorted(set(self.sizes)))
        scope = "one epoch" if self.whole_epoch else "the head of an epoch"
        lines = [
            f"{self.batches} batches of {size} from {self.examples} examples: {scope}",
            f"shuffle noise  {self.shuffle_noise} x random (1 = ideal)",
        ]
        if self.label_noise is not None:
            lines.append(f"label noise    {self.label_noise} x random")
        if self.length_noise is not None:
            lines.append(f"length noise   {self.length_noise} x random")
        if self.whole_epoch:
            lines.append(f"coverage       {self.lost} lost, {self.repeated} repeated")
        if self.padding is not None:
            lines.append(f"padding        {self.padding:.1%} of tokens")
        return "\n".join(lines + [f"\n{finding}" for finding in self.findings])


def audit(
    loader: Any, *, labels: Any = None, lengths: Any = None, examples: int = EXAMPLES
) -> LoaderAudit:
    """Look at what a loader feeds, by its indices alone: no data is read.

    Args:
        loader: A ``DataLoader`` over a map-style data set, or a `BatchStream`: on all
            ranks, if it is distributed by a ``DistributedSampler`` or a stream. Its
            samplers and their generators are not moved.
        labels: Label of each example: adds composition and the noise in labels.
        lengths: Tokens of each example: adds padding and the noise in lengths. Default:
            those of `Tokens`.
        examples: Look at no more than so many.

    Raises:
        SettingError: The loader has no indices (an iterable data set), or labels or
            lengths are not one for each example.

    Example:
        >>> import torch, rightbatch as rb
        >>> data = torch.utils.data.TensorDataset(torch.arange(4096))
        >>> in_order = rb.audit(torch.utils.data.DataLoader(data, batch_size=64))
        >>> round(in_order.shuffle_noise.value)  # no mixing at all
        65
        >>> bool(rb.audit(rb.BatchStream(data, batch_size=64)))
        True

    References:
        Meng et al. 2017, arXiv:1709.10432 (what insufficient shuffling costs).
    """
    stream = stream_of(loader)
    order = None if stream is None else stream.order
    tokens = order if isinstance(order, Tokens) else None
    lengths = tokens.lengths if lengths is None and tokens is not None else lengths
    draws = read_indices(loader, examples)
    length, steps = draws.length, draws.steps
    for name, values in (("labels", labels), ("lengths", lengths)):
        if values is not None and len(values) != length:
            raise SettingError(
                f"there must be one of the {name} for each example",
                seen=f"{len(values)} {name}, {length} examples",
            )
    drawn = np.concatenate(steps)
    different = len(np.unique(drawn))
    repeated, lost = len(drawn) - different, length - different if draws.whole else 0
    largest = max(map(len, steps))
    of_places = shuffle_noise(steps, length)
    of_labels = of_lengths = padding = None
    shares: dict[str, float] = {}
    findings: list[Finding | None] = []
    # What is asked of a stream of ours is no mistake, nor what its order is made for.
    if order is None:
        findings.append(loader_findings.same_order(draws.same_head, draws.epoch))
    if order is None or order.covers:
        findings.append(loader_findings.mixing(of_places, largest, order is not None))
    if labels is not None:
        names, label = np.unique(np.asarray(labels), return_inverse=True)
        of_labels, share = label_noise(steps, label), np.bincount(label) / length
        seen = np.bincount(label[drawn], minlength=len(names)) / len(drawn)
        relative = (seen / share).tolist()
        shares = dict(zip(map(str, names.tolist()), relative, strict=True))
        if order is None or order.covers:
            found = loader_findings.composition(names, share, seen, len(drawn))
            findings.append(found)
    if lengths is not None:
        of_lengths = length_noise(steps, np.asarray(lengths))
        packed = tokens is not None and tokens.packed
        padding = 0.0 if packed else _padding(draws, np.asarray(lengths))
        findings += [
            loader_findings.length_mixing(of_lengths, largest, tokens is not None),
            loader_findings.padding(padding, tokens is not None),
        ]
    if order is None and draws.whole:
        findings.append(loader_findings.coverage(lost, repeated, length, largest))
    return LoaderAudit(
        shuffle_noise=of_places,
        label_noise=of_labels,
        length_noise=of_lengths,
        batches=len(steps),
        sizes=(min(map(len, steps)), largest),
        examples=length,
        whole_epoch=draws.whole,
        lost=lost,
        repeated=repeated,
        composition=shares,
        padding=padding,
        findings=tuple(finding for finding in findings if finding is not None),
    )


def is_loader(value: Any) -> bool:
    """Whether `audit` can look at it."""
    return isinstance(value, DataLoader) or stream_of(value) is not None


def _padding(draws: Draws, lengths: Int64[np.ndarray, " examples"]) -> float:
    """Share of padding, where a micro-batch is as long as its longest example."""
    parts = [lengths[part] for rank in draws.ranks for step in rank for part in step]
    padded = sum(len(part) * int(part.max(initial=0)) for part in parts)
    return 1 - sum(int(part.sum()) for part in parts) / padded if padded else 0.0
