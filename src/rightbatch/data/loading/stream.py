"""The stream of batches: fixed by its seed, cut at any size, at any moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Never

import torch

from rightbatch.core.errors import SettingError
from rightbatch.core.whole_number import whole_number
from rightbatch.data.loading.arguments import fingerprint_of, length_of, refuse
from rightbatch.data.loading.fetch import Fetch
from rightbatch.data.loading.ledger import LedgerWriter
from rightbatch.data.loading.prefetch import Prefetch, start_method
from rightbatch.data.loading.step import (
    MicroBatch,
    PlainLoop,
    Step,
    step_is_over,
    step_left_open,
)
from rightbatch.data.loading.step_plan import MicroPlan, PlannedSteps, StepPlan
from rightbatch.data.loading.stream_base import StreamBase
from rightbatch.data.order.order import Order


class BatchStream(PlainLoop, StreamBase):
    """Batches of any size from one fixed stream of examples.

    The order of examples is a function of (seed, epoch, position). Batch size,
    micro-batch, workers and ranks only say where it is cut and who gets what: they may
    change at any step, or between a state and its loading, and every example of an
    epoch is still seen exactly once.

    Random numbers: torch's (on the CPU), numpy's and Python's global generators are
    seeded for each example by (seed, epoch, position), so that augmentation is the same
    at any batch size, in any worker, after a resume; a data set, or a transform in its
    ``transform`` or ``transforms``, that has ``set_random_seed(seed)`` is seeded by it;
    ``seed_fn`` seeds the rest. The loop's own generators are left as they were.

    Args:
        dataset: Map-style data set, or a tuple of tensors with equal first axis.
        batch_size: Examples per optimizer step, over all ranks. Assign
            ``stream.batch_size = 96`` at any time, on all ranks at the same step: it
            holds from the next step on, also with workers that read ahead.
        seed: Chooses the order and the examples' own randomness.
        micro_batch: Most examples in one micro-batch, which is what a worker reads,
            the same on all ranks; read such a stream by `steps`. Default: a rank's
            whole part of the batch.
        order: ``"shuffled"``, ``"sequential"``, ``"replacement"``, ``"poisson"``, or
            one made for the data set: `Strata`, `Pairs`, `Tokens`, ….
        tail: What becomes of an epoch's last short batch: ``"keep"`` it (default),
            ``"drop"`` it, ``"carry"`` it: fill it up from the next epoch, or ``"pad"``
            it: fill it up with examples that the epoch began with, once more.
        rank, world_size: Which part of each batch: both, or neither: then from
            torch.distributed.
        collate_fn: Makes a batch of a list of examples; default torch's. A tuple of
            tensors needs none. If it draws random numbers, they are seeded by the
            micro-batch's first example.
        seeded: False: seed nothing. It costs 2 to 9 us an example where examples draw,
            40 us a batch where they do not, nothing where they are tensors.
        seed_fn: Called with a seed from 0 to 2**32 - 1 before each example is read.
        fingerprint: Any string that tells this data set from others of equal length;
            a saved state is refused by another one.
        ledger: Folder that proves it: every rank writes down each example it handed
            out, across crashes; read it by ``rb.data.Ledger(folder).audit()``.
        num_workers, pin_memory, prefetch_factor, worker_init_fn,
            multiprocessing_context, timeout: As for ``torch.utils.data.DataLoader``.
            Workers persist over epochs. Where a torch.distributed process group exists
            they begin by "forkserver" (so they must be able to import the data set's
            class), unless you choose.

    Raises:
        SettingError: An argument makes no sense for this data set.
        RunFolderError: The ledger cannot be written.

    Example:
        >>> import torch, rightbatch as rb
        >>> data = torch.arange(10.0)
        >>> stream = rb.BatchStream((data,), batch_size=4, seed=0)
        >>> sizes = []
        >>> for (x,) in stream:  # one epoch; the next loop is the next one
        ...     sizes.append(len(x))
        ...     stream.batch_size = 3
        >>> sizes, stream.epoch
        ([4, 3, 3], 1)
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        *,
        seed: int = 0,
        micro_batch: int | None = None,
        order: str | Order = "shuffled",
        tail: str | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        seeded: bool = True,
        seed_fn: Callable[[int], object] | None = None,
        fingerprint: str = "",
        ledger: Any = None,
        num_workers: int = 0,
        pin_memory: bool = False,
        prefetch_factor: int | None = None,
        worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: Any = None,
        timeout: float = 0,
        **others: Never,
    ) -> None:
        refuse(others)
        super().__init__(
            length_of(dataset),
            batch_size,
            seed=seed,
            order=order,
            tail=tail,
            rank=rank,
            world_size=world_size,
            micro_batch=micro_batch,
            fingerprint=fingerprint or fingerprint_of(dataset),
        )
        if collate_fn is not None and isinstance(dataset, tuple):
            raise SettingError(
                "collate_fn has no effect on a tuple of tensors",
                seen="the data set is a tuple of tensors",
                fix="leave it out, or pass a TensorDataset",
            )
        if seed_fn is not None and not seeded:
            raise SettingError(
                "seed_fn has no effect where nothing is seeded",
                seen="seeded=False",
                fix="leave one of them out",
            )
        if ledger is not None and not self.order.covers:
            raise SettingError(
                "a ledger has nothing to prove here",
                seen=f"order {self.order.name!r}",
                why="it counts that an epoch holds every example once, which this "
                "order does not promise",
                fix="leave ledger out",
            )
        if ledger is not None:
            self._ledger = LedgerWriter(ledger, self._planner)
        self._planned = PlannedSteps(self._planner)
        self._fetch = Fetch(dataset, collate_fn, seeded=seeded, seed_fn=seed_fn)
        self._num_workers = whole_number(num_workers, "num_workers", least=0)
        if prefetch_factor is not None:
            prefetch_factor = whole_number(prefetch_factor, "prefetch_factor")
        of_workers = {
            "prefetch_factor": prefetch_factor,
            "worker_init_fn": worker_init_fn,
            "multiprocessing_context": multiprocessing_context,
            "timeout": timeout,
        }
        options: dict[str, Any] = {"num_workers": num_workers, "pin_memory": pin_memory}
        if num_workers:
            options |= of_workers
            options["multiprocessing_context"] = start_method(multiprocessing_context)
        for name, value in of_workers.items():
            if value and not num_workers:
                self._warn(name, f"{name} has no effect without num_workers")
        # Without workers there is nothing to read ahead.
        ahead = bool(num_workers or pin_memory)
        self._prefetch = Prefetch(self._fetch, options) if ahead else None

    @property
    def dataset(self) -> Any:
        """What is read."""
        return self._fetch.data

    @property
    def num_workers(self) -> int:
        """Processes that read it ahead."""
        return self._num_workers

    @property
    def refills(self) -> int:
        """How often what workers had read ahead did not fit a new batch size."""
        return 0 if self._prefetch is None else self._prefetch.refills

    def steps(self) -> Iterator[Step]:
        """What is left of this epoch, step by step.

        Raises:
            Exception: What the data set raised, with the example's number; or torch's
                of a worker that died. The state stays that of the last whole step.
        """
        self._agree()
        epoch = self.epoch
        while self.epoch == epoch:
            cursor = self._cursor
            plan = self._planned.at(cursor, self._batch_size)
            self._warn_of_short_step(plan)
            tokens = plan.cut.tokens
            yield Step(
                number=cursor.step,
                epoch=epoch,
                examples=len(plan.cut.indices),
                local_examples=sum(micro.part.size for micro in plan.micro),
                repeats=plan.cut.repeats,
                tokens=None if tokens is None else int(tokens.sum()),
                weighted=plan.cut.weights is not None,
                uneven=self._how_to_even(plan.cut) if plan.uneven else "",
                micro_batches=len(plan.micro),
                read=partial(self._read, plan),
            )
            if self._cursor is cursor:
                raise step_left_open(cursor.step)

    def _read(self, plan: StepPlan) -> Iterator[MicroBatch]:
        """A step's micro-batches; with the last one it is behind."""
        for number, micro in enumerate(plan.micro):
            if plan.before != self._cursor:
                raise step_is_over(plan.before.step, self._cursor.step)
            if self._prefetch is None:
                data = self._fetch(micro.piece)
            else:
                pieces = partial(self._planned.pieces, plan, number)
                data = self._prefetch.take(micro.piece, pieces)
            if number + 1 == len(plan.micro):
                if self._ledger is not None:
                    self._ledger.step(plan)
                self._cursor = plan.after
            yield micro_batch_of(micro, data)

    def skip(self, steps: int = 1) -> None:
        """Leave out the next steps, as if they had been made: after a loss spike."""
        for _ in range(whole_number(steps, "steps", least=0)):
            self._leave_out(self._planned.at(self._cursor, self._batch_size).after)

    def __enter__(self) -> BatchStream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers. The stream can be read on; new ones are then started."""
        if self._prefetch is not None:
            self._prefetch.close()


def micro_batch_of(plan: MicroPlan, data: Any) -> MicroBatch:
    """The plan with its data."""
    # Copies: what a loop writes into them must not reach the stream.
    indices = torch.from_numpy(plan.piece.indices.copy())
    ones = torch.ones(len(indices))
    zeros = torch.zeros(len(indices), dtype=torch.int64)
    return MicroBatch(
        data=data,
        share=plan.share,
        token_share=plan.token_share,
        weights=ones if plan.weights is None else torch.tensor(plan.weights),
        groups=zeros if plan.groups is None else torch.tensor(plan.groups),
        indices=indices,
    )
