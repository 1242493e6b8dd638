"""Where a stream stands and how it is cut, whatever carries the data."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

from rightbatch.core.errors import SettingError
from rightbatch.core.whole_number import whole_number
from rightbatch.data.loading.arguments import subset_of
from rightbatch.data.loading.ledger import LedgerWriter
from rightbatch.data.loading.state import VERSION, check_ranks_agree, digest, restored
from rightbatch.data.loading.step_plan import Planner, StepPlan, check_tail
from rightbatch.data.order.draws import DRAWS
from rightbatch.data.order.order import Cursor, Cut, Order


class StreamBase:
    """What `BatchStream` and `BatchSampler` share.

    Attributes:
        length: Examples in the data set.
        fingerprint: Tells its data set from others of equal length, or "".
    """

    _ledger: LedgerWriter | None = None

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        seed: int,
        order: str | Order,
        tail: str | None,
        rank: int | None,
        world_size: int | None,
        micro_batch: int | None,
        fingerprint: str,
    ) -> None:
        order = _order_of(order, length)
        # Given numbers may be of ranks that are no processes of one group.
        self._compare_ranks = rank is None
        rank, world_size = place_of(rank, world_size)
        self._planner = Planner(
            order,
            whole_number(seed, "seed", least=0),
            check_tail(tail, order),
            rank,
            world_size,
            None if micro_batch is None else whole_number(micro_batch, "micro_batch"),
        )
        self.length, self.fingerprint = length, fingerprint
        self._warned: set[str] = set()
        self.batch_size = batch_size
        self._segment = 0  # how many times a state was loaded on the way here
        self._order_digest = digest(order.fingerprint())
        self._cursor = Cursor(extra=order.start())

    @property
    def batch_size(self) -> int:
        """Examples (or tokens) of the next step, over all ranks."""
        return self._batch_size

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        value = whole_number(value, "batch_size")
        self.order.check(value)
        if self.tail == "drop" and value > self.length:
            raise SettingError(
                "tail='drop' would drop every batch",
                seen=f"batch_size={value}, {self.length} examples",
                why="an epoch holds no whole batch, so there would be no step at all",
                fix=f"batch_size={self.length} or less, tail='keep' or 'carry'",
            )
        self._batch_size = value

    @property
    def rank(self) -> int:
        """Of this process."""
        return self._planner.rank

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self._planner.world_size

    @property
    def order(self) -> Order:
        """Which examples come next."""
        return self._planner.order

    @property
    def seed(self) -> int:
        """Seed of the order."""
        return self._planner.seed

    @property
    def tail(self) -> str:
        """What becomes of an epoch's last short batch."""
        return self._planner.tail

    @property
    def micro_batch(self) -> int | None:
        """Most examples in one micro-batch."""
        return self._planner.micro_batch

    @property
    def epoch(self) -> int:
        """The epoch of the next step, from 0."""
        return self._settled().position // self.length

    @property
    def position(self) -> int:
        """Examples of this epoch that lie behind; 0 after its last one."""
        return self._settled().position % self.length

    @property
    def step(self) -> int:
        """Optimizer steps so far, over all epochs."""
        return self._cursor.step

    @property
    def steps_left(self) -> int:
        """Steps until this epoch's end at today's batch size.

        Where it counts tokens, or steps may be short (`Distinct` with several
        keys), the epoch is gone through to know: a second for some thousand steps.
        """
        cursor = self._settled()
        if self.order.steady:
            return self._planner.steps_left(cursor.position, self._batch_size)
        epoch, steps = cursor.position // self.length, 0
        while cursor.position // self.length == epoch:
            stop = self._planner.stop(cursor)
            _, cursor = self.order.cut(self.seed, cursor, self._batch_size, stop)
            steps += 1
        return steps

    def __len__(self) -> int:
        """Steps of this epoch: those made in it plus `steps_left`."""
        cursor = self._settled()
        return cursor.step - cursor.first_step + self.steps_left

    def __repr__(self) -> str:
        part = ""
        if self.world_size > 1:
            part = f", rank {self.rank} of {self.world_size}"
        return (
            f"{type(self).__name__}({self.length} examples, batch_size="
            f"{self._batch_size}, order {self.order.name!r}{part}: epoch "
            f"{self.epoch}, {self.position} examples behind)"
        )

    @property
    def composed(self) -> bool:
        """Whether not every part of a batch is composed like every other."""
        batch = self._batch_size
        return self.alike(batch, batch) < batch

    def alike(self, batch: int, most: int) -> int:
        """Into how many groups of equal composition a batch of it can be cut."""
        return self.order.equal_groups(batch, self._cursor, most)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch, unless the stream is in it already.

        For trainers that call it on a sampler before every epoch. Orders that keep
        counts of their own (`Strata`, `Pairs`) go on from them.
        """
        epoch = whole_number(epoch, "epoch", least=0)
        if epoch != self.epoch:
            step = self._cursor.step
            extra = self.order.moved(self._cursor.extra)
            self._leave_out(Cursor(epoch * self.length, step, step, extra))

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands: a few numbers, equal on all ranks.

        Behind the last step handed out, whatever the workers have fetched ahead.
        """
        extra = self.order.saved(self._cursor.extra)
        return {
            "version": VERSION,
            "order": self.order.name,
            "length": self.length,
            "seed": self.seed,
            "position": self._cursor.position,
            "step": self._cursor.step,
            "first_step": self._cursor.first_step,
            "extra": list(extra),
            "batch_size": self._batch_size,
            "segment": self._segment,
            "order_settings": self._order_digest,
            "fingerprint": self.fingerprint,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`: at any number of ranks, workers or micro-batch.

        The batch size in force is restored with it; assign another one afterwards.

        Raises:
            SettingError: It is the state of another data set, seed or order.
        """
        cursor = restored(state, self.state_dict())
        self.batch_size = int(state["batch_size"])
        self._cursor, self._segment = cursor, int(state["segment"]) + 1
        self.order.loaded()
        if self._ledger is not None:
            self._ledger.begin(self._segment)

    def _settled(self) -> Cursor:
        """Where the next step begins: not in a tail that is to be dropped."""
        return self._planner.settle(self._cursor, self._batch_size)

    def _leave_out(self, after: Cursor) -> None:
        """Go to a place, past what nobody will see."""
        before = self._cursor
        if self._ledger is not None:
            self._ledger.left_out(before.step, before.position, after.position)
        self._cursor = after

    def _agree(self) -> None:
        """Once, before the first step: compare the streams of all ranks. Collective.

        Raises:
            SettingError: They differ.
        """
        if self._compare_ranks and self.world_size > 1:
            settings = self.state_dict() | {"tail": self.tail}
            settings["micro_batch"] = self.micro_batch
            # Those that data sets make may be random; subsets must not be.
            settings["subset"] = subset_of(settings.pop("fingerprint"))
            check_ranks_agree(settings, self.world_size)
        self._compare_ranks = False

    def _warn_of_short_step(self, plan: StepPlan) -> None:
        """Say once that a step has fewer examples than were asked for."""
        count, order = len(plan.cut.indices), self.order
        if order.steady or order.counts != "examples":
            return
        if count < plan.batch_size:
            self._warn(
                "short",
                f"only {count} examples without a common key were found for a batch of "
                f"{plan.batch_size}: some steps are shorter; choose a smaller "
                "batch_size",
            )

    def _how_to_even(self, cut: Cut) -> str:
        """What gives every rank as many examples."""
        each = cut.unit * self.world_size
        size = f"choose a batch_size that is a multiple of {each}"
        if cut.tokens is not None:
            return "multiply by micro.token_share for a mean over tokens"
        if not self.order.covers:
            return size
        return f"{size} and tail='drop', 'carry' or 'pad'"

    def _warn(self, subject: str, text: str) -> None:
        """Once for each subject."""
        if subject not in self._warned:
            self._warned.add(subject)
            warnings.warn(text, stacklevel=3)


def place_of(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Rank and world size: as given, or from torch.distributed, or alone.

    Raises:
        SettingError: One is given without the other, or the rank is too large.
    """
    if (rank is None) != (world_size is None):
        raise SettingError(
            "rank and world_size belong together",
            seen=f"rank={rank}, world_size={world_size}",
            why="every process would take the same part",
            fix="both, or neither under torch.distributed",
        )
    if rank is None or world_size is None:
        if dist.is_available() and dist.is_initialized():
            return dist.get_rank(), dist.get_world_size()
        if int(os.environ.get("WORLD_SIZE", "1") or 1) > 1:
            warnings.warn(
                "WORLD_SIZE is set, but torch.distributed is not initialised: this "
                "stream feeds one process all examples; call init_process_group first",
                stacklevel=4,
            )
        return 0, 1
    rank = whole_number(rank, "rank", least=0)
    world_size = whole_number(world_size, "world_size")
    if rank >= world_size:
        raise SettingError(
            f"rank {rank} is not below world_size {world_size}",
            seen=f"rank={rank}, world_size={world_size}",
            fix="ranks count from 0; leave both out under torch.distributed",
        )
    return rank, world_size


def _order_of(order: str | Order, length: int) -> Order:
    """An order, made by its name or given.

    Raises:
        SettingError: No such order, or it is of another number of examples.
    """
    if isinstance(order, str) and order in DRAWS:
        return DRAWS[order](length)
    if not isinstance(order, Order):
        raise SettingError(
            f"order must be one of {', '.join(DRAWS)}, or made from the data set",
            seen=f"order={order!r:.60}",
            fix="order=Strata(labels), Pairs(labels, each=4) or Tokens(lengths, ...)",
        )
    if order.length != length:
        raise SettingError(
            f"the {order.name} order is of another data set",
            seen=f"made for {order.length} examples, the data set has {length}",
            fix="make it from this data set's own labels, lengths or weights",
        )
    return order
