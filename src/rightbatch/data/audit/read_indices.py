"""The indices that a loader is going to draw, read without moving it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, Sampler

from rightbatch.core.errors import SettingError
from rightbatch.core.guards import preserved_rng
from rightbatch.data.audit.mixing import Batches
from rightbatch.data.loading.stream import BatchStream
from rightbatch.data.loading.stream_base import StreamBase
from rightbatch.data.order.order import Cursor

HEAD = 4096  # examples by which two epochs are compared [assumed]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draws:
    """An epoch of a loader, or its head.

    Attributes:
        length: Examples in the data set.
        whole: Whether the epoch was read to its end.
        ranks: Of each rank, the micro-batches of each of its steps.
        steps: The examples of each step, over all ranks.
        same_head: Examples with which the next epoch begins alike, but for one that
            goes in order; 0: it begins otherwise, never does, or is a stream of ours.
        epoch: That the sampler stands in; None: it has no ``set_epoch``.
    """

    length: int
    whole: bool
    ranks: list[list[Batches]]
    steps: Batches
    same_head: int
    epoch: int | None


def stream_of(loader: Any) -> StreamBase | None:
    """The `BatchStream` or `BatchSampler` that a loader is or has, if any."""
    sampler = getattr(loader, "batch_sampler", None)
    return next((x for x in (loader, sampler) if isinstance(x, StreamBase)), None)


def read_indices(loader: Any, most: int) -> Draws:
    """Read the epoch that a loader stands in, on all ranks.

    Args:
        loader: A ``DataLoader`` or a `BatchStream`.
        most: Examples after which to stop.

    Raises:
        SettingError: The loader has no indices, asks for examples that are not there,
            or makes no batch.
    """
    stream, epoch = stream_of(loader), None
    second = np.empty(0, dtype=np.int64)
    with preserved_rng():
        if stream is not None:
            length = stream.length
            ranks = [_stream_steps(stream, rank) for rank in range(stream.world_size)]
            steps = [_head(rank, most // len(ranks)) for rank in ranks]
        else:
            length, samplers = _samplers(loader)
            steps = [_head(_batches(s), most // len(samplers)) for s in samplers]
            if _ends(samplers[0], *steps[0]):
                again, _ = _head(_batches(samplers[0]), HEAD)
                second = _joined([part for step in again for part in step])
            inner = getattr(samplers[0], "sampler", samplers[0])
            if callable(getattr(inner, "set_epoch", None)):
                epoch = int(getattr(inner, "epoch", 0))
    joined = [[_joined(step) for step in of_rank] for of_rank, _ in steps]
    first = _joined(joined[0])
    same = np.array_equal(first[: len(second)], second)
    in_order = np.array_equal(second, np.sort(second))
    draws = Draws(
        length=length,
        whole=all(whole for _, whole in steps),
        ranks=[of_rank for of_rank, _ in steps],
        steps=[np.concatenate(parts) for parts in zip(*joined, strict=False)],
        same_head=len(second) if same and not in_order else 0,
        epoch=epoch,
    )
    if not draws.steps:
        raise SettingError(
            "the loader makes no batch",
            seen=f"{length} examples",
            fix="a smaller batch_size, or drop_last=False",
        )
    indices = np.concatenate(draws.steps)
    bad = indices[(indices >= length) | (indices < 0)]
    if len(bad):
        raise SettingError(
            "the loader asks for examples that are not there",
            seen=f"example {bad[0]} of {length}, {len(bad)} times in all",
            fix="a sampler made for this data set",
        )
    return draws


def _stream_steps(stream: StreamBase, rank: int) -> Iterator[Batches]:
    """The micro-batches of each step of the epoch that a stream stands in."""
    planner, size = copy.copy(stream._planner), stream.batch_size
    planner.rank = rank
    extra = stream.order.saved(stream._cursor.extra)
    cursor = planner.settle(Cursor(stream.epoch * stream.length, extra=extra), size)
    epoch = cursor.position // stream.length
    # A sampler hands out fillers too: nobody there can weigh them.
    fillers = not isinstance(stream, BatchStream)
    while cursor.position // stream.length == epoch:
        plan = planner.plan(cursor, size)
        yield [m.piece.indices for m in plan.micro if fillers or not m.part.filler]
        cursor = plan.after


def _samplers(loader: Any) -> tuple[int, list[Any]]:
    """Examples of a loader's data set, and copies of its sampler for all ranks."""
    source = getattr(loader, "dataset", loader)
    if not isinstance(loader, DataLoader) or isinstance(source, IterableDataset):
        raise SettingError(
            "an audit needs a BatchStream, or a DataLoader of a map-style data set",
            seen=f"a {type(source).__name__}, which has no indices",
            fix="for what can only be iterated: mixing_of, in rightbatch.data.audit."
            "mixing, of a number of each example in every batch",
        )
    length = len(source)
    sampler = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    inner = getattr(sampler, "sampler", sampler)
    if not isinstance(inner, DistributedSampler):
        return length, [_copied(sampler)]
    samplers = [_copied(sampler) for _ in range(inner.num_replicas)]
    for rank, of_rank in enumerate(samplers):
        getattr(of_rank, "sampler", of_rank).rank = rank
    return length, samplers


def _copied(sampler: Any, copies: dict[int, Any] | None = None) -> Any:
    """A sampler that draws as this one will, without moving it; data is not copied.

    Args:
        sampler: And whatever it draws from.
        copies: By the identity of what they are of: shared ones stay shared.

    Raises:
        SettingError: It cannot be copied, as a generator cannot.
    """
    copies = {} if copies is None else copies
    try:
        copied = copies[id(sampler)] = copy.copy(sampler)
    except TypeError as error:
        raise SettingError(
            "the sampler cannot be copied, and an audit would use it up",
            seen=f"a {type(sampler).__name__}: {error}",
            fix="an object whose __iter__ begins again, such as a torch Sampler",
        ) from error
    for name, value in getattr(sampler, "__dict__", {}).items():
        if id(value) not in copies:
            if isinstance(value, torch.Generator):
                copies[id(value)] = value.clone_state()
            elif isinstance(
                value, (np.random.Generator, np.random.RandomState, Random)
            ):
                copies[id(value)] = copy.deepcopy(value)
            elif isinstance(value, Sampler) or name == "sampler":
                copies[id(value)] = _copied(value, copies)
        if id(value) in copies:
            setattr(copied, name, copies[id(value)])
    return copied


def _batches(sampler: Any) -> Iterator[Batches]:
    """Each batch of a sampler, or each of its single indices, as one micro-batch."""
    for batch in sampler:
        yield [np.atleast_1d(np.asarray(batch, dtype=np.int64))]


def _head(steps: Iterator[Batches], most: int) -> tuple[list[Batches], bool]:
    """The first steps, and whether those are all."""
    head: list[Batches] = []
    count = 0
    for step in steps:
        head.append(step)
        count += sum(map(len, step))
        if count > most:
            return head, False
    return head, True


def _ends(sampler: Any, head: list[Batches], whole: bool) -> bool:
    """Whether a sampler ends, so that it is begun anew: it did, or it says where."""
    try:
        return whole or len(head) <= len(sampler)
    except (TypeError, NotImplementedError):
        # It has no length, or holds a sampler that has none, as a `BatchSampler` of an
        # endless one does: both raise TypeError, and nothing else tells them apart.
        return False


def _joined(parts: Batches) -> Int64[np.ndarray, " examples"]:
    return np.concatenate([np.empty(0, dtype=np.int64), *parts])
