"""The stream of batches: fixed by its seed, cut at any size, at any moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Never

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from rightbatch.core.errors import SettingError
from rightbatch.data.loading.arguments import (
    Sealed,
    fingerprint_of,
    left_open,
    length_of,
    refuse,
    same_length,
    several_parts,
)
from rightbatch.data.loading.ledger import Ledger, Writer
from rightbatch.data.loading.prefetch import Lookahead
from rightbatch.data.loading.prefetch_plan import Guesses
from rightbatch.data.loading.step_plan import MicroPlan, StepPlan
from rightbatch.data.loading.stream_base import Cutter
from rightbatch.data.order.order import Cursor, Order, whole

FIELDS = 16  # tensors of a batch that is not a list of its examples [assumed]


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """One micro-batch of a step.

    Attributes:
        data: What the collate made of it.
        share: Multiply its mean loss by this: the sum over a rank's micro-batches,
            averaged over ranks as DDP does, is the mean over the whole batch.
        token_share: The same for a mean over tokens; None where they are not known.
        weights: Importance weight of each example, shape ``(examples,)``; 1 without.
        groups: Stratum or class of each example, shape ``(examples,)``; 0 without.
        indices: Which examples, shape ``(examples,)``.
    """

    data: Any
    share: float
    token_share: float | None
    weights: Tensor
    groups: Tensor
    indices: Tensor

    @classmethod
    def of(cls, plan: MicroPlan, data: Any) -> MicroBatch:
        """The plan with its data."""
        # Copies: what a loop writes into them must not reach the stream.
        indices = torch.from_numpy(plan.piece.indices.copy())
        ones = torch.ones(len(indices))
        none = torch.zeros(len(indices), dtype=torch.int64)
        return cls(
            data=data,
            share=plan.share,
            token_share=plan.token_share,
            weights=ones if plan.weights is None else torch.tensor(plan.weights),
            groups=none if plan.groups is None else torch.tensor(plan.groups),
            indices=indices,
        )


class Step:
    """One optimizer step: iterate over it for its micro-batches.

    The stream moves on when the last one has been handed out. A step that is left
    before is not counted, and comes again; ``stream.skip()`` gives it up.

    Attributes:
        number: Steps before it.
        epoch: Epoch in which it begins.
        examples: Examples over all ranks.
        repeats: Of those, the ones that only fill it up (``tail="pad"``).
        local_examples: Examples of this rank.
        tokens: Tokens over all ranks, or None.
        weighted: Whether its examples carry importance weights.
    """

    def __init__(self, stream: BatchStream, plan: StepPlan) -> None:
        self._stream, self._plan = stream, plan
        self.number = plan.before.step
        self.epoch = plan.before.position // stream.length
        self.examples, self.repeats = len(plan.cut.indices), plan.cut.repeats
        self.local_examples = sum(len(m.piece.indices) for m in plan.micro if m.share)
        tokens = plan.cut.tokens
        self.tokens = None if tokens is None else int(tokens.sum())
        self.weighted = plan.cut.weights is not None

    def __len__(self) -> int:
        return len(self._plan.micro)

    def __iter__(self) -> Iterator[MicroBatch]:
        return self._stream._micro_batches(self._plan)


class BatchStream(Sealed, Cutter):
    """Batches of any size from one fixed stream of examples.

    The order of examples is a function of (seed, epoch, position). Batch size,
    micro-batch, workers and ranks only say where it is cut and who gets what: they may
    change at any step, or between a state and its loading, and every example of an
    epoch is still seen exactly once.

    Args:
        dataset: Map-style data set, or a tuple of tensors with equal first axis.
        batch_size: Examples per optimizer step, over all ranks. Assign
            ``stream.batch_size = 96`` at any time, on all ranks at the same step: it
            holds from the next step on, also with workers that fetch ahead.
        seed: Chooses the order and the examples' own randomness.
        micro_batch: Most examples in one micro-batch, which is what a worker fetches,
            the same on all ranks; read such a stream by `steps`. Default: a rank's
            whole part of the batch.
        order: ``"shuffled"``, ``"sequential"``, ``"replacement"``, ``"poisson"``, or a
            composition: `Strata`, `Pairs`, `Tokens`.
        tail: What becomes of an epoch's last short batch: ``"keep"`` it (default),
            ``"drop"`` it, ``"carry"`` it: fill it up from the next epoch, or ``"pad"``
            it: fill it up with examples that the epoch began with, once more.
        rank, world_size: Which part of each batch: both, or neither: then from
            torch.distributed.
        collate_fn: Makes a batch of a list of examples; default torch's. A tuple of
            tensors needs none.
        seeded: Where the data set draws random numbers, seed torch, numpy, Python and
            generators of its own for every example by (seed, epoch, position), so that
            augmentation is the same after a resume (from 6 us an example). Where it
            draws none nothing is seeded, and data sets with ``__getitems__`` are read
            a batch at a time. False: never, nor is it watched whether it draws.
        fingerprint: Any string that tells this data set from others of equal length;
            a saved state is refused by another one.
        ledger: Folder that proves it: every rank writes down each example it handed
            out, across crashes; read it by ``Ledger(folder).audit()``.
        num_workers, pin_memory, prefetch_factor, worker_init_fn,
            multiprocessing_context, timeout: As for ``torch.utils.data.DataLoader``.
            Workers persist over epochs.

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
        self.dataset = dataset
        if collate_fn is not None and isinstance(dataset, tuple):
            raise SettingError(
                "collate_fn has no effect on a tuple of tensors",
                seen="the data set is a tuple of tensors",
                fix="leave it out, or pass a TensorDataset",
            )
        if ledger is not None and not self.composition.covers:
            raise SettingError(
                "a ledger has nothing to prove here",
                seen=f"order {self.composition.name!r}",
                why="it counts that an epoch holds every example once, which this "
                "order does not promise",
                fix="leave ledger out",
            )
        self._ledger = None if ledger is None else Ledger(ledger)
        if self._ledger is not None:
            self._ledger.prepare()
        self._guesses = Guesses(self._planner)
        options: dict[str, Any] = {
            "num_workers": whole(num_workers, "num_workers", least=0),
            "pin_memory": pin_memory,
        }
        if num_workers:
            options["worker_init_fn"] = worker_init_fn
            options["timeout"] = timeout
            if prefetch_factor is not None:
                options["prefetch_factor"] = whole(prefetch_factor, "prefetch_factor")
            options["multiprocessing_context"] = multiprocessing_context
        elif prefetch_factor is not None:
            self._warn("prefetch_factor has no effect without num_workers")
        for name, given in (
            ("timeout", timeout),
            ("worker_init_fn", worker_init_fn),
            ("multiprocessing_context", multiprocessing_context),
        ):
            if given and not num_workers:
                self._warn(f"{name} has no effect without num_workers")
        self._own_collate = collate_fn is not None
        self.num_workers = int(options["num_workers"])
        self._lookahead = Lookahead(dataset, collate_fn, seeded=seeded, options=options)
        self._seal()

    @property
    def refills(self) -> int:
        """How often what workers had fetched ahead did not fit a new batch size."""
        return self._lookahead.refills

    def __iter__(self) -> Iterator[Any]:
        """What is left of this epoch, one collated batch per step.

        With weights (`Strata`): pairs ``(batch, weights)``.

        Raises:
            SettingError: A step has several micro-batches.
        """
        for step in self.steps():
            if len(step) > 1:
                raise several_parts(
                    len(step),
                    f"batch_size={self._batch_size}, micro_batch="
                    f"{self._planner.micro_batch}, order {self.composition.name!r}",
                )
            if step._plan.uneven:
                self._warn(
                    "ranks have different numbers of examples in some steps (such as "
                    f"{step.local_examples} of {step.examples} here): a plain mean "
                    "over ranks weighs them wrongly; read stream.steps() and multiply "
                    f"each loss by micro.share, or {self._even(step._plan.cut)}"
                )
            (micro,) = tuple(step)
            weighted = step._plan.cut.weights is not None
            yield (micro.data, micro.weights) if weighted else micro.data

    def steps(self) -> Iterator[Step]:
        """What is left of this epoch, step by step.

        Raises:
            Exception: What the data set raised, with the example's number; or a
                JobError where a worker died. The state stays that of the last whole
                step.
        """
        self._agree()
        same_length(self.dataset, self.length)
        self._settle()
        epoch = self.epoch
        while self.epoch == epoch:
            cursor = self._cursor
            step = Step(self, self._guesses.plan(cursor, self._batch_size))
            self._tell_short(step._plan)
            yield step
            if self._cursor is cursor:
                raise left_open(
                    step.number,
                    "for micro in step: ...; to give a step up: stream.skip()",
                )
            self._settle()  # a larger batch may no longer fit

    def skip(self, steps: int = 1) -> None:
        """Leave out the next steps, as if they had been made: after a loss spike."""
        for _ in range(whole(steps, "steps", least=0)):
            self._settle()
            after = self._guesses.plan(self._cursor, self._batch_size).after
            self._leave_out(after, "skipped")

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch, unless the stream is in it already.

        Orders that keep counts of their own (`Strata`, `Pairs`) go on from them.
        """
        before = self._cursor
        super().set_epoch(epoch)
        after, self._cursor = self._cursor, before
        self._leave_out(after, "skipped")

    def _moved(self) -> None:
        self._guesses.ahead.clear()
        if self._ledger is not None:
            self._ledger.restart()

    def __enter__(self) -> BatchStream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers. The stream can be read on; new ones are then started."""
        self._lookahead.close()

    def _micro_batches(self, plan: StepPlan) -> Iterator[MicroBatch]:
        for number, micro in enumerate(plan.micro):
            if plan.before != self._cursor:
                raise SettingError(
                    f"step {plan.before.step} is over",
                    seen=f"the stream stands at step {self._cursor.step}",
                    why="its examples are handed out once; skip, set_epoch and "
                    "load_state_dict end a step",
                    fix="go through a step once, before asking for the next",
                )
            data = self._lookahead.take(
                micro.piece, lambda first=number: self._guesses.onward(plan, first)
            )
            made = MicroBatch.of(micro, data)
            if self._own_collate:
                self._tell_left_out(data, len(made.indices))
            if number + 1 == len(plan.micro):
                self._commit(plan)
            yield made

    def _tell_left_out(self, data: Any, given: int) -> None:
        """Say once that a collate seems not to keep what it is given."""
        tensors = [t for t in tree_leaves(data) if isinstance(t, Tensor) and t.ndim]
        if len(tensors) >= min(given, FIELDS):
            return  # a list of examples
        kept = {len(t) for t in tensors}
        if len(kept) == 1 and 1 < min(kept) < given:
            self._warn(
                f"collate_fn made {min(kept)} examples of {given}: shares, weights and "
                "ledger count those that it left out; leave broken ones out of the "
                "data set instead (torch.utils.data.Subset)"
            )

    def _commit(self, plan: StepPlan) -> None:
        self._move(plan.after, lambda ledger: ledger.write(plan, self._writer()))

    def _settle(self) -> None:
        """Stand where the next step begins."""
        self._leave_out(self._settled(), "dropped")

    def _leave_out(self, after: Cursor, kind: str) -> None:
        """Go to a place, past what nobody will see."""
        before = self._cursor

        def write(ledger: Ledger) -> None:
            places = before.position, after.position
            ledger.leave_out(before.step, *places, kind, self._writer())

        self._move(after, write)

    def _move(self, after: Cursor, write: Callable[[Ledger], None]) -> None:
        """In the stream and in the ledger, or in neither: a Ctrl-C may come between."""
        if (ledger := self._ledger) is None:
            self._cursor = after
            return
        mark = ledger.mark()
        try:
            write(ledger)
            self._cursor = after
        except BaseException:
            if self._cursor is not after:
                ledger.back_to(mark)
            raise

    def _writer(self) -> Writer:
        planner = self._planner
        return Writer(
            segment=self._segment,
            rank=planner.rank,
            world_size=planner.world_size,
            length=self.length,
        )
