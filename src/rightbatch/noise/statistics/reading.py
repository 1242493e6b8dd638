"""From the ledger to the noise scale as it is told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rightbatch.core.estimate import Estimate
from rightbatch.noise.statistics.history import Block, Ledger
from rightbatch.noise.statistics.moments import (
    NoiseMoments,
    around,
    quantile,
    ratio,
    sampled_moments,
)
from rightbatch.noise.statistics.optimizer_metric import sign_scale
from rightbatch.noise.statistics.scale import LayerNoise, MetricNoise, NoiseScale

USES = {
    "adam": "noise of Adam's update, every coordinate alike",
    "adam_robust": "the same, nearly silent coordinates held back",
    "adam_curvature": "steps to a result with Adam: the laws of steps use it",
    "sign": "sign descent, Lion, Adam with a short memory",
}
TOLD = 3  # parameters named as dominating [assumed]


@dataclass(frozen=True, slots=True)
class Names:
    """What the numbers of a sample belong to.

    Attributes:
        parameters: Name of each parameter.
        groups: Index of the optimizer's parameter group, -1 for none.
    """

    parameters: tuple[str, ...]
    groups: tuple[int, ...]

    def layers(self) -> dict[str, list[int]]:
        """Parameters by the module that owns them."""
        found: dict[str, list[int]] = {}
        for i, name in enumerate(self.parameters):
            found.setdefault(name.rpartition(".")[0] or name, []).append(i)
        return found

    def by_group(self) -> dict[str, list[int]]:
        """Parameters by the optimizer's group."""
        found: dict[str, list[int]] = {}
        for i, group in enumerate(self.groups):
            if group >= 0:
                found.setdefault(str(group), []).append(i)
        return found


@dataclass(frozen=True, slots=True)
class Window:
    """Weighted means of the samples in a window, parameter by parameter."""

    signal: np.ndarray  # (blocks, parameters)
    noise: np.ndarray
    weights: np.ndarray
    count: int

    @classmethod
    def of(cls, blocks: Sequence[Block]) -> Window:
        """The blocks' means."""
        weights = np.array([b.weight for b in blocks])
        signal = np.stack([b.signal / b.weight for b in blocks])
        noise = np.stack([b.noise / b.weight for b in blocks])
        return cls(signal, noise, weights, sum(b.count for b in blocks))

    def moments(self, of: Sequence[int] | None = None) -> NoiseMoments:
        """Sums over some parameters, with their covariance between the blocks."""
        pick = slice(None) if of is None else list(of)
        signal, noise = self.signal[:, pick].sum(1), self.noise[:, pick].sum(1)
        return sampled_moments(signal, noise, self.weights)


def layer_noise(window: Window, of: Sequence[int], whole: float) -> LayerNoise:
    """Signal, noise and their ratio for some of the parameters."""
    found, n = window.moments(of), len(window.weights)
    return LayerNoise(
        noise_scale=ratio(found, samples=n, n=window.count, method="Fieller"),
        trace=_trace(found, n),
        grad_norm_sq=_signal(found, n),
        share=found.trace / whole if whole > 0 else 0.0,
    )


def noise_of(blocks: Sequence[Block], names: Names, method: str) -> NoiseScale:
    """The noise scale of a window, whole and by layer."""
    if not blocks:
        nothing = Estimate(value=math.inf, low=0.0, high=math.inf, unit="examples")
        open_ = Estimate(value=0.0, low=-math.inf, high=math.inf)
        return NoiseScale(noise_scale=nothing, trace=open_, grad_norm_sq=open_)
    window = Window.of(blocks)
    found, n = window.moments(), len(blocks)
    method = f"{window.count} steps, {method}, Fieller"
    return NoiseScale(
        noise_scale=ratio(found, samples=n, n=window.count, method=method),
        trace=_trace(found, n),
        grad_norm_sq=_signal(found, n),
        by_layer={
            name: layer_noise(window, of, found.trace)
            for name, of in names.layers().items()
        },
        by_group={
            name: layer_noise(window, of, found.trace)
            for name, of in names.by_group().items()
        },
        steps=window.count,
        window=round(blocks[-1].last - blocks[0].first),
    )


