"""Batches from a source that can only be iterated, as exact as the source allows."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, default_collate

from rightbatch.errors import SettingError
from rightbatch.feed.composition import whole
from rightbatch.feed.cutter import place_of

VERSION = 1
MANY = 100_000  # examples read again of which we say so [assumed]
CHUNK = 64  # examples between two states of the source: what a resume reads again at
# most [assumed: states of large sources cost some 0.1 ms]


class _Chunks(IterableDataset[Any]):
    """The source in chunks, each with the source's state before it; endless epochs."""

    def __init__(
        self, source: Any, state: Any, epoch: int, skip: int, stateful: bool
    ) -> None:
        self.source, self.state, self.epoch, self.skip = source, state, epoch, skip
        self.stateful = stateful

    def __iter__(self) -> Iterator[tuple[Any, list[Any], bool]]:
        epoch, skip, before = self.epoch, self.skip, self.state
        while True:
            if hasattr(self.source, "set_epoch"):
                self.source.set_epoch(epoch)
            if before is not None:
                self.source.load_state_dict(copy.deepcopy(before))
            examples = itertools.islice(iter(self.source), skip, None)
            while chunk := list(itertools.islice(examples, CHUNK)):
                yield before, chunk, False
                if self.stateful:
                    before = copy.deepcopy(self.source.state_dict())
            yield before, [], True
            epoch, skip, before = epoch + 1, 0, None


