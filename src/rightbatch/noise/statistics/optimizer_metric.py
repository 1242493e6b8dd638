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
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from scipy import optimize, special
from torch import Tensor, nn

from rightbatch.noise.capture.group_norms import Key

ADAM_METRICS = ("adam", "adam_robust", "adam_curvature")
FLOOR = 0.1  # least root second moment, over its tensor's median [assumed]
SAMPLED = 4096  # coordinates from which a tensor's median is taken [assumed]
# E|x| = sqrt(2/pi) sigma for a Gaussian x: from mean deviation to sigma [derived].
DEVIATION = math.sqrt(math.pi / 2)


def root_moments(
    optimizer: torch.optim.Optimizer | None,
) -> dict[int, tuple[Tensor, float, float]]:
    """Adam's second moments, where an optimizer keeps them.

    Returns:
        By the parameter's ``id``: the running second moment, its bias correction and
        epsilon. Empty before the first update.
    """
    found = {}
    for group in [] if optimizer is None else optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {}) if optimizer else {}
            if "exp_avg_sq" in state and "betas" in group:
                correction = 1 - group["betas"][1] ** float(state["step"])
                moment = state["exp_avg_sq"]
                found[id(parameter)] = moment, correction, float(group["eps"])
    return found


def optimizer_metric(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]
) -> list[Tensor] | None:
    r"""Adam's diagonal $P = 1/(\sqrt{\hat v}+\epsilon)$; None if it has no such."""
    moments = root_moments(optimizer)
    if any(id(p) not in moments for p in parameters):
        return None
    return [1 / _root(*moments[id(p)]) for p in parameters]


def _root(moment: Tensor, correction: float, epsilon: float) -> Tensor:
    return (moment / max(correction, 1e-30)).sqrt_().add_(epsilon)


@dataclass
class Lens:
    r"""Looks at each group's gradient in the optimizer's metrics.

    Fed group by group with the sum of the groups before: nothing has to be kept but
    a few numbers for each parameter.

    Attributes:
        parameters: What `Key.index` counts.
        moments: From `root_moments`; empty: only the sign is looked at.
        sizes: Examples in each group.
        parts: Sum of the groups' squared norms, by metric and parameter.
        totals: Squared norm of their sum.
        deviation: Estimate of $\|\sigma\|_1$, by parameter.
        gain: $\sum_i \mathrm{sign}(a_i)\\,b_i$ of independent gradients $a$, $b$.
    """

    parameters: Sequence[Tensor]
    moments: dict[int, tuple[Tensor, float, float]]
    sizes: tuple[int, ...]
    parts: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    totals: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    deviation: dict[int, Tensor] = field(default_factory=dict)
    gain: dict[int, Tensor] = field(default_factory=dict)

    def read(self) -> dict[str, tuple[Tensor, Tensor]]:
        r"""By metric, one number for each parameter: parts and totals.

        For ``"sign"`` they are the gain and $\|\sigma\|_1$. Zeros where a parameter
        was not looked at.
        """
        count, zero = len(self.parameters), torch.zeros(())
        device = self.parameters[0].device

        def row(values: dict[int, Tensor]) -> Tensor:
            return torch.stack([values.get(i, zero).to(device) for i in range(count)])

        found = {"sign": (row(self.gain), row(self.deviation))}
        for name in ADAM_METRICS if self.moments else ():
            stores = (self.parts, self.totals)
            parts, totals = (
                row({i: v for (m, i), v in store.items() if m == name})
                for store in stores
            )
            found[name] = parts, totals
        return found

    @property
    def gain_batch(self) -> int:
        """Examples behind the sign whose gain is measured."""
        return sum(self.sizes[:-1])

    def see(self, key: Key, before: Tensor | None, part: Tensor, seen: int) -> None:
        """One group's part of the gradient, and the sum of the parts before it."""
        parameter = self.parameters[key.index]
        if key.part or part.shape != parameter.shape:
            return  # part of a parameter: its place among the moments is not known
        part = part.float()
        total = part if before is None else before.float() + part
        last = seen == len(self.sizes) - 1
        self._see_adam(key.index, parameter, part, total if last else None)
        if last and before is not None:
            self._see_sign(key.index, before.float(), part)

    def _see_adam(
        self, index: int, parameter: Tensor, part: Tensor, total: Tensor | None
    ) -> None:
        if id(parameter) not in self.moments:
            return
        root = _root(*self.moments[id(parameter)]).reshape(part.shape)
        sample = root.flatten()[:: max(1, root.numel() // SAMPLED)]
        floor = FLOOR * float(sample.median())
        for store, gradient in ((self.parts, part), (self.totals, total)):
            if gradient is None:
                continue
            over = gradient / root
            found = (
                over.square().sum(),
                (gradient / root.clamp(min=floor)).square().sum(),
                (over * gradient).sum(),
            )
            for name, value in zip(ADAM_METRICS, found, strict=True):
                before = store.get((name, index))
                store[name, index] = value if before is None else before + value

    def _see_sign(self, index: int, before: Tensor, part: Tensor) -> None:
        batch, rest = sum(self.sizes), self.gain_batch
        other = before * (batch / rest)
        mine = part * (batch / self.sizes[-1])
        spread = math.sqrt(1 / rest + 1 / self.sizes[-1])
        self.deviation[index] = (mine - other).abs().sum() * (DEVIATION / spread)
        self.gain[index] = (torch.sign(other) * mine).sum()


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

    found = optimize.brentq(excess, math.log(level) - 30, 60)
    return math.exp(-2 * float(cast(float, found)))
