"""Whether a loss gives on several ranks the gradient that one process has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import normalize

from rightbatch.core.errors import JobError, SettingError
from rightbatch.core.whole_number import whole_number
from rightbatch.coupling.local_ranks import on_local_ranks

WIDTH, FEATURES = (
    24,
    16,
)  # of the examples, and of what two linear encoders make of them
# How far from equality float32 is: 1e-6 and less on losses that are right. [measured]
TOLERANCE = 1e-4
_GATHER = "gather every rank's features with torch.distributed.nn.functional.all_gather"


@dataclass(frozen=True, slots=True, kw_only=True)
class RankGradient:
    """A gradient after DDP's averaging, against that of one process.

    Attributes:
        world_size: Number of ranks.
        parameters: ``"encoder"``, or the name of a parameter of the loss.
        cosine: Of the angle between the two.
        factor: Norm over the norm of one process's.
    """

    world_size: int
    parameters: str
    cosine: float
    factor: float

    @property
    def right(self) -> bool:
        """Whether they are the same up to rounding."""
        return self.straight and abs(self.factor - 1) <= 10 * TOLERANCE

    @property
    def straight(self) -> bool:
        """Whether they differ in length only."""
        return self.cosine >= 1 - TOLERANCE


@dataclass(frozen=True, slots=True, kw_only=True)
class RankAudit:
    """What an audit saw, and what it says.

    Attributes:
        gradients: By number of ranks and group of parameters.
        loss_factors: The mean of the reported losses over one process's, by number of
            ranks.
        findings: A sentence for each thing that is wrong; none: the gradients are
            those of one process.
    """

    gradients: tuple[RankGradient, ...]
    loss_factors: dict[int, float]
    findings: tuple[str, ...]

    @property
    def right(self) -> bool:
        """Whether every gradient is that of one process."""
        return all(row.right for row in self.gradients)

    def __str__(self) -> str:
        lines = ["ranks  parameters      cosine  times one process's"]
        lines += [
            f"{r.world_size:5}  {r.parameters:14} {r.cosine:7.4f}  {r.factor:.4g}"
            for r in self.gradients
        ]
        return "\n".join([*lines, *(self.findings or ("as on one process",))])


def audit_ranks(
    loss: Callable[..., Tensor],
    *,
    world_sizes: int | Sequence[int] = (2, 4),
    parameters: Mapping[str, float] | None = None,
    examples: int = 32,
    seed: int = 0,
) -> RankAudit:
    """Compare a loss on several ranks with itself on one, in local processes by gloo.

    Two linear encoders are trained on one batch that the ranks share out evenly. What
    is compared is the mean of the ranks' gradients, as DDP makes it, with the gradient
    of one process that has the whole batch.

    A factor alone hides behind Adam. It shows in gradient clipping, in SGD, in the
    balance with weight decay, and in a temperature that has another factor.

    Args:
        loss: ``(features_a, features_b) ->`` the loss, of this rank's normalized
            features; with ``parameters`` it gets them as a third argument, a dict of
            tensors. It may ask ``torch.distributed`` for ranks, of which there may be
            one. It is forked where that can be (Linux, before CUDA is used); elsewhere
            sent to new processes, which import it.
        world_sizes: Numbers of ranks.
        parameters: The loss's own, such as ``{"logit_scale": 2.66}``: name to value.
        examples: Of the batch, over all ranks.
        seed: Of encoders and batch.

    Raises:
        SettingError: The examples cannot be shared out evenly, or processes cannot be
            started from here.
        JobError: The loss fails on a rank, or the ranks wait for each other; on one
            process its gradient is zero, not finite, or another each time.

    Example:
        >>> import torch, rightbatch as rb
        >>> def mean_of_own(images, texts):
        ...     table = 10 * images @ texts.T
        ...     labels = torch.arange(len(table))
        ...     return torch.nn.functional.cross_entropy(table, labels)
        >>> audit = rb.coupling.audit_ranks(mean_of_own, world_sizes=[2])
        >>> audit.right, round(audit.gradients[0].cosine, 1)
        (False, 0.9)
    """
    asked = [world_sizes] if isinstance(world_sizes, int) else world_sizes
    sizes = sorted({whole_number(size, "world_sizes", 2) for size in asked})
    whole_number(examples, "examples", 4)
    if not sizes or any(examples % size for size in sizes):
        raise SettingError(
            "the ranks must have equal parts",
            seen=f"examples={examples}, world_sizes={tuple(asked)}",
            fix=f"examples={8 * max(sizes, default=4)}",
        )
    values = {name: float(value) for name, value in (parameters or {}).items()}
    measured = on_local_ranks(_Measure(loss, values, examples, seed), [1, *sizes])
    reference, rows = measured[1], []
    _check_reference(reference)
    for size in sizes:
        for group, numbers in reference["gradients"].items():
            truth = torch.tensor(numbers, dtype=torch.float64)
            mean = torch.tensor(measured[size]["gradients"][group], dtype=truth.dtype)
            norms = float(mean.norm()), float(truth.norm())
            cosine = float(mean @ truth) / max(norms[0] * norms[1], 1e-300)
            factor = norms[0] / max(norms[1], 1e-300)
            row = RankGradient(
                world_size=size, parameters=group, cosine=cosine, factor=factor
            )
            rows.append(row)
    true = reference["loss"]
    losses = {s: measured[s]["loss"] / true if true else 1.0 for s in sizes}
    findings = (*_findings(rows), *_of_losses(losses))
    return RankAudit(gradients=tuple(rows), loss_factors=losses, findings=findings)


@dataclass(frozen=True, slots=True)
class _Measure:
    """Gradients and loss on the ranks of this process's group."""

    loss: Callable[..., Tensor]
    parameters: dict[str, float]
    examples: int
    seed: int

    def __call__(self) -> dict[str, Any]:
        made = self._made()
        # Once more on one rank, to see whether the loss is the same each time.
        return made | {"again": self._made()} if dist.get_world_size() == 1 else made

    def _made(self) -> dict[str, Any]:
        rank, ranks = dist.get_rank(), dist.get_world_size()
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn(2, self.examples, WIDTH, generator=generator)
        inputs = drawn[0], (drawn[0] + drawn[1])
        weights = torch.randn(2, WIDTH, FEATURES, generator=generator).requires_grad_()
        own = {n: nn.Parameter(torch.tensor(v)) for n, v in self.parameters.items()}
        part = self.examples // ranks
        features = [
            normalize(x[rank * part : (rank + 1) * part] @ w, dim=1)
            for x, w in zip(inputs, weights, strict=True)
        ]
        value = self.loss(*features, own) if own else self.loss(*features)
        value.backward()
        gradients = {}
        for name, tensor in {"encoder": weights, **own}.items():
            mean = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            dist.all_reduce(mean)
            gradients[name] = (mean / ranks).flatten().tolist()
        reported = value.detach().double()
        dist.all_reduce(reported)
        return {"gradients": gradients, "loss": float(reported) / ranks}


