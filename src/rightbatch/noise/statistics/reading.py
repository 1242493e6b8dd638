"""From a history of samples to the noise scale as it is reported."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from rightbatch.core.estimate import Estimate
from rightbatch.noise.statistics.history import Block, History
from rightbatch.noise.statistics.moments import (
    NoiseMoments,
    mean_estimate,
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
DOMINATING = 3  # parameters named as dominating [assumed]


def by_layer(names: Sequence[str]) -> dict[str, list[int]]:
    """Indices of the parameters by the module that owns them."""
    layers: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        layers.setdefault(name.rpartition(".")[0] or name, []).append(i)
    return layers


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

    def moments(self, parameters: Sequence[int] | None = None) -> NoiseMoments:
        """Sums over some parameters, with their covariance between the blocks."""
        pick = slice(None) if parameters is None else list(parameters)
        signal, noise = self.signal[:, pick].sum(1), self.noise[:, pick].sum(1)
        return sampled_moments(signal, noise, self.weights)


class Part(NamedTuple):
    """What is known of some parameters."""

    noise_scale: Estimate
    trace: Estimate
    grad_norm_sq: Estimate

    @classmethod
    def of(cls, moments: NoiseMoments, *, samples: int, n: int, method: str) -> Part:
        """From moments with a covariance, of so many independent samples."""
        return cls(
            ratio(moments, samples=samples, n=n, method=method),
            mean_estimate(
                moments.trace, moments.var_trace, samples=samples, method=method
            ),
            mean_estimate(
                moments.grad_norm_sq,
                moments.var_grad_norm_sq,
                samples=samples,
                method=method,
            ),
        )


def by_parts(
    part: Callable[[list[int]], Part],
    names: Sequence[str],
    sizes: Sequence[int] | None = None,
) -> NoiseScale:
    """The noise scale of a model and of its layers.

    Args:
        part: Tells of the parameters at these places.
        names: Of all parameters.
        sizes: Numbers in each of them, where they are to be counted.
    """
    whole = part(list(range(len(names))))
    sizes = [0] * len(names) if sizes is None else sizes
    places = by_layer(names)
    layers = {name: part(where) for name, where in places.items()}
    trace = whole.trace.value
    return NoiseScale(
        **whole._asdict(),
        by_layer={
            name: LayerNoise(
                **layer._asdict(),
                share=layer.trace.value / trace if trace > 0 else 0.0,
                parameters=sum(sizes[i] for i in places[name]),
            )
            for name, layer in layers.items()
        },
    )


def noise_scale_of(
    blocks: Sequence[Block], names: Sequence[str], method: str
) -> NoiseScale:
    """The noise scale of a window, whole and by layer."""
    if not blocks:
        unknown = Estimate(value=math.inf, low=0.0, high=math.inf, unit="examples")
        nothing = Estimate(value=0.0, low=-math.inf, high=math.inf)
        return NoiseScale(noise_scale=unknown, trace=nothing, grad_norm_sq=nothing)
    window = Window.of(blocks)
    method = f"{window.count} steps, {method}, Fieller"

    def part(parameters: list[int]) -> Part:
        moments = window.moments(parameters)
        return Part.of(moments, samples=len(blocks), n=window.count, method=method)

    return replace(
        by_parts(part, names),
        steps=window.count,
        window=round(blocks[-1].last - blocks[0].first),
    )


def metric_noise(
    histories: dict[str, History], since: float, names: Sequence[str], gain_batch: int
) -> dict[str, MetricNoise]:
    """The noise scale in the optimizer's metrics."""
    metrics = {}
    for name, history in histories.items():
        blocks = history.since(since, at_least=2)
        if not blocks:
            continue
        window = Window.of(blocks)
        estimate = ratio(
            window.moments(), samples=len(blocks), n=window.count, method="Fieller"
        )
        if name == "sign":
            # noise over signal is here deviation over gain: the level's inverse
            estimate = estimate.map(lambda level: sign_scale(1.0, level, gain_batch))
        shares = window.weights @ window.noise / window.weights.sum()
        whole = max(shares.sum(), 1e-300)
        metrics[name] = MetricNoise(
            noise_scale=estimate,
            use=USES[name],
            dominated_by={
                names[i]: float(shares[i] / whole)
                for i in np.argsort(-shares)[:DOMINATING]
            },
        )
    return metrics
