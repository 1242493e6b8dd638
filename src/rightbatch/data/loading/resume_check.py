"""Whether a source that can only be iterated goes on where its state says."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from rightbatch.core.errors import SettingError
from rightbatch.data.loading.shard_reader import as_it_is
from rightbatch.data.loading.shard_stream import ShardStream


def resume_is_exact(make_source: Callable[[], Any], examples: int = 1000) -> bool:
    """Whether a source goes on exactly from its own ``state_dict``, tested.

    Reads the source, takes its state at three places of the first epoch and one of the
    second, loads each into a fresh source and compares what follows. Sources with a
    shuffle buffer often fail.

    Args:
        make_source: Makes the source; called several times.
        examples: How many to read.

    Raises:
        SettingError: The source is empty.

    Example:
        >>> resume_is_exact(lambda: range(100))  # no state: read again, hence exact
        True
    """
    count = sum(1 for _ in itertools.islice(iter(make_source()), examples))
    if not count:
        raise SettingError("the source is empty", seen="no example in epoch 0")

    def read(stream: ShardStream, many: int) -> list[Any]:
        found: list[Any] = []
        while len(found) < many:
            found += [b[0] for b in itertools.islice(stream, many - len(found))]
        return found

    def made() -> ShardStream:
        return ShardStream(
            make_source(), batch_size=1, collate_fn=as_it_is, state_every=1
        )

    # All of the first epoch, where it is no longer, and the head of the second.
    total = count if count == examples else count + max(count // 2, 1)
    run = read(made(), total)
    places = {count // 4, count // 2, 3 * count // 4, total - (total - count + 1) // 2}
    for place in sorted(places):
        first, second = made(), made()
        read(first, place)
        second.load_state_dict(first.state_dict())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that is what we find out
            if not _equal(read(second, total - place), run[place:]):
                return False
    return True


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(
            _equal(left[k], right[k]) for k in left
        )
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(_equal, left, right))
    if isinstance(left, np.ndarray):
        return np.array_equal(left, right, equal_nan=left.dtype.kind == "f")
    return bool(left == right) or (left != left and right != right)
