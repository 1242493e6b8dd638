"""The noise scale as it is reported: estimates, verdict, layers, and their source."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from rightbatch.core.estimate import Estimate
from rightbatch.core.shown_as_text import ShownAsText
from rightbatch.core.units import show_number

PRECISION = 0.2  # a noise scale known within so much is called decided [assumed]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNoise:
    """One layer's part.

    Attributes:
        noise_scale: Its own ratio, in examples.
        trace: Its part of tr Sigma.
        grad_norm_sq: Its part of |G|^2.
        share: Its share of the whole noise.
        parameters: Trainable numbers in it; 0: not counted.
    """

    noise_scale: Estimate
    trace: Estimate
    grad_norm_sq: Estimate
    share: float
    parameters: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricNoise:
    """The noise scale in one of the optimizer's metrics.

    Attributes:
        noise_scale: In examples.
        use: What it is for.
        dominated_by: The parameters with the largest shares of its noise, and these.
    """

    noise_scale: Estimate
    use: str
    dominated_by: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """How much of the model the estimate sees.

    Attributes:
        parameters: Share of the trainable parameters.
        missing: Parameters that are not seen, and why.
        verified: Whether every parameter's gradient as seen was, for every group, that
            of a backward pass of its own; None where there is nothing to test.
    """

    parameters: float
    missing: dict[str, str] = field(default_factory=dict)
    verified: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class NoiseScale(ShownAsText):
    """Noise over signal of the gradient: the batch at which both weigh the same.

    Attributes:
        noise_scale: tr Sigma / |G|^2 in examples (B_simple, McCandlish et al. 2018,
            arXiv:1812.06162).
        trace: tr Sigma, of one example's gradient.
        grad_norm_sq: |G|^2; its interval may reach below zero.
        by_layer: The same for each module that has parameters of its own.
        metrics: In the optimizer's metrics, by name.
        source: Where the groups come from.
        why: Why from there.
        coverage: How much of the model is seen.
        batch_size: Examples in the last measured step.
        steps: Measured steps behind the estimate.
        window: Examples seen between its first and last measured step.
        age: Examples seen from the middle of the window until now.
        examples: Examples seen in all.
        skipped: Steps left out because their gradient was not finite or zero, or no
            update followed.
        problem: Why the last step that was to be measured gave nothing.
        cost: Share of the training time that measuring has taken; None: not known.
        verification: What verifying took beside that, in steps of training; it happens
            once, and where shapes or calls change. None: not known.
        example: What one example is.
        population: Size of the data set, if batches repeat nothing within an epoch.
    """

    noise_scale: Estimate
    trace: Estimate
    grad_norm_sq: Estimate
    by_layer: dict[str, LayerNoise] = field(default_factory=dict)
    metrics: dict[str, MetricNoise] = field(default_factory=dict)
    source: str = ""
    why: str = ""
    coverage: Coverage = Coverage(parameters=1.0)
    batch_size: int = 0
    steps: int = 0
    window: int = 0
    age: int = 0
    examples: int = 0
    skipped: int = 0
    problem: str = ""
    cost: float | None = None
    verification: float | None = None
    example: str = "example"
    population: int | None = None

    @property
    def decided(self) -> bool:
        """Whether the interval is within 20 % of the value."""
        return self.noise_scale.relative <= PRECISION

    def steps_needed(self, precision: float = PRECISION) -> float:
        """About how many more measured steps give this relative precision.

        The interval's half width falls with the root of their number; infinite while
        the signal is not told from zero at all.
        """
        half = 0.0
        for part in (self.grad_norm_sq, self.trace):
            if part.value <= 0 or not part.bounded:
                return math.inf
            half += part.relative**2
        return max(1.0, math.ceil(self.steps * (half / precision**2 - 1)))

    @property
    def verdict(self) -> str:
        """One sentence: what is known, or what would settle it."""
        known, needed = self.noise_scale, self.steps_needed()
        more = (
            "many more steps"
            if not math.isfinite(needed)
            else f"about {show_number(needed)} more measured steps"
        )
        if self.steps == 0:
            skipped = f"{self.skipped} steps left out" if self.skipped else ""
            reasons = "; ".join(filter(None, [skipped, self.problem]))
            return "nothing measured yet" + (f" ({reasons})" if reasons else "")
        if 2 * self.age > self.examples > 0:
            more += (
                f" (measured {self.age:,} of {self.examples:,} examples ago: allow "
                "more overhead)"
            )
        share = self.coverage.parameters
        what = "noise scale"
        if share <= 0.99:
            what += f" of {share:.0%} of the model"
        if not known.bounded:
            if known.low <= 0:
                return f"{what} not known yet: {more} for ± 20 %"
            low = show_number(known.low)
            return f"{what} at least {low} {known.unit}; {more} for ± 20 %"
        return f"{what} {known}" + ("" if self.decided else f"; {more} for ± 20 %")

    def gradient_noise(self, batch_size: int) -> Estimate:
        """Variance of a batch's gradient around the full one, tr Cov(g_B).

        With a known ``population`` batches are drawn without replacement and the noise
        falls to zero at the full data set: tr Sigma / B (N - B) / (N - 1).

        Raises:
            ValueError: ``batch_size`` is below 1 or above the population.
        """
        n = self.population
        if batch_size < 1 or (n is not None and batch_size > n):
            largest = "" if n is None else f" and at most the data set's {n}"
            raise ValueError(f"batch_size={batch_size} is not at least 1{largest}")
        factor = 1.0 if n is None or n == 1 else (n - batch_size) / (n - 1)
        return self.trace.scale(factor / batch_size)

    def log(self, prefix: str = "noise/") -> dict[str, float]:
        """Plain numbers, as any logger takes them; what is unknown is left out."""
        numbers = {
            "scale": self.noise_scale.value,
            "scale_low": self.noise_scale.low,
            "scale_high": self.noise_scale.high,
            "trace": self.trace.value,
            "grad_norm_sq": self.grad_norm_sq.value,
            "steps": float(self.steps),
            "age": float(self.age),
            "skipped": float(self.skipped),
            "coverage": self.coverage.parameters,
        }
        if self.cost is not None:
            numbers["cost"] = self.cost
        for name, metric in self.metrics.items():
            numbers[f"scale_{name}"] = metric.noise_scale.value
        return {prefix + k: v for k, v in numbers.items() if math.isfinite(v)}

    def __str__(self) -> str:
        return self.verdict
