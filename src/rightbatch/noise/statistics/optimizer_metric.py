r"""The noise in the optimizer's own metric: after Adam's division, and of the sign.

An optimizer that divides the gradient coordinate by coordinate does not see
$\mathrm{tr}\,\Sigma/|G|^2$. Four answers beside it, each for its own question:

- ``adam``: noise and signal of $g/(\sqrt{\hat v}+\epsilon)$, Adam's update itself
  (AdaptDL; Qiao et al. 2021, arXiv:2008.12260). Every coordinate counts alike, even
  one that almost never has a gradient.
- ``adam_robust``: the same, no coordinate divided by less than a tenth of the median
  of its tensor: what a few nearly silent coordinates do cannot drown the rest.
- ``adam_curvature``: $g^\top P g$ with $P = 1/(\sqrt{\hat v}+\epsilon)$, the scale
  $\mathrm{tr}(H\Sigma)/G^\top H G$ (McCandlish et al. 2018, arXiv:1812.06162) along
  Adam's step with $P^{-1}$ for the curvature. The laws of steps use this one.
- ``sign``: for sign descent, Lion and Adam with a short memory.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from scipy import optimize, special
from torch import Tensor, nn

from rightbatch.noise.capture.group_norms import ParameterKey
from rightbatch.noise.guard import METRICS, Guard
from rightbatch.noise.norms import as_real

ADAM_METRICS = ("adam", "adam_robust", "adam_curvature")
FLOOR = 0.1  # least root second moment, over its tensor's median [assumed]
SAMPLED = 4096  # coordinates from which a tensor's median is taken [assumed]
# E|x| = sqrt(2/pi) sigma for a Gaussian x: from mean deviation to sigma [derived].
DEVIATION = math.sqrt(math.pi / 2)


def has_metric(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it divides by the gradient's size or takes its sign, as far as seen."""
    signed = "sign" in type(optimizer).__name__.lower()
    groups = getattr(optimizer, "param_groups", ())
    return signed or any("betas" in group for group in groups)


def root_moments(
    optimizers: Iterable[torch.optim.Optimizer],
) -> dict[int, tuple[Tensor, float, float]]:
    """Adam's second moments, where optimizers keep them.

    Returns:
        By the parameter's ``id``: the running second moment, its bias correction and
        epsilon. Empty before the first update.
    """
    moments: dict[int, tuple[Tensor, float, float]] = {}
    for optimizer in optimizers:
        states = getattr(optimizer, "state", {})  # a wrapper may have neither
        for group in getattr(optimizer, "param_groups", ()):
            for parameter in group["params"]:
                moment = _second_moment(states.get(parameter, {}), group)
                if moment is not None and moment[0].shape == parameter.shape:
                    moments[id(parameter)] = moment
    return moments


def _second_moment(
    state: Mapping[str, Any], group: Mapping[str, Any]
) -> tuple[Tensor, float, float] | None:
    """What Adam divides by; None for whatever keeps it in another form."""
    # With amsgrad the largest so far is divided by, not the last.
    moment = state.get("max_exp_avg_sq", state.get("exp_avg_sq"))
    step, betas, epsilon = state.get("step"), group.get("betas"), group.get("eps")
    if not isinstance(moment, Tensor) or not isinstance(step, (int, float, Tensor)):
        return None
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        return None
    if not isinstance(epsilon, (int, float)):
        return None
    return moment, 1 - float(betas[1]) ** float(step), float(epsilon)


def optimizer_metric(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]
) -> list[Tensor] | None:
    r"""Adam's diagonal $P = 1/(\sqrt{\hat v}+\epsilon)$; None if it has no such."""
    moments = root_moments([optimizer])
    if any(id(p) not in moments for p in parameters):
        return None
    return [1 / _root(*moments[id(p)]) for p in parameters]


def _root(moment: Tensor, correction: float, epsilon: float) -> Tensor:
    return (as_real(moment) / max(correction, 1e-30)).sqrt_().add_(epsilon)


