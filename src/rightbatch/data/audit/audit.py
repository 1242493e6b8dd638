"""What a loader really does: mixing, coverage, composition, padding, ranks, time."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    Sampler,
)

from rightbatch.core.errors import SettingError
from rightbatch.core.estimate import Estimate
from rightbatch.core.guards import preserved_rng
from rightbatch.data.audit.lengths import token_audit
from rightbatch.data.audit.mixing import Batches, by_label, ratio_of, waves
from rightbatch.data.audit.rules import (
    Concern,
    bias,
    coverage,
    index_cost,
    mixing,
    same_order,
)
from rightbatch.data.loading.stream import BatchStream
from rightbatch.data.loading.stream_base import StreamBase
from rightbatch.data.order.composition import Cursor

HEAD = 4096  # examples by which two epochs are compared [assumed]
EXAMPLES = 2_000_000  # that an audit looks at, unless told otherwise [assumed: 1 s]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedAudit:
    """What an audit found.

    Attributes:
        shuffle_noise: Variance of the batch mean of what changes slowly over the data
            set as it lies, relative to random batches: 1 is ideal, B is no mixing.
            This is the factor by which gradient noise is inflated (below 1: deflated)
            if the data set lies sorted by what the gradient depends on.
        label_noise: The same of the labels' frequencies: the factor for this data set,
            whatever its order on disk. None without labels.
        batches: Batches looked at.
        sizes: Smallest and largest batch, in examples.
        examples: Examples in the data set.
        whole_epoch: Whether a whole epoch was looked at.
        lost: Examples that the epoch does not hold.
        repeated: Draws of an example that the epoch already held.
        length_noise: The same of the logarithm of lengths. None without lengths.
        rank_balance: Fewest and most examples of a rank in the epoch.
        token_balance: By how much the rank with most tokens has more than the mean,
            over the steps' average. None without lengths, 0 on one rank.
        composition: Share of each label in batches relative to the data set.
        padding: Share of tokens that are padding. None without lengths.
        index_time_s: Seconds to make one batch of indices, its part of what making
            the epoch's order takes included.
        step_share: ``index_time_s`` relative to the step time given.
        concerns: What should be mended, and notes: what may be meant.
    """

    shuffle_noise: Estimate
    label_noise: Estimate | None
    batches: int
    sizes: tuple[int, int]
    examples: int
    whole_epoch: bool
    lost: int
    repeated: int
    length_noise: Estimate | None
    rank_balance: tuple[int, int]
    token_balance: float | None
    composition: dict[str, float]
    padding: float | None
    index_time_s: float
    step_share: float | None
    concerns: tuple[Concern, ...]

    def __bool__(self) -> bool:
        """Whether nothing is to be mended; notes do not count."""
        return all(concern.note for concern in self.concerns)

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
        if self.rank_balance[0] != self.rank_balance[1]:
            few, many = self.rank_balance
            lines.append(f"ranks          {few} to {many} examples")
        if self.token_balance:
            lines.append(f"rank balance   the fullest {self.token_balance:.1%} above")
        if self.padding is not None:
            lines.append(f"padding        {self.padding:.1%} of tokens")
        share = "" if self.step_share is None else f", {self.step_share:.1%} of a step"
        lines.append(f"index time     {self.index_time_s * 1e6:.0f} us a batch{share}")
        return "\n".join(lines + [f"\n{concern}" for concern in self.concerns])


def audit(
    loader: Any,
    *,
    labels: Any = None,
    lengths: Any = None,
    step_time_s: float | None = None,
    examples: int = EXAMPLES,
) -> FeedAudit:
    """Look at what a loader feeds, by its indices alone: no data is read.

    Args:
        loader: A ``DataLoader`` over a map-style data set, or a `BatchStream`: on all
            ranks, if it is distributed by a ``DistributedSampler`` or a stream. Its
            samplers and their generators are not moved.
        labels: Label of each example: adds composition and the noise in labels.
        lengths: Tokens of each example: adds padding and the ranks' tokens. Default:
            those of `Tokens`.
        step_time_s: Seconds of a training step, to compare the time for indices with.
        examples: Look at no more than so many.

    Raises:
        SettingError: The loader has no indices (an iterable data set), or labels or
            lengths are not one for each example.

    Example:
        >>> import torch, rightbatch as rb
        >>> data = torch.utils.data.TensorDataset(torch.arange(4096))
        >>> found = rb.audit(torch.utils.data.DataLoader(data, batch_size=64))
        >>> round(found.shuffle_noise.value)  # sequential: no mixing at all
        65
        >>> bool(rb.audit(rb.BatchStream(data, batch_size=64)))
        True
    """
    own = _cutter(loader)
    if lengths is None and own is not None:
        lengths = getattr(own.composition, "lengths", None)
    with preserved_rng():
        ranks, length = _ranks(loader)
        for name, given in (("labels", labels), ("lengths", lengths)):
            if given is not None and len(given) != length:
                raise SettingError(
                    f"there must be one of the {name} for each example",
                    seen=f"{len(given)} {name}, {length} examples",
                )
        drawn, spent, whole = _drawn(ranks, examples)
        # What is asked of a stream is no mistake, and its epochs move on.
        concerns = [] if own is not None else same_order(drawn[0], *_again(ranks))
    steps = [np.concatenate(parts) for parts in zip(*drawn, strict=False)]
    if not steps:
        raise SettingError(
            "the loader makes no batch",
            seen=f"{length} examples",
            fix="a smaller batch_size, or drop_last=False",
        )
    held = [sum(map(len, batches)) for batches in drawn]
    index = np.concatenate([b for batches in drawn for b in batches])
    if index.max() >= length or index.min() < 0:
        bad = index[(index >= length) | (index < 0)]
        raise SettingError(
            "the loader asks for examples that are not there",
            seen=f"example {bad[0]} of {length}, {len(bad)} times in all",
            fix="a sampler made for this data set",
        )
    times = np.unique(index, return_counts=True)[1]
    noise = ratio_of(steps, waves(length))
    found = None
    composition: dict[str, float] = {}
    # What a composition was asked for is no mistake.
    asked = own is not None and not own.composition.covers
    concerns += [] if asked else mixing(noise, steps, own is not None)
    if labels is not None:
        names, inverse = np.unique(np.asarray(labels), return_inverse=True)
        found, composition = by_label(steps, names, inverse, length)
        concerns += [] if asked else bias(steps, names, inverse)
    parts = [
        r.parts if isinstance(r, _OfCutter) else d
        for r, d in zip(ranks, drawn, strict=True)
    ]
    tokens = None
    if lengths is not None:
        packed = own is not None and getattr(own.composition, "packed", False)
        tokens = token_audit(steps, drawn, parts, np.asarray(lengths), packed)
        concerns += tokens.concerns(own is not None and own.composition.counts_tokens)
    index_time = _amortised(spent, length / max(sum(held), 1) * len(drawn[0]))
    repeated = int((times - 1).sum())
    lost = length - len(times) if whole else 0
    if own is None:
        concerns += coverage(lost, repeated, length, held, max(map(len, steps)), whole)
    concerns += index_cost(index_time, step_time_s)
    sizes = [len(s) for s in steps]
    return FeedAudit(
        shuffle_noise=noise,
        label_noise=found,
        batches=len(steps),
        sizes=(min(sizes), max(sizes)),
        examples=length,
        whole_epoch=whole,
        lost=lost,
        repeated=repeated,
        length_noise=None if tokens is None else tokens.noise,
        rank_balance=(min(held), max(held)),
        token_balance=None if tokens is None else tokens.balance,
        composition=composition,
        padding=None if tokens is None else tokens.padding,
        index_time_s=index_time,
        step_share=None if not step_time_s else index_time / step_time_s,
        concerns=tuple(concerns),
    )


def is_loader(found: Any) -> bool:
    """Whether `audit` can look at it."""
    return isinstance(found, (DataLoader, StreamBase))


def _ranks(loader: Any) -> tuple[list[Any], int]:
    """One iterable of index lists per rank, and the number of examples."""
    if (own := _cutter(loader)) is not None:
        world = own._planner.world_size
        return [_OfCutter(own, rank) for rank in range(world)], own.length
    if not isinstance(loader, DataLoader):
        raise SettingError(
            "an audit needs a DataLoader or a BatchStream",
            seen=f"a {type(loader).__name__}, which tells no indices",
            fix="for what can only be iterated: mixing_of, in rightbatch.data.audit."
            "mixing, of a number of each example in every batch",
        )
    if isinstance(loader.dataset, IterableDataset):
        raise SettingError(
            "an iterable data set has no indices to look at",
            seen=f"{type(loader.dataset).__name__}",
            why="which example came when is known to the data set alone",
            fix="test its resume (rightbatch.data.loading.resume_check), "
            "and its mixing by mixing_of(values of the examples in batches)",
        )
    length = len(loader.dataset)  # pyrefly: ignore[bad-argument-type]
    if loader.batch_sampler is None:
        outer: Any = _Single(_copied(loader.sampler))
    else:
        outer = _copied(loader.batch_sampler)
    inner = getattr(outer, "sampler", None)
    if not isinstance(inner, DistributedSampler):
        return [outer], length
    found = []
    for rank in range(inner.num_replicas):
        own_inner, own_outer = copy.copy(inner), copy.copy(outer)
        own_inner.rank, own_outer.sampler = rank, own_inner
        found.append(own_outer)
    return found, length


def _cutter(loader: Any) -> StreamBase | None:
    """The stream or sampler of ours behind a loader, if it is one."""
    sampler = getattr(loader, "batch_sampler", None)
    if isinstance(loader, StreamBase):
        return loader
    return sampler if isinstance(sampler, StreamBase) else None


def _copied(sampler: Any, made: dict[int, Any] | None = None) -> Any:
    """A sampler that draws as this one will, without moving it; data is not copied.

    Args:
        sampler: And whatever it draws from.
        made: Copies by the identity of what they are of: shared ones stay shared.
    """
    made = {} if made is None else made
    copied = made[id(sampler)] = copy.copy(sampler)
    for name, value in getattr(sampler, "__dict__", {}).items():
        if id(value) not in made:
            if isinstance(value, torch.Generator):
                made[id(value)] = value.clone_state()
            elif isinstance(
                value, (np.random.Generator, np.random.RandomState, Random)
            ):
                made[id(value)] = copy.deepcopy(value)
            elif isinstance(value, Sampler) or name == "sampler":
                made[id(value)] = _copied(value, made)
        if id(value) in made:
            setattr(copied, name, made[id(value)])
    return copied


class _Single:
    """A sampler of single indices, every one a batch, or of whole batches."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[Any]:
        for index in self.sampler:
            yield np.atleast_1d(np.asarray(index, dtype=np.int64))