def by_proxy(
    found: NoiseScale,
    whole: Sequence[Block],
    between: Sequence[Block],
    norms: Sequence[int],
) -> NoiseScale:
    """The whole's noise scale from that of normalisation layers alone.

    The ratio of the two comes from all steps in which both were measured, so its own
    uncertainty is added (Gray et al. 2024, arXiv:2411.00999, found it constant).

    Args:
        found: From whole measurements in the window: its noise scale is replaced.
        whole: Samples of all parameters, of the whole run.
        between: Samples of the normalisation layers in the window.
        norms: Which of all parameters these are.
    """
    everything, part = Window.of(whole), Window.of(between)
    n = len(between)
    direct = ratio(part.moments(), samples=n, n=part.count, method="")
    factor, error = _factor(everything, norms)
    if not (direct.bounded and math.isfinite(error)):
        return found
    spread = math.hypot(direct.relative, quantile(len(whole)) * error)
    value = direct.value * factor
    estimate = Estimate(
        value=value,
        low=value / (1 + spread),
        high=value * (1 + spread),
        unit="examples",
        n=part.count,
        method=f"{part.count} steps of normalisation layers x {factor:.2f}",
    )
    better = estimate.relative < found.noise_scale.relative
    return replace(found, noise_scale=estimate) if better else found


def _factor(window: Window, norms: Sequence[int]) -> tuple[float, float]:
    """The whole's ratio over that of some parameters; relative jackknife error."""
    weights = window.weights[:, None]
    columns = np.stack(
        [
            window.noise.sum(1),
            window.signal.sum(1),
            window.noise[:, norms].sum(1),
            window.signal[:, norms].sum(1),
        ],
        axis=1,
    )
    sums = (weights * columns).sum(0)
    without = sums - weights * columns
    if len(columns) < 3 or (without <= 0).any() or (sums <= 0).any():
        return math.nan, math.inf
    logs = np.log(without) @ np.array([1.0, -1.0, -1.0, 1.0])
    n = len(logs)
    error = math.sqrt((n - 1) / n * float(((logs - logs.mean()) ** 2).sum()))
    return float(sums[0] * sums[3] / (sums[1] * sums[2])), error


def metrics_of(
    ledgers: dict[str, Ledger], since: float, names: Names, gain_batch: int
) -> dict[str, MetricNoise]:
    """The noise scale in the optimizer's metrics."""
    found = {}
    for name, ledger in ledgers.items():
        blocks = ledger.since(since, at_least=2)
        if not blocks:
            continue
        window = Window.of(blocks)
        moments = window.moments()
        estimate = ratio(moments, samples=len(blocks), n=window.count, method="Fieller")
        if name == "sign":
            # noise over signal is here deviation over gain: the level's inverse
            estimate = estimate.map(
                lambda x: (
                    math.inf
                    if math.isinf(x)
                    else sign_scale(1.0, x, gain_batch)
                    if x > 0
                    else 0.0
                )
            )
        shares = window.weights @ window.noise / window.weights.sum()
        most = np.argsort(-shares)[:TOLD]
        whole = max(shares.sum(), 1e-300)
        found[name] = MetricNoise(
            noise_scale=estimate,
            use=USES[name],
            dominated_by={names.parameters[i]: float(shares[i] / whole) for i in most},
        )
    return found


def _trace(found: NoiseMoments, samples: int) -> Estimate:
    return around(found.trace, found.var_trace, samples=samples, method="mean")


def _signal(found: NoiseMoments, samples: int) -> Estimate:
    return around(
        found.grad_norm_sq, found.var_grad_norm_sq, samples=samples, method="mean"
    )
