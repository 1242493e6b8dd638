"""Gradient noise at fixed weights, from independent groups of examples.

All groups see the same weights; numerator and denominator are estimated apart, each
without bias; the ratio is formed once, at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from rightbatch.errors import JobError
from rightbatch.measure.moments import jackknife_moments, noise_scale_of
from rightbatch.measure.record import NoisePoint
from rightbatch.training import Training, accumulate

GROUPS = 32  # |G|^2 gains only sqrt(k/(k-1)) beyond 8 [derived]; intervals like more
FEW_GROUPS = 12
LARGE_MODEL = 20_000_000  # parameters from which on fewer gradients are kept [assumed]


def group_count(parameters: int) -> int:
    """How many group gradients to hold in memory at once."""
    return GROUPS if parameters < LARGE_MODEL else FEW_GROUPS


def measure_noise(
    training: Training,
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
        training: The run; its optimizer's second moments give the second metric.
        group_size: Examples in a group; a group's gradient is their mean.
        micro_batch: Largest number of examples in memory at once.
        groups: How many independent groups; default by the size of the model.
        generator: Source of the examples drawn.
        tick: Called after every group.

    Raises:
        JobError: A gradient is NaN or infinite.
    """
    job, model = training.job, training.model
    parameters = [p for g in training.optimizer.param_groups for p in g["params"]]
    count = groups or group_count(sum(p.numel() for p in parameters))
    buffers = [b.clone() for b in model.buffers()]
    held = [p.grad for p in parameters]
    gradients: list[list[Tensor | None]] = []
    losses: list[float] = []
    try:
        for _ in range(count):
            indices = torch.randint(job.length, (group_size,), generator=generator)
            parts = indices.split(micro_batch)
            loss = accumulate(
                job,
                model,
                training.optimizer,
                (job.batch(part, training.device) for part in parts),
                [len(part) for part in parts],
            )
            losses.append(float(loss))
            gradients.append([p.grad for p in parameters])
            _refuse_nonfinite(losses[-1], gradients[-1], training.steps)
            tick()
    finally:
        for parameter, gradient in zip(parameters, held, strict=True):
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, old in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(old)
    plain = jackknife_moments(_gram(gradients, None), group_size)
    metric = optimizer_metric(training.optimizer, parameters)
    own = jackknife_moments(_gram(gradients, metric), group_size) if metric else None
    return NoisePoint(
        step=training.steps,
        examples=training.examples,
        loss=float(np.mean(losses)),
        groups=count,
        group_size=group_size,
        noise_scale=noise_scale_of(plain, count, group_size),
        plain=plain,
        preconditioned=own,
    )


def optimizer_metric(
    optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter]
) -> list[Tensor] | None:
    r"""Adam's diagonal preconditioner $P = 1/(\sqrt{\hat v} + \epsilon)$.

    The gradient's norm is then $g^\top P g$: with the preconditioner as a stand-in for
    the inverse curvature this is the noise scale $\mathrm{tr}(H\Sigma)/G^\top H G$ of
    McCandlish et al. 2018 taken along Adam's own step. None before the first update,
    or for an optimizer that keeps no second moments.
    """
    metric = []
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for parameter in parameters:
        state = optimizer.state.get(parameter, {})
        group = groups[id(parameter)]
        if "exp_avg_sq" not in state or "betas" not in group:
            return None
        correction = 1 - group["betas"][1] ** float(state["step"])
        root = (state["exp_avg_sq"] / correction).sqrt()
        metric.append(1 / (root + group["eps"]))
    return metric


def _gram(
    gradients: list[list[Tensor | None]], metric: list[Tensor] | None
) -> np.ndarray:
    """Inner products of the gradients, parameter by parameter, in float64."""
    count = len(gradients)
    total = np.zeros((count, count))
    for k, parts in enumerate(zip(*gradients, strict=True)):
        present = [g for g in parts if g is not None]
        if not present:
            continue
        zero = torch.zeros_like(present[0])
        rows = torch.stack([(zero if g is None else g).flatten() for g in parts])
        rows = rows.float()
        if metric is not None:
            rows = rows * metric[k].flatten().float().sqrt()
        total += (rows @ rows.T).double().cpu().numpy()
    return total


def _refuse_nonfinite(loss: float, gradient: list[Tensor | None], step: int) -> None:
    norms = [g.float().norm() for g in gradient if g is not None]
    if not norms:
        raise JobError(
            "no parameter received a gradient",
            seen="every .grad is None after the backward pass",
            fix="let the loss depend on the parameters the optimizer holds",
        )
    total = float(torch.stack(norms).norm())
    if not (math.isfinite(loss) and math.isfinite(total)):
        raise JobError(
            f"loss or gradient is not finite at step {step}",
            seen=f"loss {loss}, gradient norm {total}",
            why="no noise can be measured there, and training has diverged",
            fix="lower the learning rate, or mask the examples that give NaN",
        )
