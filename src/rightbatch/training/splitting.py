"""A collated batch cut along its axis of examples, whatever it is nested in."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rightbatch.core.errors import JobError

_FIX = (
    "pass split=: a function (batch, start, stop) that cuts out examples, and "
    "count=: batch -> number of examples"
)


def count_of(batch: Any) -> int:
    """How many examples a batch holds: the first axis that all its tensors share.

    Raises:
        JobError: There is none, or they do not share it.

    Example:
        >>> import torch
        >>> count_of({"x": torch.zeros(4, 2), "names": ["a", "b", "c", "d"]})
        4
    """
    axes = sorted({len(t) for t in _leaves(batch) if t.ndim})
    listed = _transposed(batch)
    if listed is not None:  # lists of images: by the lists or by their tensors?
        axes = sorted({*axes, listed})
    if len(axes) != 1:
        raise JobError(
            "the batch cannot be split by itself",
            seen=f"first axes and lists of {axes}"
            if axes
            else f"{type(batch).__name__} without a tensor in it",
            why="which axis holds the examples cannot be told",
            fix=_FIX,
        )
    return axes[0]


def cut(batch: Any, start: int, stop: int, count: int) -> Any:
    """The examples from ``start`` to ``stop`` of a batch of ``count``.

    Tensors are cut along their first axis and not copied; lists that hold one plain
    thing for each example are cut too; what belongs to the whole batch is shared.
    """
    if isinstance(batch, Tensor):
        return batch[start:stop] if batch.ndim and len(batch) == count else batch
    if isinstance(batch, Mapping):
        parts = {k: cut(v, start, stop, count) for k, v in batch.items()}
        make: Any = type(batch)
        try:
            return parts if make is dict else make(parts)
        except TypeError:
            return parts
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):  # a namedtuple
        return type(batch)(*(cut(v, start, stop, count) for v in batch))
    if isinstance(batch, (list, tuple)):
        nested = any(isinstance(v, (Tensor, Mapping, list, tuple)) for v in batch)
        if not nested and len(batch) == count:
            return batch[start:stop]  # one plain thing for each example
        return type(batch)(cut(v, start, stop, count) for v in batch)
    return batch


def even(count: int, most: int) -> list[tuple[int, int]]:
    """Nearly equal runs of at most ``most``: none is a rest of one example.

    Example:
        >>> even(17, 8)
        [(0, 6), (6, 12), (12, 17)]
    """
    pieces = -(-count // most)
    small, larger = divmod(count, pieces)
    edges = [0]
    for number in range(pieces):
        edges.append(edges[-1] + small + (number < larger))
    return list(itertools.pairwise(edges))


def unclear(told: int, found: int) -> JobError:
    """A batch whose tensors hold another number of examples than the stream says."""
    return JobError(
        "the batch cannot be split by itself",
        seen=f"{told} examples, and tensors with a first axis of {found}",
        why="which axis holds the examples cannot be told",
        fix=_FIX,
    )


def _transposed(batch: Any) -> int | None:
    """Length of the lists in a batch made by ``tuple(zip(*examples))``; else None."""
    if not isinstance(batch, (list, tuple)) or not batch:
        return None
    lists = all(isinstance(part, (list, tuple)) for part in batch)
    lengths = {len(part) for part in batch} if lists else set()
    return lengths.pop() if len(lengths) == 1 else None


def _leaves(batch: Any) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    if isinstance(batch, Mapping):
        return [t for v in batch.values() for t in _leaves(v)]
    if isinstance(batch, (list, tuple)):
        return [t for v in batch for t in _leaves(v)]
    return []