class ShardStream:
    """Batches of any size from an iterable source: shards, a database, the web.

    The source decides the order; we cut it where the batch size says, at every step
    anew. A resume is exact if the source's own ``state_dict`` is: its state is kept
    every 64 examples, and those since are read again. Sources with a shuffle buffer
    often forget it in their state: test yours with `resume_is_exact`. A source without
    a state is read again from the start of the epoch.

    Args:
        source: Anything to iterate over, which begins again whenever it is iterated
            (but after ``load_state_dict``); ``set_epoch`` is called where it exists.
        batch_size: Examples per optimizer step over all ranks; may be assigned.
        tail: ``"keep"``, ``"drop"`` or ``"carry"`` the epoch's last short batch.
        sharded: Whether the source yields this rank's examples only. Then a state can
            be loaded at the same number of ranks alone. If not, every rank reads all
            and takes its part, and any number will do.
        rank, world_size: Which part: both, or neither: then from torch.distributed.
            Where a last short step has fewer examples than ranks, some get no batch:
            under DDP choose ``tail="carry"`` or ``"drop"``.
        collate_fn: Makes a batch of a list of examples.
        use_state: False to leave the source's own state unused, and to read an epoch
            again from its start: exact where the state is not (`resume_is_exact`).
        num_workers: 0, or 1 to read ahead in a process of its own. More would read the
            shards in an order that depends on their number.

    Raises:
        SettingError: An argument makes no sense.

    Example:
        >>> from rightbatch.feed.shards import ShardStream
        >>> stream = ShardStream(range(10), batch_size=4)
        >>> [len(batch) for batch in stream]
        [4, 4, 2]
    """

    def __init__(
        self,
        source: Any,
        batch_size: int,
        *,
        tail: str = "keep",
        sharded: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        num_workers: int = 0,
        use_state: bool = True,
    ) -> None:
        if not hasattr(source, "__iter__"):
            raise SettingError("the source cannot be iterated", seen=f"{type(source)}")
        if iter(source) is source:
            raise SettingError(
                "the source is an iterator, which ends after one epoch",
                seen=f"a {type(source).__name__}",
                fix="an object whose __iter__ begins again, such as a data set",
            )
        if tail not in ("keep", "drop", "carry"):
            raise SettingError(
                "tail must be one of keep, drop, carry", seen=f"tail={tail!r}"
            )
        if num_workers not in (0, 1):
            raise SettingError(
                "an iterable source is read by one worker at most",
                seen=f"num_workers={num_workers}",
                why="several read shards in an order that depends on their number, so "
                "nothing would be exact",
                fix="num_workers=1",
            )
        self.source, self.tail, self.sharded = source, tail, sharded
        self._use_state = use_state
        self.rank, self.world_size = place_of(rank, world_size)
        self.batch_size = whole(batch_size, "batch_size")
        self.epoch = self.step = self.position = 0
        self._collate, self._workers = collate_fn or default_collate, num_workers
        self._before: Any = None  # the source's state before the chunk being read
        self._used = 0  # examples of that chunk that were handed out
        self._chunk: deque[Any] = deque()
        self._again = 0  # of those, how many a new reader has yet to pass over
        self._over = False  # whether that chunk is the epoch's last
        self._chunks: Iterator[Any] | None = None

    @property
    def has_state(self) -> bool:
        """Whether the source can say where it stands, and is asked."""
        names = ("state_dict", "load_state_dict")
        return self._use_state and all(hasattr(self.source, n) for n in names)

    def __iter__(self) -> Iterator[Any]:
        """What is left of this epoch, one collated batch per step.

        Raises:
            SettingError: The source is empty, or sharded and not divided by the ranks.
        """
        epoch = self.epoch
        while self.epoch == epoch:
            before = self._here()
            try:
                examples = self._take(self._local())
                if not self.sharded:
                    examples = examples[self.rank :: self.world_size]
                batch = self._collate(examples) if examples else None
            except BaseException:
                self._go(before)  # not handed out: it comes again
                raise
            if examples:
                yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, behind the last batch handed out."""
        return {
            "version": VERSION,
            "epoch": self.epoch,
            "step": self.step,
            "position": self.position,
            "batch_size": self.batch_size,
            "source": copy.deepcopy(self._before),
            "used": self._used,
            "ranks": [self.rank, self.world_size] if self.sharded else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            SettingError: It is of another kind, or of other ranks of a sharded source.
        """
        if state.get("version") != VERSION or "used" not in state:
            raise SettingError(
                "this is no state of a ShardStream",
                seen=f"keys {', '.join(map(str, list(state)[:5]))}",
                fix="what stream.state_dict() gave",
            )
        own = [self.rank, self.world_size] if self.sharded else None
        if state["ranks"] != own:
            raise SettingError(
                "the state is of other ranks",
                seen=f"rank and world size {state['ranks']} then, {own} now",
                why="each rank reads shards of its own, so their states cannot be "
                "shared out anew",
                fix="resume on as many ranks, or use sharded=False",
            )
        if not self.has_state and state["position"] > MANY:
            warnings.warn(
                f"the source has no state_dict: {state['position']} examples are read "
                "again to get to where the state was saved",
                stacklevel=2,
            )
        if self.step and self.has_state:
            raise SettingError(
                "this stream has been read from already",
                seen=f"it stands at step {self.step}",
                why="its source stands there too, and few can go back to the start",
                fix="load the state into a new ShardStream of a new source",
            )
        self.batch_size = state["batch_size"]
        names = ("epoch", "step", "position", "used")
        epoch, step, position, used = (int(state[name]) for name in names)
        self._go((epoch, step, position, used, copy.deepcopy(state["source"])))

    def close(self) -> None:
        """Stop reading ahead; what was read and not handed out is read again."""
        self._chunks, self._over = None, False
        self._chunk.clear()

    def _here(self) -> tuple[int, int, int, int, Any]:
        return self.epoch, self.step, self.position, self._used, self._before

    def _go(self, place: tuple[int, int, int, int, Any]) -> None:
        """Stand there, and read on from there when next asked."""
        self.close()
        self.epoch, self.step, self.position, self._used, self._before = place

    def _local(self) -> int:
        """Examples to read for the next step."""
        wanted = whole(self.batch_size, "batch_size")
        if not self.sharded:
            return wanted
        share, rest = divmod(wanted, self.world_size)
        if rest or not share:
            raise SettingError(
                f"batch_size {wanted} is not divided by {self.world_size} ranks",
                seen="each rank reads its own shards",
                fix=f"batch_size={max(1, share) * self.world_size}",
            )
        return share

    def _take(self, count: int) -> list[Any]:
        """The next examples; the stream stands behind them, never at an epoch's end."""
        found: list[Any] = []
        while len(found) < count:
            if self._available():
                found.append(self._chunk.popleft())
                self._used, self.position = self._used + 1, self.position + 1
                continue
            self._turn()
            if self.tail != "carry":
                found = [] if self.tail == "drop" else found
                break
        else:
            if not self._available():
                self._turn()
        self.step += bool(found)
        return found

    def _available(self) -> bool:
        """Whether the epoch has another example; reads on if need be."""
        while not self._chunk and not self._over:
            if self._chunks is None:
                self._chunks = self._begin()
                # From the chunk's start: what of it was handed out is passed over.
                self._again = self._used if self.has_state else 0
            try:
                before, examples, self._over = next(self._chunks)
            except BaseException:
                self._chunks = None  # the source or its worker broke off: begin anew
                raise
            if examples:
                passed = min(self._again, len(examples))
                self._again -= passed
                self._before, self._used = before, passed
                self._chunk.extend(examples[passed:])
        return bool(self._chunk)

    def _turn(self) -> None:
        """The next epoch begins."""
        if not self.position:
            raise SettingError(
                "the source is empty",
                seen=f"no example in epoch {self.epoch}",
                fix="a source that begins again whenever it is iterated",
            )
        self.epoch, self.position, self._over = self.epoch + 1, 0, False
        self._before, self._used = None, 0

    def _begin(self) -> Iterator[Any]:
        skip = 0 if self.has_state else self.position
        chunks = _Chunks(
            self.source, self._before, self.epoch, skip, stateful=self.has_state
        )
        if not self._workers:
            return iter(chunks)
        loader = DataLoader(
            chunks,
            batch_size=None,
            num_workers=1,
            collate_fn=_as_it_is,
            generator=torch.Generator().manual_seed(0),
        )
        return iter(loader)


def resume_is_exact(make_source: Callable[[], Any], examples: int = 1000) -> bool:
    """Whether a source goes on exactly from its own ``state_dict``, tested.

    Reads the source, takes its state at three places, loads each into a fresh source
    and compares what follows. Sources with a shuffle buffer often fail.

    Args:
        make_source: Makes the source; called several times.
        examples: How many to read.

    Example:
        >>> resume_is_exact(lambda: range(100))  # no state: read again, hence exact
        True
    """
    whole_run = list(itertools.islice(iter(make_source()), examples))
    for place in (len(whole_run) // 4, len(whole_run) // 2, 3 * len(whole_run) // 4):
        first = ShardStream(make_source(), batch_size=1, collate_fn=_as_it_is)
        for _ in itertools.islice(first, place):
            pass
        second = ShardStream(make_source(), batch_size=1, collate_fn=_as_it_is)
        second.load_state_dict(first.state_dict())
        rest = [b[0] for b in itertools.islice(second, len(whole_run) - place)]
        if not _equal(rest, whole_run[place:]):
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


def _as_it_is(examples: Any) -> Any:
    return examples
