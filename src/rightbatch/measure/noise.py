"""Gradient noise at fixed weights, from independent groups of examples.

All groups see the same weights; numerator and denominator are estimated apart, each
without bias; the ratio is formed once, at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from rightbatch.core.errors import NotFiniteError
from rightbatch.core.guards import preserved_rng, untouched
from rightbatch.measure.measurements import NoisePoint
from rightbatch.noise.norms import inner_product
from rightbatch.noise.statistics.moments import NoiseMoments, jackknife_moments, ratio
from rightbatch.noise.statistics.optimizer_metric import optimizer_metric
from rightbatch.training.run_state import RunState

GROUPS = 32  # |G|^2 gains only sqrt(k/(k-1)) beyond 8 [derived]; intervals like more
FEW_GROUPS = 12
LEAST_GROUPS = 8
LARGE_MODEL = 20_000_000  # parameters from which on fewer groups are drawn [assumed]
# Bytes of gradients that are kept to be compared; above, they are made twice. [assumed]
KEPT_BYTES = 512 << 20


@dataclass
class Comparison:
    """Each group's gradient against the sum of all, parameter by parameter.

    Attributes:
        squares: Squared norms, shape (groups, parameters).
        crosses: Inner products with the sum of all groups' gradients, same shape.
        own_squares: The same in the optimizer's metric; None if it has none.
        own_crosses: The same in the optimizer's metric.
        losses: Mean loss of each group.
    """

    squares: np.ndarray
    crosses: np.ndarray
    own_squares: np.ndarray | None
    own_crosses: np.ndarray | None
    losses: list[float] = field(default_factory=list)

    def plain(self, group_size: int) -> NoiseMoments:
        """Moments over all parameters in the Euclidean metric."""
        return jackknife_moments(self.squares.sum(1), self.crosses.sum(1), group_size)

    def own(self, group_size: int) -> NoiseMoments | None:
        """Moments in the optimizer's metric."""
        if self.own_squares is None or self.own_crosses is None:
            return None
        squares, crosses = self.own_squares.sum(1), self.own_crosses.sum(1)
        return jackknife_moments(squares, crosses, group_size)


def group_count(parameters: int) -> int:
    """How many groups to draw for a model of this size."""
    return GROUPS if parameters < LARGE_MODEL else FEW_GROUPS


def group_count_within(run: RunState, group_s: float, budget_s: float) -> int:
    """As many groups as may be compared in so many seconds, `LEAST_GROUPS` at least.

    Args:
        run: Its model says how many are enough.
        group_s: Seconds of a forward and backward pass over a group.
        budget_s: Seconds for all groups.
    """
    count = group_count(sum(p.numel() for p in run.parameters))
    while count > LEAST_GROUPS and comparison_passes(run, count) * group_s > budget_s:
        count -= 1
    return count


def comparison_passes(run: RunState, groups: int) -> int:
    """How many gradients of a group `compare` makes: each once, or twice."""
    return groups if groups * _gradient_bytes(run) <= KEPT_BYTES else 2 * groups


def _gradient_bytes(run: RunState) -> int:
    return sum(p.numel() * p.element_size() for p in run.parameters)


def measure_noise(
    run: RunState,
    *,
    group_size: int,
    micro_batch: int,
    groups: int | None = None,
    generator: torch.Generator,
    tick: Callable[[], None] = lambda: None,
) -> NoisePoint:
    """Measure signal and noise of the gradient where a run stands now.

    The model is left in the mode it trains in; its parameters, its optimizer and the
    run's stream stay as they are, buffers (BatchNorm statistics) too. Examples are
    drawn with replacement, so the population is the data set itself.

    Args:
        run: Its optimizer's second moments give the second metric.
        group_size: Examples in a group, over all ranks; its gradient is their mean.
        micro_batch: Largest number of examples in memory at once on a rank.
        groups: How many independent groups; default by the size of the model.
        generator: Source of the examples drawn.
        tick: Called after every group.

    Raises:
        NotFiniteError: A gradient is NaN or infinite.
    """
    parameters = run.parameters
    count = groups or group_count(sum(p.numel() for p in parameters))
    draws = [
        torch.randint(run.job.length, (group_size,), generator=generator)
        for _ in range(count)
    ]
    found = compare(run, draws, micro_batch=micro_batch, tick=tick)
    plain = found.plain(group_size)
    return NoisePoint(
        step=run.steps,
        examples=run.examples,
        loss=float(np.mean(found.losses)),
        groups=count,
        group_size=group_size,
        noise_scale=ratio(
            plain,
            samples=count,
            n=count * group_size,
            method=f"{count} groups of {group_size}, Fieller",
        ),
        plain=plain,
        preconditioned=found.own(group_size),
    )


