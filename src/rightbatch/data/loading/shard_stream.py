"""Batches from a source that can only be iterated, as exact as the source allows."""

from __future__ import annotations

import copy
import hashlib
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, default_collate

from rightbatch.core.errors import SettingError
from rightbatch.core.whole_number import whole_number
from rightbatch.data.loading.split_ranks import Parts, split_across_ranks, uneven
from rightbatch.data.loading.state import VERSION, check_form, check_ranks_agree
from rightbatch.data.loading.step import (
    MicroBatch,
    PlainLoop,
    Step,
    step_is_over,
    step_left_open,
)
from rightbatch.data.loading.stream_base import place_of


class ShardStream(PlainLoop):
    """Batches of any size from an iterable source: shards, a database, the web.

    The source decides the order; it is cut where the batch size says, at every step
    anew. A resume is as exact as the source's own ``state_dict``, which is saved and
    loaded as it comes, also at an epoch's end; shuffle buffers often forget what they
    hold. A source without one is read again from the start of the epoch, and must come
    in the same order.

    It is read in this process. To read ahead: torchdata's ``StatefulDataLoader(data,
    batch_size=None, num_workers=4)`` as the source, which has a state of its own.

    Args:
        source: Anything to iterate over, which begins again whenever it is iterated
            (but after ``load_state_dict``); ``set_epoch`` is called where it exists.
        batch_size: Examples per optimizer step over all ranks; may be assigned.
        micro_batch: Most examples in one micro-batch; read such a stream by `steps`.
        tail: ``"keep"``, ``"drop"`` or ``"carry"`` the epoch's last short batch.
        sharded: Whether the source yields this rank's examples only. Then a state can
            be loaded at the same number of ranks alone. If not, every rank reads all
            and takes its part, and any number will do. Ranks of a sharded source end
            their epochs when their shards end: give them equal ones.
        rank, world_size: Which part: both, or neither: then from torch.distributed.
            Ranks of a source that is not sharded must read it in the same order.
        collate_fn: Makes a batch of a list of examples.
        use_state: False to leave the source's own state unused, and to read an epoch
            again from its start: exact where the state is not.

    Attributes:
        step: Optimizer steps so far, over all epochs.
        epoch: The epoch of the next step, from 0.
        position: Examples of this epoch that lie behind.

    Raises:
        SettingError: An argument makes no sense.

    Example:
        >>> import rightbatch as rb
        >>> stream = rb.data.ShardStream(range(10), batch_size=4)
        >>> [len(batch) for batch in stream]
        [4, 4, 2]
    """

    def __init__(
        self,
        source: Any,
        batch_size: int,
        *,
        micro_batch: int | None = None,
        tail: str = "keep",
        sharded: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        use_state: bool = True,
    ) -> None:
        _check_source(source)
        if tail not in ("keep", "drop", "carry"):
            raise SettingError(
                "tail must be one of keep, drop, carry", seen=f"tail={tail!r}"
            )
        self.source, self.tail, self.sharded = source, tail, sharded
        # Given numbers may be of ranks that are no processes of one group.
        self._compare_ranks = rank is None
        self.rank, self.world_size = place_of(rank, world_size)
        self._compare_ranks &= self.world_size > 1
        self.batch_size = whole_number(batch_size, "batch_size")
        self._micro = (
            None if micro_batch is None else whole_number(micro_batch, "micro_batch")
        )
        self._collate = collate_fn or default_collate
        methods = ("state_dict", "load_state_dict")
        self._has_state = use_state and all(hasattr(source, m) for m in methods)
        # Where the last whole step ended: `_since` examples behind the source's state,
        # or behind the start of the epoch.
        self.step = self.epoch = self.position = self._since = 0
        self._state: Any = None
        self._starts: dict[int, Any] = {}  # the source's state at epochs' starts
        self._reload = False  # whether the source stands somewhere else
        # What was read since, with its epoch; none is behind the epoch's end.
        self._buffer: list[tuple[int, Any]] = []
        self._reading_epoch = 0
        self._examples: Iterator[Any] | None = None

    def steps(self) -> Iterator[Step]:
        """What is left of this epoch, step by step.

        Raises:
            SettingError: The source is empty, shorter than a batch that is not to be
                cut, or sharded and not divided by the ranks.
            Exception: What the source raised. The state is that of the last whole step.
        """
        epoch = self.epoch
        while self.epoch == epoch and (examples := self._read(self._count())):
            self._agree(examples[0])
            count, number = len(examples), self.step
            ranks = split_across_ranks(
                count, 1 if self.sharded else self.world_size, self._micro, turn=number
            )
            parts = ranks[0 if self.sharded else self.rank]
            even = "choose a batch_size that the ranks divide and tail='drop', 'carry'"
            yield Step(
                number=number,
                epoch=epoch,
                examples=count,
                local_examples=sum(part.size for part in parts),
                uneven=even if uneven(ranks) else "",
                micro_batches=len(parts),
                read=partial(self._micro_batches, number, parts, examples, len(ranks)),
            )
            if self.step == number:
                raise step_left_open(number)

    def _micro_batches(
        self, step: int, parts: Parts, examples: list[Any], ranks: int
    ) -> Iterator[MicroBatch]:
        """A step's micro-batches; with the last one it is behind."""
        for number, part in enumerate(parts):
            if self.step != step:
                raise step_is_over(step, self.step)
            chosen = examples[part.start : part.stop]
            data = self._collate(chosen)
            if number + 1 == len(parts):
                self._commit(len(examples))
            yield MicroBatch(
                data=data,
                share=ranks * part.size / len(examples),
                token_share=None,
                weights=torch.ones(len(chosen)),
                groups=torch.zeros(len(chosen), dtype=torch.int64),
                indices=torch.empty(0, dtype=torch.int64),
            )

    def _count(self) -> int:
        """Examples to read for the next step."""
        batch_size = whole_number(self.batch_size, "batch_size")
        if not self.sharded:
            return batch_size
        share, rest = divmod(batch_size, self.world_size)
        if rest or not share:
            raise SettingError(
                f"batch_size {batch_size} is not divided by {self.world_size} ranks",
                seen="each rank reads its own shards",
                fix=f"batch_size={max(1, share) * self.world_size}",
            )
        return share

    def _read(self, count: int) -> list[Any]:
        """The examples of the next step; none where the epoch is over.

        They stay in the buffer until the step is behind: one that is left comes again.
        """
        while len(self._buffer) < count:
            try:
                if self._examples is None:
                    self._examples = self._opened()
                self._buffer.append((self._reading_epoch, next(self._examples)))
            except StopIteration:
                self._end_epoch()
                if not self._buffer or self.tail != "carry":
                    break
            except BaseException:
                # Broken off: read again from the last whole step, when next asked.
                self._buffer.clear()
                self._examples = None
                self._reading_epoch, self._reload = self.epoch, True
                raise
        return [example for _, example in self._buffer[:count]]

    def _opened(self) -> Iterator[Any]:
        """The source, from the last whole step on, or from an epoch's start."""
        resumed = self._reading_epoch == self.epoch
        load = self._reload and resumed and self._state is not None
        self._reload = False
        # Of an epoch's start the state is that of the end before; `set_epoch` comes
        # between the two.
        at_start = self._since == self.position
        if load and at_start:
            self.source.load_state_dict(copy.deepcopy(self._state))
        self._set_epoch()
        if load and not at_start:
            self.source.load_state_dict(copy.deepcopy(self._state))
        examples = iter(self.source)
        if load and at_start:
            first = next(examples, self)
            if first is self:  # it has gone on to its end, and begins again from there
                self._set_epoch()
                examples = iter(self.source)
            else:
                examples = chain([first], examples)
        for number in range(self._since if resumed else 0):
            if next(examples, self) is self:
                raise SettingError(
                    "the source ends before the place where the state was saved",
                    seen=f"{number} examples where {self._since} were read",
                    fix="the source that the state was saved with",
                )
        return examples

    def _set_epoch(self) -> None:
        if hasattr(self.source, "set_epoch"):
            self.source.set_epoch(self._reading_epoch)

    def _end_epoch(self) -> None:
        """The source has no more: the next epoch begins behind the buffer."""
        short = len(self._buffer)
        if self.tail == "drop":
            self._buffer.clear()
        begun = self._reading_epoch == self.epoch and self.position
        if not begun and not self._buffer:
            raise SettingError(
                "tail='drop' drops every batch" if short else "the source is empty",
                seen=f"{short} examples in epoch {self._reading_epoch}, "
                f"batch_size={self.batch_size}",
                fix="a smaller batch_size, tail='keep' or 'carry'"
                if short
                else "a source that begins again whenever it is iterated",
            )
        self._reading_epoch += 1
        self._examples = None
        if self._has_state:
            self._starts[self._reading_epoch] = copy.deepcopy(self.source.state_dict())
        if not self._buffer:
            self._enter(self._reading_epoch)

    def _enter(self, epoch: int) -> None:
        """Stand at the start of an epoch."""
        self.epoch, self.position, self._since = epoch, 0, 0
        self._state = self._starts.pop(epoch, None)

    def _commit(self, count: int) -> None:
        """A step of so many examples is behind."""
        for epoch, _ in self._buffer[:count]:
            if epoch != self.epoch:
                self._enter(epoch)
            self.position += 1
            self._since += 1
        del self._buffer[:count]
        self.step += 1
        if self._buffer:
            return
        if self._reading_epoch != self.epoch:  # these were its last
            self._enter(self._reading_epoch)
            return
        if self._has_state:
            self._state, self._since = self.source.state_dict(), 0
        with suppress(Exception):  # of an example behind: the next step will tell
            self._read(1)  # whether the epoch has another

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, behind the last step handed out."""
        return {
            "version": VERSION,
            "epoch": self.epoch,
            "step": self.step,
            "position": self.position,
            "batch_size": self.batch_size,
            "source": copy.deepcopy(self._state),
            "since": self._since,
            "ranks": [self.rank, self.world_size] if self.sharded else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            SettingError: It is of another kind, or of other ranks of a sharded source.
        """
        current = self.state_dict()
        check_form(state, current, "ShardStream")
        if state["ranks"] != current["ranks"]:
            raise SettingError(
                "the state is of other ranks",
                seen=f"rank and world size {state['ranks']} then, {current['ranks']} "
                "now",
                why="each rank reads shards of its own, so their states cannot be "
                "shared out anew",
                fix="resume on as many ranks, or use sharded=False",
            )
        self.batch_size, self.step = state["batch_size"], state["step"]
        self.epoch = self._reading_epoch = state["epoch"]
        self.position, self._since = state["position"], state["since"]
        self._state = copy.deepcopy(state["source"])
        self._buffer.clear()
        self._starts.clear()
        self._examples, self._reload = None, True

    def _agree(self, example: Any) -> None:
        """Once, at the first step: compare settings and first example. Collective.

        Raises:
            SettingError: The ranks' settings differ.
        """
        if self._compare_ranks:
            settings = self.state_dict() | {"tail": self.tail, "sharded": self.sharded}
            for of_this_rank in ("source", "since", "ranks"):
                del settings[of_this_rank]
            if self.sharded:  # whose shards may differ
                del settings["epoch"], settings["position"]
            check_ranks_agree(settings | {"micro_batch": self._micro}, self.world_size)
            digests: list[Any] = [None] * self.world_size
            dist.all_gather_object(digests, _digest(example))
            if not self.sharded and len(set(digests)) > 1:
                warnings.warn(
                    "the ranks read different examples where they should read the "
                    "same: the source draws random numbers, or comes in an order of "
                    "its own on each, and examples are lost and repeated; seed it "
                    "alike, or sharded=True if it yields each rank's own examples",
                    stacklevel=3,
                )
        self._compare_ranks = False


def _check_source(source: Any) -> None:
    """Refuse what does not yield examples, or only once.

    Raises:
        SettingError: It does not.
    """
    if isinstance(source, DataLoader) and source.batch_sampler is not None:
        raise SettingError(
            "the source is a DataLoader, which yields batches",
            seen=f"a DataLoader of a {type(source.dataset).__name__}",
            why="a stream makes batches of its own",
            fix="its data set, loader.dataset, or a loader with batch_size=None",
        )
    if not isinstance(source, DataLoader) and iter(source) is source:
        raise SettingError(
            "the source is an iterator, which ends after one epoch",
            seen=f"a {type(source).__name__}",
            fix="an object whose __iter__ begins again, such as a data set",
        )


def _digest(example: Any) -> str:
    """Tells an example from others; "" where it cannot be pickled."""
    try:
        return hashlib.blake2b(pickle.dumps(example), digest_size=8).hexdigest()
    except Exception:
        return ""  # it is only for a warning
