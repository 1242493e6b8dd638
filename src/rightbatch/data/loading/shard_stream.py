"""Batches from a source that can only be iterated, as exact as the source allows."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, default_collate

from rightbatch.core.errors import SettingError
from rightbatch.data.loading.arguments import Sealed, left_open, several_parts
from rightbatch.data.loading.shard_reader import Place, Reader
from rightbatch.data.loading.split_ranks import Part, deal
from rightbatch.data.loading.state import alike, gathered
from rightbatch.data.loading.stream import MicroBatch
from rightbatch.data.loading.stream_base import place_of
from rightbatch.data.order.order import whole

VERSION = 1
MANY = 100_000  # examples read again of which we say so [assumed]


class ShardStep:
    """One optimizer step: iterate over it for its micro-batches.

    The stream moves on when the last one has been handed out.

    Attributes:
        number: Steps before it.
        epoch: Epoch in which it begins.
        examples: Examples over all ranks; of this rank where the source is sharded.
        local_examples: Examples of this rank.
    """

    def __init__(
        self,
        stream: ShardStream,
        examples: list[Any],
        hands: tuple[tuple[Part, ...], ...],
        after: Place,
    ) -> None:
        self._stream, self._examples, self._after = stream, examples, after
        self._before = stream._place
        self._parts = hands[0] if stream.sharded else hands[stream.rank]
        self._ranks = len(hands)
        self.number, self.epoch = stream.step, stream.epoch
        self.examples = len(examples)
        self.local_examples = _count(self._parts)
        self.uneven = len({_count(hand) for hand in hands}) > 1

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[MicroBatch]:
        for number, part in enumerate(self._parts):
            if self._stream._place is not self._before:
                raise SettingError(
                    f"step {self.number} is over",
                    seen=f"the stream stands at step {self._stream.step}",
                    why="its examples are handed out once",
                    fix="go through a step once, before asking for the next",
                )
            own = self._examples[part.start : part.stop]
            size = 0 if part.filler else len(own)
            made = MicroBatch(
                data=self._stream._collate(own),
                share=self._ranks * size / self.examples,
                token_share=None,
                weights=torch.ones(len(own)),
                groups=torch.zeros(len(own), dtype=torch.int64),
                indices=torch.empty(0, dtype=torch.int64),
            )
            if number + 1 == len(self._parts):
                self._stream._commit(self)
            yield made


def _count(hand: tuple[Part, ...]) -> int:
    return sum(0 if part.filler else part.stop - part.start for part in hand)


class ShardStream(Sealed):
    """Batches of any size from an iterable source: shards, a database, the web.

    The source decides the order; we cut it where the batch size says, at every step
    anew. A resume is exact if the source's own ``state_dict`` is: its state is kept
    every 64 examples, and those since are read again. Sources with a shuffle buffer
    often forget it in their state: test yours with `resume_is_exact`. A source without
    a state is read again from the start of the epoch. If the last example read again is
    not what it was, a warning says so.

    Args:
        source: Anything to iterate over, which begins again whenever it is iterated
            (but after ``load_state_dict``); ``set_epoch`` is called where it exists.
        batch_size: Examples per optimizer step over all ranks; may be assigned.
        tail: ``"keep"``, ``"drop"`` or ``"carry"`` the epoch's last short batch.
        sharded: Whether the source yields this rank's examples only. Then a state can
            be loaded at the same number of ranks alone. If not, every rank reads all
            and takes its part, and any number will do. Ranks of a sharded source end
            their epochs when their shards end: give them equal ones.
        micro_batch: Most examples in one micro-batch; read such a stream by `steps`.
        rank, world_size: Which part: both, or neither: then from torch.distributed.
        collate_fn: Makes a batch of a list of examples.
        use_state: False to leave the source's own state unused, and to read an epoch
            again from its start: exact where the state is not (`resume_is_exact`).
        state_every: Examples between two states of the source; a resume reads as many
            again at most.
        num_workers: 0, or 1 to read ahead in a process of its own. More would read the
            shards in an order that depends on their number.

    Raises:
        SettingError: An argument makes no sense.

    Example:
        >>> from rightbatch.data.loading.shard_stream import ShardStream
        >>> stream = ShardStream(range(10), batch_size=4)
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
        num_workers: int = 0,
        use_state: bool = True,
        state_every: int = 64,
    ) -> None:
        if not hasattr(source, "__iter__"):
            raise SettingError("the source cannot be iterated", seen=f"{type(source)}")
        if isinstance(source, DataLoader):
            raise SettingError(
                "the source is a DataLoader, which yields batches",
                seen=f"a DataLoader of a {type(source.dataset).__name__}",
                why="a stream makes batches of its own",
                fix="its data set, loader.dataset",
            )
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
        # Given numbers may be of ranks that are no processes of one group.
        self._to_agree = self._to_compare = rank is None
        self.rank, self.world_size = place_of(rank, world_size)
        self.batch_size = whole(batch_size, "batch_size")
        self._micro = None if micro_batch is None else whole(micro_batch, "micro_batch")
        self._step = 0
        self._collate = collate_fn or default_collate
        every = whole(state_every, "state_every")
        self._reader = Reader(source, every if self.has_state else 0, num_workers)
        self._place = self._reader.place  # behind the last whole step
        self._warned = False
        self._seal()

    @property
    def step(self) -> int:
        """Optimizer steps so far, over all epochs."""
        return self._step

    @property
    def epoch(self) -> int:
        """The epoch of the next step, from 0."""
        return self._place.epoch

    @property
    def position(self) -> int:
        """Examples of this epoch that lie behind."""
        return self._place.position

    @property
    def has_state(self) -> bool:
        """Whether the source can say where it stands, and is asked."""
        names = ("state_dict", "load_state_dict")
        return self._use_state and all(hasattr(self.source, n) for n in names)

    def __iter__(self) -> Iterator[Any]:
        """What is left of this epoch, one collated batch per step.

        Raises:
            SettingError: A step has several micro-batches; or as `steps`.
        """
        for step in self.steps():
            if len(step) > 1:
                raise several_parts(
                    len(step),
                    f"batch_size={self.batch_size}, micro_batch={self._micro}",
                )
            if step.uneven and not self._warned:
                self._warned = True
                warnings.warn(
                    "ranks have different numbers of examples in some steps (such as "
                    f"{step.local_examples} of {step.examples} here): a plain mean "
                    "over ranks weighs them wrongly; read stream.steps() and multiply "
                    "each loss by micro.share, or choose a batch_size that the ranks "
                    "divide and tail='drop' or 'carry'",
                    stacklevel=2,
                )
            (micro,) = tuple(step)
            yield micro.data

    def steps(self) -> Iterator[ShardStep]:
        """What is left of this epoch, step by step.

        Raises:
            SettingError: The source is empty, shorter than a batch that is not to be
                cut, or sharded and not divided by the ranks.
            JobError: The worker died. The state stays that of the last whole step.
        """
        self._agree()
        epoch, first = self.epoch, self.step if not self.position else -1
        while self.epoch == epoch:
            here = self._place
            if self._reader.place is not here:  # a step was left: it comes again
                self._reader.go(here)
            try:
                examples = self._take(self._local())
            except Exception:
                self._compare(None)  # the others are waiting to compare
                raise
            self._compare(self._reader.place.known)
            if not examples:  # a tail that is dropped
                self._place = self._reader.place
                if self.step == first:
                    raise SettingError(
                        "tail='drop' drops every batch",
                        seen=f"batch_size={self.batch_size}, fewer examples in epoch "
                        f"{epoch}",
                        why="an epoch holds no whole batch, so there is no step at all",
                        fix="a smaller batch_size, tail='keep' or 'carry'",
                    )
                continue
            ranks = 1 if self.sharded else self.world_size
            hands = deal(len(examples), ranks, self._micro, turn=self.step)
            step = ShardStep(self, examples, hands, self._reader.place)
            yield step
            if self._place is here:
                raise left_open(step.number)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, behind the last step handed out."""
        place = self._place
        return {
            "version": VERSION,
            "epoch": place.epoch,
            "step": self.step,
            "position": place.position,
            "batch_size": self.batch_size,
            "source": copy.deepcopy(place.before),
            "used": place.used,
            "last": place.known,
            "ranks": [self.rank, self.world_size] if self.sharded else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            SettingError: It is of another kind, or of other ranks of a sharded source.
        """
        own = self.state_dict()
        numbers = ("epoch", "step", "position", "used", "batch_size")
        sound = isinstance(state, Mapping) and all(key in state for key in own)
        sound = sound and state["version"] == VERSION
        sound = sound and all(type(state[n]) is int and state[n] >= 0 for n in numbers)
        if not sound:
            keys = list(state)[:5] if isinstance(state, Mapping) else [repr(state)[:40]]
            raise SettingError(
                "this is no state of a ShardStream",
                seen=f"{', '.join(map(str, keys))}",
                fix="what stream.state_dict() gave",
            )
        if state["ranks"] != own["ranks"]:
            raise SettingError(
                "the state is of other ranks",
                seen=f"rank and world size {state['ranks']} then, {own['ranks']} now",
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
        self.batch_size, self._step = state["batch_size"], state["step"]
        self._place = Place(
            epoch=state["epoch"],
            position=state["position"],
            before=copy.deepcopy(state["source"]),
            used=state["used"],
            known=state["last"],
        )
        self._reader.go(self._place)

    def close(self) -> None:
        """Stop reading ahead; what was read and not handed out is read again."""
        self._reader.go(self._place)

    def _agree(self) -> None:
        """Once, before the first step: compare the streams of all ranks. Collective.

        Raises:
            SettingError: They differ.
        """
        wanted, self._to_agree = self._to_agree, False
        if not wanted or self.world_size == 1:
            return
        own = {
            "step": self.step,
            "batch_size": self.batch_size,
            "tail": self.tail,
            "micro_batch": self._micro,
            "sharded": self.sharded,
        }
        if not self.sharded:
            own |= {"epoch": self.epoch, "position": self.position}
        alike(gathered(own, self.world_size))

    def _compare(self, known: str | None) -> None:
        """Once, at the first step: whether the ranks read the same. Collective.

        Args:
            known: Digest of the last example read; None where reading failed.
        """
        wanted, self._to_compare = self._to_compare, False
        if not wanted or self.sharded or self.world_size == 1:
            return
        found = gathered(known, self.world_size)
        if None not in found and len(set(found)) > 1:
            warnings.warn(
                "the ranks read different examples where they should read the same: "
                "the source comes in an order of its own on each (seed it alike), or "
                "draws random numbers; in the first case examples are lost and "
                "repeated. A source that yields each rank's own examples: sharded=True",
                stacklevel=3,
            )

    def _commit(self, step: ShardStep) -> None:
        self._place, self._step = step._after, self._step + 1

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
        """The next examples; the reader stands behind them, never at an epoch's end."""
        found: list[Any] = []
        while len(found) < count:
            if self._available():
                found.append(self._reader.take())
                continue
            self._turn()
            if self.tail != "carry":
                return [] if self.tail == "drop" else found
        self._reader.mark(found[-1])
        try:
            if not self._available():
                self._turn()
        except Exception:
            # The example behind this batch cannot be read: the next step will tell.
            self._reader.close()
        return found

    def _available(self) -> bool:
        found = self._reader.available()
        if self._reader.changed:
            self._reader.changed = False
            warnings.warn(
                "the last example before the saved place is not what it was: the "
                "source comes in another order than before, or draws random numbers "
                "of its own; in the first case examples are lost and repeated "
                "(rightbatch.data.loading.resume_check.resume_is_exact tests it)",
                stacklevel=2,
            )
        return found

    def _turn(self) -> None:
        """The next epoch begins."""
        if not self._reader.place.position:
            raise SettingError(
                "the source is empty",
                seen=f"no example in epoch {self._reader.place.epoch}",
                fix="a source that begins again whenever it is iterated",
            )
        self._reader.turn()