def compare(
    run: RunState,
    draws: list[Tensor],
    *,
    micro_batch: int,
    tick: Callable[[], None] = lambda: None,
    kept_bytes: int = KEPT_BYTES,
) -> Comparison:
    """Gradients of groups of examples, each against the sum of all.

    Where all of them together are small they are kept; otherwise they are made twice,
    with the same random numbers, and only their sum is kept. The result is the same.

    Args:
        run: Nothing in it is changed but its micro-batch.
        draws: Indices of each group's examples.
        micro_batch: Largest number of examples in memory at once on a rank.
        tick: Called after every group.
        kept_bytes: Most bytes of gradients to keep beside the sum.

    Raises:
        NotFiniteError: A gradient is NaN or infinite.
    """
    parameters = run.parameters
    metric = optimizer_metric(run.optimizer, parameters)
    losses: list[float] = []
    total: list[Tensor | None] = [None] * len(parameters)

    def first_pass() -> Iterator[list[Tensor | None]]:
        for loss, gradient in _gradients(run, draws, micro_batch):
            losses.append(loss)
            _add(total, gradient)
            tick()
            yield gradient

    if _gradient_bytes(run) * len(draws) <= kept_bytes:
        kept = list(first_pass())
        rows = [_against(g, total, metric) for g in kept]
    else:
        with preserved_rng():
            for _ in first_pass():
                pass
        again = _gradients(run, draws, micro_batch)
        rows = [_against(gradient, total, metric) for _, gradient in again]
    values = np.array(rows).transpose(1, 0, 2)  # (4, groups, parameters)
    if not (np.isfinite(values).all() and np.isfinite(losses).all()):
        raise NotFiniteError(
            f"loss or gradient is not finite at step {run.steps}",
            seen=f"losses {min(losses):.3g} to {max(losses):.3g}",
            why="no noise can be measured there, and training has diverged",
            fix="lower the learning rate, or mask the examples that give NaN",
        )
    own = (values[2], values[3]) if metric is not None else (None, None)
    return Comparison(values[0], values[1], *own, losses)


def _gradients(
    run: RunState, draws: list[Tensor], micro_batch: int
) -> Iterator[tuple[float, list[Tensor | None]]]:
    """Each group's mean loss and gradient; buffers and ``.grad`` are put back.

    On several ranks each makes its part of every group, and all hold the gradient.
    """
    run.accumulator.plan_micro_batch(micro_batch)
    with untouched(run.network, run.parameters):
        for indices in draws:
            mine = indices[run.ranks.rank :: run.ranks.size]
            made, _ = run.accumulator.differentiate(
                run.job.batch(mine, run.device), len(indices), count=len(mine)
            )
            yield made.loss, [p.grad for p in run.parameters]


def _add(total: list[Tensor | None], gradient: list[Tensor | None]) -> None:
    for i, one in enumerate(gradient):
        if one is None:
            continue
        before = total[i]
        total[i] = one.float().clone() if before is None else before.add_(one)


def _against(
    gradient: list[Tensor | None],
    total: list[Tensor | None],
    metric: list[Tensor] | None,
) -> list[list[float]]:
    """Squares and crosses, plain and in the metric, of every parameter."""
    device = next((t.device for t in total if t is not None), torch.device("cpu"))
    columns = []
    for k, (one, whole) in enumerate(zip(gradient, total, strict=True)):
        if one is None or whole is None:
            columns.append(torch.zeros(4, device=device))
            continue
        plain = one.float()
        own = plain if metric is None else plain * metric[k].float()
        products = ((plain, plain), (plain, whole), (own, plain), (own, whole))
        columns.append(torch.stack([inner_product(a, b) for a, b in products]))
    return torch.stack(columns, 1).double().tolist()
