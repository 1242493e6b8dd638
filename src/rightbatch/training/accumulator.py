"""The exact gradient of one batch of any size, in pieces that fit in memory."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rightbatch.core.errors import (
    JobError,
    NotFiniteError,
    SettingError,
    UpdateOutOfMemoryError,
)
from rightbatch.core.torch_private import out_of_memory
from rightbatch.core.trees import even_pieces, example_count, slice_batch
from rightbatch.core.user_code import READING, user_code
from rightbatch.core.whole_number import whole_number
from rightbatch.data.loading.step import Step
from rightbatch.job.loss import Loss
from rightbatch.job.optimizers import first_rate
from rightbatch.job.several_optimizers import Optimizers
from rightbatch.training.accumulator_arguments import (
    AUTOCAST,
    check_settings,
    checked_parts,
)
from rightbatch.training.coupled_batch import check_together, no_room_together
from rightbatch.training.equality import Equality
from rightbatch.training.first_batch import FirstBatch
from rightbatch.training.gradient import (
    BatchGradient,
    Gradient,
    Part,
    PassOutOfMemory,
)
from rightbatch.training.ranks import Ranks
from rightbatch.training.recovery import MicroBatchSize


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """What one step did.

    Attributes:
        loss: Mean over the whole batch, over all ranks.
        count: What it is a mean over: examples, or what the loss counted.
        grad_norm: Norm of the whole gradient, before clipping.
        micro_batches: Micro-batches of this rank.
        retries: How often it ran out of memory on the way.
        applied: Whether the update was made; a loss or gradient that is not finite is
            skipped where that was asked for.
        flags: The largest of what each rank passed as ``flags``.
    """

    loss: float
    count: float
    grad_norm: float
    micro_batches: int
    retries: int
    applied: bool
    flags: tuple[float, ...] = ()


class Accumulator:
    """Makes one exact large-batch update out of micro-batches.

    The gradient is that of the sum of all losses divided by the count of the whole
    batch over all ranks, never a mean of means. If memory runs out, everything that
    the failed pass changed is put back and the same batch is made in smaller pieces;
    the batch, its gradient and the learning rate stay as planned.

    Args:
        model: What the loop calls; wrapped in DDP or sharded by ``fully_shard`` it
            averages over ranks, once per step.
        loss: ``(model, batch) ->`` the mean over the batch's examples; or
            ``(sum, count)`` where targets are ragged or masked.
        optimizer: Makes the update; several, as a list, make it together: one norm is
            clipped, and all of them step or none.
        micro_batch: Most examples of one piece on one rank; None: the whole batch.
        clip_norm: Largest norm of the whole gradient.
        precision: ``"float32"``, ``"bfloat16"`` or ``"float16"`` (autocast).
        scaler: A ``torch.amp.GradScaler``, for float16.
        nonfinite: If loss or gradient is NaN or infinite: ``"stop"`` before the update,
            or ``"skip"`` the batch (counted in ``skipped``).
        count: ``batch ->`` its number of examples, where its tensors do not tell.
        split: ``(batch, start, stop) ->`` the part of it, where they cannot be cut.
        fits: ``examples that did not fit ->`` the most that should, from a memory law;
            default: one piece more than before.
        coupled: Whether the examples of a micro-batch see each other (BatchNorm): each
            then holds exactly ``micro_batch`` of them, also when memory runs out.
        check: Whether to compare split and whole gradient once, at the first split, and
            to see whether a pair of the loss is ``(sum, count)``.
        tell: Hears of trouble and how it was met; default: a warning.

    Attributes:
        skipped: Batches left out because they were not finite.
        micro_batch_size: The micro-batch planned, and the one in force.

    Raises:
        SettingError: An argument makes no sense.

    Example:
        >>> import torch, rightbatch as rb
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> def loss(model, batch):
        ...     return (model(batch[0]) - batch[1]).square().mean()
        >>> step = rb.Accumulator(model, loss, optimizer, micro_batch=16)
        >>> x = torch.randn(100, 3)
        >>> update = step((x, x.sum(1, keepdim=True)))
        >>> update.micro_batches, update.count
        (7, 100.0)
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: Optimizers,
        micro_batch: int | None = None,
        *,
        clip_norm: float | None = None,
        precision: str = "float32",
        scaler: Any = None,
        nonfinite: Literal["stop", "skip"] = "stop",
        count: Callable[[Any], int] = example_count,
        split: Callable[[Any, int, int], Any] | None = None,
        fits: Callable[[int], int] | None = None,
        coupled: bool = False,
        check: bool = True,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        optimizer = checked_parts(model, loss, optimizer)
        if micro_batch is not None:
            micro_batch = whole_number(micro_batch, "micro_batch")
        elif coupled:
            raise SettingError("coupled needs a micro_batch", fix="micro_batch=8")
        check_settings(clip_norm, precision, scaler, nonfinite)
        if scaler is not None and not scaler.is_enabled():
            scaler = None
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.clip_norm, self.scaler, self.nonfinite = clip_norm, scaler, nonfinite
        self.count, self.split, self.fits = count, split, fits
        self.ranks = Ranks(model)
        dtype = AUTOCAST[precision]
        self.gradient = BatchGradient(model, loss, optimizer, self.ranks, dtype, scaler)
        self.device = self.gradient.device
        self.micro_batch_size = MicroBatchSize(most=0, now=0)
        self.plan_micro_batch(micro_batch)
        self.skipped = self.retries = 0
        self.coupled = coupled
        self._look_for_unheld = True
        compared = check and not coupled  # whose pieces are meant
        self.first = FirstBatch(
            self.gradient, self._cutter, pair=check, equality=compared
        )
        self.tell = tell or (lambda text: warnings.warn(text, stacklevel=4))

    def __call__(
        self,
        batch: Any,
        *,
        examples: int | None = None,
        flags: Sequence[float] = (),
    ) -> Update:
        """Make one update from one batch.

        Args:
            batch: This rank's examples, collated; or a `Step` of a `BatchStream`.
            examples: Examples over all ranks, where known: saves a pass over the
                gradient.
            flags: Numbers to tell the other ranks on the way.

        Raises:
            JobError: Not even one example fits, or not the micro-batch where it is
                ``coupled``; the loss has no gradient in any piece, is not finite (with
                ``nonfinite="stop"``: nothing has changed), returns a pair that is no
                ``(sum, count)``, or failed on some rank.
            SettingError: The batch is no multiple of a ``coupled`` micro-batch.
            UpdateOutOfMemoryError: Memory ran out inside the optimizer.
        """
        before = self.retries
        gradient, micro_batches = self.differentiate(batch, examples, flags)
        update = self._finish(gradient, micro_batches, self.retries - before)
        if self.micro_batch_size.calm():
            self.tell(f"micro-batch back to {self.micro_batch_size.now} examples")
        return update

    step = __call__

    @property
    def equality(self) -> Equality | None:
        """What the comparison at the first split has found."""
        return self.first.equality

    def differentiate(
        self,
        batch: Any,
        examples: int | None = None,
        flags: Sequence[float] = (),
        *,
        count: int | None = None,
    ) -> tuple[Gradient, int]:
        """Leave the exact gradient of a batch in ``.grad``, and make no update.

        Arguments and errors are those of a call; ``count`` says how many examples
        this rank's batch holds, where that is known.

        Returns:
            What is known of the gradient, and how many micro-batches it was made of.
        """
        whole = self._whole(batch) if count is None else [Part(batch, count)]
        if examples is None and isinstance(batch, Step):
            examples = batch.examples
        if examples is None and self.ranks.size == 1:
            examples = sum(p.count for p in whole)
        splits = len(whole) > 1 or whole[0].count > self.micro_batch_size.now
        seen = self.first.compare_once(lambda: self._cut(whole), splits)
        while True:
            micro_batches = self._cut(whole)
            self.gradient.before.take()
            made = self.gradient.make(micro_batches, examples, flags)
            if isinstance(made, PassOutOfMemory):
                self._shrink(made, max(m.count for m in micro_batches))
                continue
            anew = self.first.reads_otherwise(micro_batches) if made.pair else ""
            if not anew:
                break
            seen = anew
            self.gradient.before.restore()
        if not made.count > 0 and self.nonfinite == "stop":
            raise JobError(
                f"the loss count is {made.count:g} for the whole batch",
                seen=f"{len(micro_batches)} micro-batches on each of "
                f"{self.ranks.size} rank(s)",
                why="a mean over nothing is not defined",
                fix="leave out examples whose targets are all masked",
            )
        if seen:  # after all errors of the job itself
            self.tell(seen)
        return made, len(micro_batches)

    def plan_micro_batch(self, micro_batch: int | None) -> None:
        """From the next batch on, at most so many examples at once; None: all."""
        whole = 1 << 40 if micro_batch is None else micro_batch
        if (whole, whole) != (self.micro_batch_size.most, self.micro_batch_size.now):
            self.micro_batch_size = MicroBatchSize(most=whole, now=whole)

    def verify(self, batch: Any) -> Equality:
        """Compare the gradient of a small batch, split, with that of it whole.

        Nothing is left behind: gradients, buffers, all other state of modules and
        random numbers are put back. Never are more examples run at once than the
        micro-batch in force holds.

        Raises:
            JobError: There is nothing to compare: no two examples at once, none with a
                gradient, or the loss failed on so few.
        """
        equality = self.first.compare(self._cut(self._whole(batch)))
        if equality is None:
            raise JobError(
                "split and whole gradient cannot be compared on this batch",
                seen=f"micro-batches of {self.micro_batch_size.now} or less",
                why="it takes two examples at once, and a gradient that is not zero",
                fix="another batch, or a larger micro_batch",
            )
        return equality

    def state_dict(self) -> dict[str, Any]:
        """The micro-batch in force, and counts; a scaler has a state of its own."""
        return {
            "micro_batch": dataclasses.asdict(self.micro_batch_size),
            "skipped": self.skipped,
            "retries": self.retries,
            "per_example": self.gradient.per_example,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`, on this device's own micro-batch if it differs."""
        if state["micro_batch"]["most"] == self.micro_batch_size.most:
            self.micro_batch_size = MicroBatchSize(**state["micro_batch"])
        self.skipped, self.retries = state["skipped"], state["retries"]
        self.gradient.per_example = state["per_example"]
        self.first.skip_comparison()

    def _whole(self, batch: Any) -> list[Part]:
        """The batch as it came: one piece, or the micro-batches of a stream's step."""
        if not isinstance(batch, Step):
            count = self.count(batch)
            if count < 1:
                raise JobError("the batch is empty", seen=f"{count} examples")
            return [Part(batch, count)]
        weighted = batch.weighted
        with user_code(READING):
            return [
                Part(
                    (micro.data, micro.weights) if weighted else micro.data,
                    len(micro.indices),
                    counts=micro.share > 0,
                )
                for micro in batch
            ]

    def _cut(self, whole: list[Part]) -> list[Part]:
        """No piece larger than the micro-batch in force, as many on every rank."""
        pieces = []
        for piece in whole:
            runs = even_pieces(piece.count, self.micro_batch_size.now)
            if len(runs) == 1:
                pieces.append(piece)
                continue
            if self.split is None:
                example_count(piece.batch, piece.count)
            pieces += [
                Part(self._cutter(piece.batch, *run, piece.count), run[1] - run[0])
                for run in runs
            ]
        if self.coupled:
            together = self.micro_batch_size.most
            check_together([p.count for p in pieces], together, self.ranks.size)
        if self.ranks.sharded:  # every pass gathers parameters from all ranks
            most = max(int(n) for (n,) in self.ranks.gather([len(pieces)]))
            filler = Part(
                self._cutter(pieces[0].batch, 0, 1, pieces[0].count), 1, counts=False
            )
            pieces += [filler] * (most - len(pieces))
        return pieces

    def _notice_unheld(self) -> None:
        """Tell, once, of a part of the model that belongs to no optimizer known."""
        if not self._look_for_unheld:
            return
        self._look_for_unheld = False
        if unheld := self.gradient.unheld():
            scaled = " or unscaled" if self.scaler is not None else ""
            self.tell(
                f"{len(unheld)} trainable parameters with a gradient are in no "
                "optimizer that is known here: this gradient is the whole batch's "
                f"too, but it is not clipped{scaled}; if another optimizer steps "
                "them, pass both as a list, otherwise requires_grad_(False)"
            )

    def _cutter(self, batch: Any, start: int, stop: int, count: int) -> Any:
        if self.split is not None:
            return self.split(batch, start, stop)
        return slice_batch(batch, start, stop, count)

    def _finish(self, made: Gradient, pieces: int, retries: int) -> Update:
        """Clip, judge and apply."""
        self._notice_unheld()
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        gradients = self.gradient.gradients()
        norm = total_norm(gradients)
        finite = math.isfinite(norm) and math.isfinite(made.loss)
        # A scaler finds its factor by gradients that overflow: those it skips itself.
        scaling = self.scaler is not None and math.isfinite(made.loss)
        if finite:
            if self.clip_norm is not None and norm > self.clip_norm:
                for gradient in gradients:
                    gradient.mul_(self.clip_norm / norm)
            self._apply()
        else:
            if self.scaler is not None:
                self.scaler.update()
            self.gradient.before.restore()
            self.optimizer.zero_grad(set_to_none=True)
            if self.nonfinite == "stop" and not scaling:
                raise NotFiniteError(
                    f"the loss became {made.loss:g}, with a gradient of norm {norm:g}",
                    seen=f"mean over {made.count:g}, learning rate "
                    f"{first_rate(self.optimizer)}",
                    why="the update was not made: weights are as before this batch",
                    fix="a lower learning rate, or nonfinite='skip' for a few bad "
                    "batches",
                )
            self.skipped += 1
        return Update(
            loss=made.loss,
            count=made.count,
            grad_norm=norm,
            micro_batches=pieces,
            retries=retries,
            applied=finite,
            flags=made.flags,
        )

    def _apply(self) -> None:
        try:
            with user_code("optimizer.step()"):
                if self.scaler is None:
                    self.optimizer.step()
                else:
                    self.scaler.step(self.optimizer)
                    self.scaler.update()
            self.gradient.reserving = False
        except Exception as error:
            memory = out_of_memory(error)
            if memory is None:
                raise
            raise UpdateOutOfMemoryError(
                "memory ran out inside optimizer.step",
                seen=memory.text[:120],
                why="some parameters may be updated and others not, so the step is "
                "not tried again",
                fix="resume from the last checkpoint, with a smaller micro-batch or an "
                "optimizer that needs less (foreach=False)",
            ) from error

    def _shrink(self, trouble: PassOutOfMemory, used: int) -> None:
        """All ranks go on with the smallest micro-batch that any of them wants."""
        self.gradient.before.restore()
        self.retries += 1
        biggest = max(int(n) for (n,) in self.ranks.gather([used]))
        fits = None if self.fits is None else self.fits(biggest)
        text = trouble.memory.text if trouble.memory else "another rank ran out"
        if (biggest == 1 or self.coupled) and self.gradient.reserving:
            self.gradient.reserving = False
            self.tell(
                f"out of memory with {biggest} at once ({text[:60]}): again, with "
                "nothing kept free for the optimizer's state"
            )
            return
        if self.coupled:
            raise no_room_together(biggest, text[:120]) from trouble.error
        wanted = self.micro_batch_size.shrink(biggest, fits)
        agreed = min(int(n) for (n,) in self.ranks.gather([wanted]))
        self.micro_batch_size.now = agreed
        if agreed < 1 and trouble.memory and not trouble.memory.certain:
            assert trouble.error is not None
            raise trouble.error  # it was something else, or looks like it
        if agreed < 1:
            raise JobError(
                "not even one example fits in memory",
                seen=text[:120],
                why="a micro-batch of 1 ran out of memory too",
                fix="a smaller model, shorter examples, activation checkpointing, or "
                "precision='bfloat16'",
            )
        self.tell(
            f"out of memory with {biggest} examples at once ({text[:60]}): the same "
            f"batch again in micro-batches of {agreed}; batch and rate are unchanged"
        )


def total_norm(gradients: list[Tensor]) -> float:
    """Norm of all gradients as one vector, over all shards."""
    if not gradients:
        return 0.0
    dense = [g.coalesce().values() if g.is_sparse else g for g in gradients]
    norm = torch.nn.utils.get_total_norm(dense)
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