def _check_reference(reference: Mapping[str, Any]) -> None:
    """Refuse a loss whose gradient on one process says nothing."""
    encoder, reason = reference["gradients"]["encoder"], ""
    if not math.isfinite(sum(map(abs, encoder)) + abs(reference["loss"])):
        reason = "loss or gradient is NaN or infinite"
    elif not any(encoder):
        reason = "its gradient is zero"
    elif reference["again"]["gradients"]["encoder"] != encoder:
        reason = "it is another each time: it draws random numbers, or keeps a state"
    if reason:
        raise JobError(
            "the loss cannot be compared between ranks",
            seen=f"on one process {reason}",
            why="the ranks are held against one process",
            fix="the loss of normalized features alone, without dropout",
        )


def _findings(rows: Sequence[RankGradient]) -> list[str]:
    """What is wrong with the gradients, and what to do, in words."""
    names = dict.fromkeys(row.parameters for row in rows)
    groups = {name: [r for r in rows if r.parameters == name] for name in names}
    kinds = {group: _kind(of_group) for group, of_group in groups.items()}
    alike = len({*kinds.values()}) == 1
    found = []
    for group, of_group in groups.items():
        at = _times({r.world_size: r.factor for r in of_group})
        match kinds[group]:
            case "right":
                continue
            case "direction":
                worst = min(of_group, key=lambda r: r.cosine)
                found.append(
                    f"{group}: the gradient has another direction than one process's "
                    f"(cosine {worst.cosine:.3f} at {worst.world_size} ranks; its "
                    f"length {at}): what one rank's features owe to another's is left "
                    f"out or weighs otherwise; {_GATHER}, and take the loss of all"
                )
            case "1/W":
                multiply = "multiply the loss by the number of ranks W, or "
                found.append(
                    f"{group}: gradients are 1/W of one process's ({at}): "
                    f"{multiply if alike else ''}{_GATHER}"
                )
            case "W":
                found.append(
                    f"{group}: gradients are W times one process's ({at}): divide the "
                    "loss by the number of ranks W"
                )
            case _:
                found.append(f"{group}: gradients are not one process's: {at}")
    if not alike and "direction" not in kinds.values():
        weights = ", ".join(f"{group} {kind}" for group, kind in kinds.items())
        found.append(
            f"the groups have different factors ({weights}): no factor on the loss "
            "puts that right"
        )
    return found


def _kind(rows: Sequence[RankGradient]) -> str:
    """How one group's gradients are off at all numbers of ranks."""
    if not all(row.straight for row in rows):
        return "direction"
    for kind, power in {"right": 0, "1/W": -1, "W": 1}.items():
        if all(abs(r.factor / r.world_size**power - 1) <= 10 * TOLERANCE for r in rows):
            return kind
    return "other"


def _of_losses(factors: Mapping[int, float]) -> list[str]:
    """What is wrong with the value that is reported."""
    if all(abs(factor - 1) <= 10 * TOLERANCE for factor in factors.values()):
        return []
    return [f"the mean of the reported losses is not one process's: {_times(factors)}"]


def _times(factors: Mapping[int, float]) -> str:
    """Factors by number of ranks."""
    return ", ".join(f"{f:.3g} times at {size} ranks" for size, f in factors.items())
