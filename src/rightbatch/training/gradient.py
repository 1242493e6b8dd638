"""The gradient of one batch over all its pieces and ranks, or what failed."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch.core.errors import JobError
from rightbatch.core.torch_private import OutOfMemory, out_of_memory
from rightbatch.core.trees import to_device
from rightbatch.core.user_code import blaming
from rightbatch.job.job import Loss, check_differentiable, scalar_loss
from rightbatch.training.batch_norm import batch_norms, corrected
from rightbatch.training.ranks import Ranks
from rightbatch.training.recovery import Before, release, reserve

HALVES = (torch.float16, torch.bfloat16)


@dataclass(slots=True)
class Piece:
    """Some examples of a batch, still where the loader left them."""

    batch: Any
    count: int
    counts: bool = True  # a filler, there only to keep ranks in step, does not


@dataclass(frozen=True, slots=True)
class Gradient:
    """A gradient lies in ``.grad``: its mean loss, count, and the ranks' flags."""

    loss: float
    count: float
    flags: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Trouble:
    """Some rank ran out of memory; this one, if ``memory`` says how."""

    memory: OutOfMemory | None
    error: BaseException | None


@dataclass
class BatchGradient:
    """Leaves in ``.grad`` the gradient of a batch: sum of losses over their count.

    Attributes:
        model: As the loop calls it.
        loss: A mean over examples, or ``(sum, count)``.
        optimizer: Whose parameters are differentiated for.
        ranks: Who averages with whom.
        dtype: Of autocast, or None.
        scaler: A ``GradScaler``, or None.
        per_example: With a scaler: about what the loss counts for one example.
        reserving: Whether memory is kept free for the optimizer's state: until the
            first update, or until that itself leaves too little.
        empty: ``"skip"``: a batch in which the loss counts nothing is no error.
    """

    model: nn.Module
    loss: Loss
    optimizer: torch.optim.Optimizer
    ranks: Ranks
    dtype: torch.dtype | None
    scaler: Any
    per_example: float | None = None
    reserving: bool = True
    empty: str = "stop"

    def __post_init__(self) -> None:
        self.device = next(self.model.parameters()).device
        self.norms = batch_norms(self.model)
        self.before = Before(self.model)

    @property
    def parameters(self) -> list[Tensor]:
        """Of all param groups as they are now: some may be added while training."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def gradients(self) -> list[Tensor]:
        """Those that this step has made."""
        return [p.grad for p in self.parameters if p.grad is not None]

    def make(
        self, pieces: list[Piece], examples: int | None, flags: Sequence[float]
    ) -> Gradient | Trouble:
        """Leave in ``.grad`` the gradient of the whole batch; or say what failed."""
        self.optimizer.zero_grad(set_to_none=True)
        self.model.zero_grad(set_to_none=True)  # also what the optimizer does not hold
        self.ranks.begin_step()
        guess = 1.0
        sums: list[Tensor] = []
        counts: list[Any] = []
        trouble: BaseException | None = None
        held: list[Tensor] = []
        last: Tensor | None = None
        share = [p.count / sum(p.count for p in pieces) for p in pieces]
        try:
            guess = self._scale(pieces[0], examples)
            if self.reserving:
                held = reserve(self.parameters)
            with self.ranks.keeping_quiet():
                for piece, part in zip(pieces, share, strict=True):
                    if last is not None:
                        self._backward(last)
                    with corrected(self.norms, part):
                        last = self._forward(piece, sums, counts, guess)
        except BaseException as error:
            trouble = error
        told = self._together(trouble, flags)
        if isinstance(told, Trouble):
            return told
        assert last is not None
        begun = self._versions()
        try:
            self.ranks.exchange_next(last)
            self._backward(last)
        except Exception as error:
            trouble = error
            self._complete(begun, last)
            last = None
        held.clear()
        return self._divided(sums, counts, guess, trouble, told, examples)

    def _scale(self, piece: Piece, examples: int | None) -> float:
        """What losses are divided by on the way: near the count of the whole batch.

        Equal on all ranks. Float16 gradients of a sum over thousands would overflow, so
        with a scaler the first piece is counted beforehand.
        """
        if self.scaler is not None and self.per_example is None:
            ratio, error = 0.0, None
            try:
                with torch.no_grad():
                    batch = to_device(piece.batch, self.device)
                    _, count = scalar_loss(self.loss, self.model, batch, self.dtype)
                ratio = 1.0 if count is None else float(count) / piece.count
            except Exception as failure:  # told when the pass itself is made
                error = failure
            release(error)
            self.before.restore(self.device)
            highest = max(r for (r,) in self.ranks.gather([ratio]))
            self.per_example = 2.0 ** round(math.log2(highest or 1.0))
        whole = 1.0 if examples is None else examples / self.ranks.size
        return whole * (self.per_example or 1.0)

    def _forward(
        self, piece: Piece, sums: list[Tensor], counts: list[Any], guess: float
    ) -> Tensor:
        """The loss of one piece, ready to differentiate."""
        batch = to_device(piece.batch, self.device)
        value, count = scalar_loss(self.loss, self.model, batch, self.dtype)
        check_differentiable(value)
        value = value.float() if value.dtype in HALVES else value
        if count is None:
            value, count = value * piece.count, float(piece.count)
        if not piece.counts:
            value, count = value * 0.0, 0.0
        sums.append(value.detach())
        counts.append(count)
        return value / guess

    def _backward(self, value: Tensor) -> None:
        with blaming("the backward pass"):
            scaled = value if self.scaler is None else self.scaler.scale(value)
            scaled.backward()

    def _together(
        self, trouble: BaseException | None, flags: Sequence[float]
    ) -> tuple[float, ...] | Trouble:
        """Before gradients are exchanged: is everybody ready? Else nobody begins."""
        memory = None if trouble is None else self._memory(trouble)
        code = 0.0 if trouble is None else 1.0 if memory else 2.0
        told = self.ranks.gather([code, *flags])
        if trouble is not None and memory is None:
            raise trouble
        failed = [rank for rank, numbers in enumerate(told) if numbers[0] == 2]
        if failed:
            raise _other_failed(failed[0])
        if any(numbers[0] for numbers in told):
            release(trouble)
            return Trouble(memory, trouble)
        columns = list(zip(*told, strict=True))[1:]
        return tuple(max(column) for column in columns)

    def _divided(
        self,
        sums: list[Tensor],
        counts: list[Any],
        guess: float,
        trouble: BaseException | None,
        flags: tuple[float, ...],
        examples: int | None,
    ) -> Gradient | Trouble:
        """Divide by the count of the whole batch over all ranks."""
        memory = None if trouble is None else self._memory(trouble)
        codes = [float(memory is not None), float(trouble is not None)]
        loss, count, no_memory, failed = self._over_ranks(sums, counts, codes)
        if trouble is not None and memory is None:
            raise trouble
        if failed > no_memory:
            raise _other_failed(None)
        if no_memory:
            release(trouble)
            return Trouble(memory, trouble)
        if not count > 0 and self.empty == "skip":
            return Gradient(math.nan, 0.0, flags)
        if not count > 0:
            raise JobError(
                "the loss counted nothing in the whole batch",
                seen=f"count {count:g} over {self.ranks.size} rank(s)",
                why="a mean over nothing is not defined",
                fix="leave out examples whose targets are all masked",
            )
        factor = guess * self.ranks.size / count
        if factor != 1.0:
            for gradient in self.gradients():
                gradient.mul_(factor)
        if self.scaler is not None:
            self.per_example = 2.0 ** round(math.log2(count / (examples or 1)))
        return Gradient(loss / count, count, flags)

    def _versions(self) -> list[tuple[bool, int]]:
        """What a gradient that arrives will change; only asked for under DDP."""
        if self.ranks.ddp is None:
            return []
        return [
            (p.grad is None, 0 if p.grad is None else p.grad._version)
            for p in self.ranks.ddp.parameters()
        ]

    def _memory(self, error: BaseException) -> OutOfMemory | None:
        """What ran out of memory, where the step can be made again.

        Raises:
            JobError: It did, and the step cannot.
        """
        found = out_of_memory(error)
        if found is not None and self.ranks.sharded:
            raise JobError(
                "a rank of a sharded model ran out of memory",
                seen=found.text[:120],
                why="the others wait inside its exchange of parameters, so the step "
                "cannot be made again in place",
                fix="resume from the last checkpoint with a smaller micro_batch",
            ) from error
        return found

    def _over_ranks(
        self, sums: list[Tensor], counts: list[Any], codes: list[float]
    ) -> list[float]:
        """Loss, count and codes, summed over pieces and ranks, on the host."""
        if self.ranks.size == 1:
            return [_added(sums), _added(counts), *codes]
        wide = torch.float32 if self.device.type == "mps" else torch.float64

        def added(terms: list[Any]) -> Tensor:
            start = torch.zeros((), dtype=wide, device=self.device)
            return sum((torch.as_tensor(t).to(start) for t in terms), start=start)

        flags = torch.tensor(codes, dtype=wide, device=self.device)
        own = [added(sums), added(counts), *flags]
        return self.ranks.total(torch.stack(own)).tolist()

    def _complete(self, begun: list[tuple[bool, int]], loss: Tensor) -> None:
        """Give the other ranks the rest of the exchange that this one broke off.

        They wait in their backward pass for every gradient. What was not computed any
        more is sent as zeros; all ranks throw the step away afterwards.
        """
        ddp = self.ranks.ddp
        if ddp is None:
            return
        now = self._versions()
        missing = [
            p
            for p, a, b in zip(ddp.parameters(), begun, now, strict=True)
            if a == b and p.requires_grad
        ]
        if ddp.find_unused_parameters:  # the others the reducer has settled already
            reached = _reached(loss)
            missing = [p for p in missing if id(p) in reached]
        gc.collect()
        if missing:
            zero = torch.zeros((), device=self.device)
            sum((p.sum() * 0.0 for p in missing), start=zero).backward()


def _added(terms: list[Any]) -> float:
    """Their sum, on the host: one wait for the device at most."""
    tensors = [t.detach().reshape(()) for t in terms if isinstance(t, Tensor)]
    plain = sum(t for t in terms if not isinstance(t, Tensor))
    if not tensors:
        return float(plain)
    together = tensors[0] if len(tensors) == 1 else torch.stack(tensors)
    return float(plain) + math.fsum(together.reshape(-1).tolist())


def _reached(loss: Tensor) -> set[int]:
    """Which parameters a backward pass from here arrives at."""
    found: set[int] = set()
    nodes, seen = [loss.grad_fn], set[Any]()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            found.add(id(variable))
        nodes += [following for following, _ in node.next_functions]
    return found


def _other_failed(rank: int | None) -> JobError:
    who = "another rank" if rank is None else f"rank {rank}"
    return JobError(
        f"{who} failed in this step",
        seen="this rank was ready",
        why="a step is made by all ranks or by none",
        fix="see the error of the rank that failed",
    )