class _OfCutter:
    """What a rank of a stream will get in the epoch it stands in."""

    def __init__(self, cutter: StreamBase, rank: int) -> None:
        self._planner = copy.copy(cutter._planner)
        self._planner.rank, self._size = rank, cutter.batch_size
        # A whole epoch: the one it stands in, from its start.
        extra = cutter.composition.saved(cutter._cursor.extra)
        self._cursor = Cursor(cutter.epoch * cutter.length, extra=extra)
        # A sampler hands out fillers too: nobody there can weigh them.
        self._fillers = not isinstance(cutter, BatchStream)
        self.parts: Batches = []

    def __iter__(self) -> Iterator[Int64[np.ndarray, " batch"]]:
        length = self._planner.composition.length
        cursor = self._planner.settle(self._cursor, self._size)
        epoch = cursor.position // length
        while cursor.position // length == epoch:
            plan = self._planner.plan(cursor, self._size)
            wanted = (m for m in plan.micro if self._fillers or not m.part.filler)
            parts = [m.piece.indices for m in wanted]
            self.parts += parts
            yield np.concatenate([np.empty(0, dtype=np.int64), *parts])
            cursor = plan.after


def _again(ranks: list[Any]) -> tuple[Batches, Batches | None, int | None]:
    """The head of another epoch of the first rank; the same after ``set_epoch``.

    And the epoch that its sampler stands in. None where it has no such thing.
    """
    second = _drawn(ranks[:1], HEAD)[0][0]
    inner = getattr(ranks[0], "sampler", None)
    if not callable(getattr(inner, "set_epoch", None)):
        return second, None, None
    moved = _copied(ranks[0])
    epoch = int(getattr(inner, "epoch", 0) or 0)
    moved.sampler.set_epoch(epoch + 1)
    return second, _drawn([moved], HEAD)[0][0], epoch


def _drawn(
    ranks: list[Any], examples: int
) -> tuple[list[Batches], list[list[float]], bool]:
    """The head of every rank's epoch, and the seconds for each of its batches."""
    drawn: list[Batches] = []
    spent: list[list[float]] = []
    whole = True
    for rank in ranks:
        batches: Batches = []
        times: list[float] = []
        held, since = 0, time.perf_counter()
        for indices in rank:
            times.append(time.perf_counter() - since)
            batches.append(np.asarray(indices, dtype=np.int64))
            held += len(batches[-1])
            if held * len(ranks) > examples:
                whole = False
                break
            since = time.perf_counter()
        drawn.append(batches)
        spent.append(times)
    return drawn, spent, whole


def _amortised(spent: list[list[float]], batches: float) -> float:
    """Seconds a batch: the median, and what the first took longer over an epoch."""
    median = float(np.median([t for times in spent for t in times]))
    first = float(np.median([times[0] for times in spent if times]))
    return median + max(first - median, 0.0) / max(batches, 1.0)