@dataclass
class OptimizerMetrics:
    r"""Norms of each group's gradient in the optimizer's metrics.

    Fed group by group with the sum of the groups before: nothing has to be kept but
    a few numbers for each parameter.

    Attributes:
        parameters: What `ParameterKey.index` counts.
        moments: From `root_moments`; empty: only the sign is measured.
        sizes: Examples in each group.
        guard: Of the hooks that show gradients: what fails here costs these norms only.
        sums: By metric, two numbers by parameter. Of Adam's: the sum of the groups'
            squared norms, and the squared norm of their sum. Of the sign: its gain,
            $\sum_i \mathrm{sign}(a_i)\,b_i$ of independent gradients $a$, $b$, and
            the deviation, an estimate of $\|\sigma\|_1$.
    """

    parameters: Sequence[Tensor]
    moments: dict[int, tuple[Tensor, float, float]]
    sizes: tuple[int, ...]
    guard: Guard = field(default_factory=Guard)
    sums: dict[str, tuple[dict[int, Tensor], dict[int, Tensor]]] = field(
        default_factory=lambda: defaultdict(lambda: ({}, {}))
    )

    def rows(self) -> dict[str, tuple[Tensor, Tensor]]:
        """By metric, the two `sums` with one number for each parameter.

        Zeros where a parameter was not seen.
        """
        count, zero = len(self.parameters), torch.zeros(())
        device = self.parameters[0].device

        def row(values: dict[int, Tensor]) -> Tensor:
            return torch.stack([values.get(i, zero).to(device) for i in range(count)])

        names = ("sign", *(ADAM_METRICS if self.moments else ()))
        return {n: (row(self.sums[n][0]), row(self.sums[n][1])) for n in names}

    @property
    def gain_batch(self) -> int:
        """Examples behind the sign whose gain is measured."""
        return sum(self.sizes[:-1])

    def observe(
        self, key: ParameterKey, before: Tensor | None, gradient: Tensor, group: int
    ) -> None:
        """One group's part of the gradient, and the sum of the groups' before it."""
        self.guard.run(self._observe, key, before, gradient, group, part=METRICS)

    def _observe(
        self, key: ParameterKey, before: Tensor | None, gradient: Tensor, group: int
    ) -> None:
        parameter = self.parameters[key.index]
        if key.part or gradient.shape != parameter.shape:
            return  # part of a parameter: its place among the moments is not known
        gradient = as_real(gradient).float()
        before = None if before is None else as_real(before).float()
        total = gradient if before is None else before + gradient
        last = group == len(self.sizes) - 1
        self._add_adam(key.index, parameter, gradient, total if last else None)
        if last and before is not None:
            self._add_sign(key.index, before, gradient)

    def _add_adam(
        self, index: int, parameter: Tensor, part: Tensor, total: Tensor | None
    ) -> None:
        if id(parameter) not in self.moments:
            return
        root = _root(*self.moments[id(parameter)]).reshape(part.shape)
        sample = root.flatten()[:: max(1, root.numel() // SAMPLED)]
        floor = FLOOR * float(sample.median())
        for which, gradient in enumerate((part, total)):
            if gradient is None:
                continue
            update = gradient / root
            norms = (
                update.square().sum(),
                (gradient / root.clamp(min=floor)).square().sum(),
                (update * gradient).sum(),
            )
            for name, value in zip(ADAM_METRICS, norms, strict=True):
                store = self.sums[name][which]
                store[index] = store[index] + value if index in store else value

    def _add_sign(self, index: int, before: Tensor, part: Tensor) -> None:
        batch, rest = sum(self.sizes), self.gain_batch
        mean = before * (batch / rest)
        last = part * (batch / self.sizes[-1])
        spread = math.sqrt(1 / rest + 1 / self.sizes[-1])
        gain, deviation = self.sums["sign"]
        gain[index] = (torch.sign(mean) * last).sum()
        deviation[index] = (last - mean).abs().sum() * (DEVIATION / spread)


def sign_scale(gain: float, deviation: float, batch: float) -> float:
    r"""The sign-based noise scale, in examples.

    With $s_i = |G_i|/\sigma_i$ a step along the sign of a batch of $B$ examples gains
    $\sum_i |G_i|\,\mathrm{erf}(s_i\sqrt{B/2})$ to first order (Gaussian gradients; for
    equal $s_i$: $\|\sigma\|_1\, s\,\mathrm{erf}(s\sqrt{B/2})$). Solved for $s$, the
    scale is $1/s^2$: where the batch is large, $(\|\sigma\|_1/\|G\|_1)^2$, which is the
    published form. That one puts $\|g_B\|_1$ for $\|G\|_1$, and so never exceeds
    about $B$.

    Args:
        gain: Measured gain: the sign from ``batch`` examples, the gradient from others.
        deviation: $\|\sigma\|_1$ of one example.
        batch: Examples behind the sign.

    Returns:
        Infinite where no gain was seen.

    Example:
        >>> from math import erf, sqrt
        >>> round(sign_scale(0.1 * erf(0.1 * sqrt(50 / 2)), 1.0, 50), 6)
        100.0
    """
    level = gain / deviation if deviation > 0 else math.inf
    if level <= 0 or not math.isfinite(level):
        return math.inf if level <= 0 else 0.0

    def excess(log_s: float) -> float:
        s = math.exp(log_s)
        return math.log(s * special.erf(s * math.sqrt(batch / 2))) - math.log(level)

    log_s = optimize.brentq(excess, math.log(level) - 30, 60)
    return math.exp(-2 * float(cast(float, log_s)))
