"""Published power laws of batch and learning rate, each silent where it was not seen.

They are of language models under AdamW, trained from scratch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from rightbatch.cluster.published import BEYOND, GROWTH, LEVEL, SCATTER, SIZES, ZHANG
from rightbatch.core.estimate import Estimate
from rightbatch.core.units import show_count, show_number

BERGSMA = "Bergsma et al. 2025, arXiv:2505.13738, SlimPajama, context 2,048"
LI = "Li et al. 2025 (Step Law), arXiv:2503.04715"
DEEPSEEK = "DeepSeek-AI 2024, arXiv:2401.02954"
MERRILL = "Merrill et al. 2025, arXiv:2505.23971, OLMo, batches costing .01 of loss"
BEST, CRITICAL, RATE = "best batch", "critical batch", "learning rate"


@dataclass(frozen=True, slots=True)
class Prior:
    """What a publication says of a job that has not been measured.

    Attributes:
        number: ``"best batch"`` (least loss from given data), ``"critical batch"``
            (steps and data both twice their least) or ``"learning rate"`` (its peak).
        estimate: Unbounded where no interval was published; None: the law is silent.
        domain: Where it was seen.
        standing: ``"inside"`` of that, or how far outside.
        source: Whose measurements.
    """

    number: str
    estimate: Estimate | None
    domain: str
    standing: str
    source: str


class BatchLaw(NamedTuple):
    """``level * parameters ** by_parameters * tokens ** by_tokens``, where it was seen.

    Batches are in tokens, parameters without embeddings, tokens those of the whole run;
    ``factor`` either way is its interval, twice (in logarithms) outside of its domain.
    """

    number: str
    level: float
    by_parameters: float
    by_tokens: float
    domain: Mapping[str, tuple[float, float]]
    source: str
    factor: float = math.inf

    def prior(self, sizes: Mapping[str, float]) -> Prior:
        """What it says of a job of these sizes; no number beyond `BEYOND` outside."""
        outside = max(
            max(least / sizes[name], sizes[name] / most)
            for name, (least, most) in self.domain.items()
        )
        value = self.level * sizes["parameters"] ** self.by_parameters
        value *= sizes["tokens"] ** self.by_tokens
        factor = self.factor if outside <= 1 else self.factor**2
        low, high = value / factor, value * factor
        unit = "" if self.number == RATE else "tokens"
        seen = None
        if outside <= BEYOND:
            seen = Estimate(value=value, low=low, high=high, unit=unit, method="cited")
        domain = ", ".join(
            f"{show_count(least)} to {show_count(most)} {name}"
            for name, (least, most) in self.domain.items()
        )
        standing = "inside" if outside <= 1 else f"{show_number(outside)} x outside"
        return Prior(self.number, seen, domain, standing, self.source)


# The smallest and the largest model at 20 tokens a parameter [assumed: runs reach so
# far; their longest are not stated in what we read].
_BERGSMA = {"parameters": (111e6, 3.3e9), "tokens": (2.2e9, 6.6e10)}
_LI = {"parameters": (6e7, 1.07e9), "tokens": (4e9, 1e11)}
_DEEPSEEK = {"FLOPs": (1e17, 1e20)}  # fitted to 2e19, checked at 1e20; here 6 N D
_ZHANG = {"parameters": SIZES, "tokens a parameter": (10.0, 40.0)}  # 20 in its runs
_MERRILL = {"parameters": (1e9, 7e9), "tokens": (1.68e11, 5.03e11)}
BATCH_LAWS = (  # exponents and levels [cited], but for Zhang's, which are our fit
    BatchLaw(BEST, 0.0306 * 2048, 0, 0.383, _BERGSMA, BERGSMA),  # R2 .984
    BatchLaw(BEST, 0.58, 0, 0.571, _LI, LI),
    BatchLaw(BEST, 0.292 * 6**0.3271, 0.3271, 0.3271, _DEEPSEEK, DEEPSEEK),
    # Of the least data that reach the loss, taken for those of the run; R2 .940.
    BatchLaw(CRITICAL, 0.0471 * 2048, 0, 0.462, _BERGSMA, BERGSMA),
    BatchLaw(CRITICAL, LEVEL * 512, GROWTH, 0, _ZHANG, ZHANG, SCATTER**2),
    # 2,048 documents of 4,096 tokens at the first end of its domain, 4,096 at the last.
    BatchLaw(CRITICAL, 2**23.5, 0, 0, _MERRILL, MERRILL, 2**0.5),
    BatchLaw(RATE, 1.79, -0.713, 0.307, _LI, LI),
    BatchLaw(RATE, 0.3118 * 6**-0.125, -0.125, -0.125, _DEEPSEEK, DEEPSEEK),
)
