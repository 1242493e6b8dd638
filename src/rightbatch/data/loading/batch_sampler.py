"""The stream as a batch sampler, for a DataLoader of the user's own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Sampler

from rightbatch.core.errors import SettingError
from rightbatch.data.loading.arguments import fingerprint_of
from rightbatch.data.loading.stream_base import StreamBase
from rightbatch.data.order.draws import Shuffled
from rightbatch.data.order.epochs import Blocks
from rightbatch.data.order.order import Cursor, Order


class BatchSampler(StreamBase, Sampler[list[int]]):
    """Batches of indices from one fixed stream, for ``DataLoader(batch_sampler=…)``.

    For loops that must keep their own loader. A `BatchStream` does more: with workers,
    a sampler runs ahead of training, so a new ``batch_size`` arrives late by what they
    have fetched, and its state is ahead too: a loop that is left loses what they have
    fetched. ``follow`` mends the second; torchdata's ``StatefulDataLoader`` keeps the
    state by itself.

    Args:
        length: Examples in the data set, or the data set.
        batch_size: Examples per step over all ranks; may be assigned.
        seed, order, tail, rank, world_size, fingerprint: As for `BatchStream`. Orders
            that need weights are refused: a sampler cannot hand them out.

    Raises:
        SettingError: An argument makes no sense.

    Example:
        >>> import torch, rightbatch as rb
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> data = TensorDataset(torch.arange(10))
        >>> sampler = rb.data.BatchSampler(data, batch_size=4, seed=0)
        >>> loader = DataLoader(data, batch_sampler=sampler)
        >>> [len(x) for (x,) in sampler.follow(loader)]
        [4, 4, 2]
        >>> sampler.state_dict()["position"]  # the next epoch
        10
    """

    def __init__(
        self,
        length: Any,
        batch_size: int,
        *,
        seed: int = 0,
        order: str | Order = "shuffled",
        tail: str | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        fingerprint: str = "",
    ) -> None:
        StreamBase.__init__(
            self,
            _count(length),
            batch_size,
            seed=seed,
            order=order,
            tail=tail,
            rank=rank,
            world_size=world_size,
            micro_batch=None,
            fingerprint=fingerprint or fingerprint_of(length),
        )
        self._ahead: deque[Cursor] | None = None  # while a loader is followed

    def __iter__(self) -> Iterator[list[int]]:
        """What is left of this epoch."""
        ahead = self._ahead
        if ahead is not None:
            ahead.clear()  # a loader begins anew where the last one was left
        cursor = self._settled()
        epoch = cursor.position // self.length
        plain = isinstance(self.order, Shuffled) and self.world_size == 1
        step = self._plain() if plain and self.tail != "pad" else self._next
        while cursor.position // self.length == epoch:
            batch, cursor = step(cursor)
            if ahead is None:
                self._cursor = cursor
            else:
                ahead.append(cursor)
            yield batch
            if ahead is None and self._cursor is not cursor:
                raise _elsewhere()
            cursor = self._planner.settle(cursor, self.batch_size)

    def _plain(self) -> Callable[[Cursor], tuple[list[int], Cursor]]:
        """Steps that are nothing but the next indices: three times as fast."""
        assert isinstance(self.order, Shuffled)
        planner, order = self._planner, self.order.examples(self.seed)
        listed = Blocks(lambda a, b: order(a, b).tolist(), ends=self.length)

        def step(cursor: Cursor) -> tuple[list[int], Cursor]:
            end = min(cursor.position + self._batch_size, planner.stop(cursor))
            after = planner.entering(cursor.behind(end), cursor)
            indices = listed(cursor.position, end)
            return indices, planner.settle(after, self._batch_size)

        return step

    def _next(self, cursor: Cursor) -> tuple[list[int], Cursor]:
        """The indices of the step at a cursor, and the cursor behind it."""
        plan = self._planner.plan(cursor, self.batch_size)
        if len(plan.micro) > 1:
            raise SettingError(
                "a sampler hands out one batch per step",
                seen=f"{len(plan.micro)} in a step: {self.order.name}",
                fix="BatchStream and its steps()",
            )
        (micro,) = plan.micro
        self._warn_of_short_step(plan)
        if plan.uneven:
            self._warn(
                "uneven",
                "ranks have different numbers of examples in some steps, or one of "
                "another rank where there are fewer than ranks, and a sampler cannot "
                f"weigh them: {self._how_to_even(plan.cut)}, or use a BatchStream",
            )
        if micro.weights is not None:
            raise SettingError(
                "this order needs importance weights, which a sampler cannot give",
                seen=f"order {self.order.name!r}",
                why="without them the batches belong to another objective",
                fix="BatchStream, which yields (batch, weights)",
            )
        return micro.piece.indices.tolist(), plan.after

    def follow(self, loader: DataLoader[Any]) -> Iterator[Any]:
        """What is left of this epoch from ``loader``, with the state kept in step.

        Whatever the loader's workers have asked for ahead, ``state_dict`` stands behind
        the last batch that came out here; leaving the loop loses nothing.

        Raises:
            SettingError: The loader has another batch sampler, or does not hand out its
                batches in order.
        """
        if getattr(loader, "batch_sampler", None) is not self:
            raise SettingError(
                "the loader does not use this sampler",
                seen=f"batch_sampler={getattr(loader, 'batch_sampler', None)!r:.60}",
                fix="DataLoader(data, batch_sampler=sampler)",
            )
        if not getattr(loader, "in_order", True):
            raise SettingError(
                "a loader that is followed must hand out its batches in order",
                seen="in_order=False",
                why="nobody could tell which batches are behind",
                fix="leave in_order out",
            )
        ahead = self._ahead = deque()
        try:
            for batch in loader:
                here = self._cursor = ahead.popleft()
                yield batch
                if self._cursor != here:
                    raise _elsewhere()
        finally:
            if self._ahead is ahead:
                self._ahead = None


def _count(length: Any) -> int:
    """Examples of a data set, or as given.

    Raises:
        SettingError: It is a loader, or holds none.
    """
    if isinstance(length, (DataLoader, StreamBase)):
        raise SettingError(
            "a sampler is made for a data set",
            seen=f"a {type(length).__name__}, whose length is in batches",
            fix="the data set: loader.dataset",
        )
    count = length if isinstance(length, (int, np.integer)) else len(length)
    if count < 1:
        raise SettingError("the data set is empty", seen=f"{count} examples")
    return int(count)


def _elsewhere() -> SettingError:
    return SettingError(
        "the sampler was set to somewhere else while it was iterated",
        seen="set_epoch or load_state_dict within the loop, or another loop over it",
        why="batches of the old place are on their way already",
        fix="leave the loop first",
    )
