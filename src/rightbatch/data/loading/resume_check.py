"""Whether a source that can only be iterated goes on where its state says."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from rightbatch.core.errors import SettingError
from rightbatch.data.loading.shard_stream import ShardStream, digest_of


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
    # All of the first epoch, where it is no longer, and the head of the second.
    total = count if count == examples else count + max(count // 2, 1)
    expected = _digests(_stream(make_source), total)
    for place in {count // 4, count // 2, 3 * count // 4, (total + count - 1) // 2}:
        first, second = _stream(make_source), _stream(make_source)
        _digests(first, place)
        second.load_state_dict(first.state_dict())
        if _digests(second, total - place) != expected[place:]:
            return False
    return True


def _stream(make_source: Callable[[], Any]) -> ShardStream:
    return ShardStream(make_source(), 1, collate_fn=lambda examples: examples)


def _digests(stream: ShardStream, count: int) -> list[str]:
    """Of the next examples, over the ends of epochs."""
    digests: list[str] = []
    while len(digests) < count:
        for (example,) in itertools.islice(stream, count - len(digests)):
            digests.append(digest_of(example))
    return digests
