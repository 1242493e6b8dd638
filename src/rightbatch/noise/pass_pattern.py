"""Whether the passes of an accumulated step are draws of one distribution."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rightbatch.noise.model_inputs import ModelInputs

LEAST = 8  # steps before passes are told apart by their gradients [assumed]
REMEMBERED = 64  # steps [assumed]
ERRORS = 4  # standard errors that two passes must differ [assumed]
NOTICED = 1.1  # times that their gradients' squared norms must differ [assumed]
INSTEAD = "add the losses and make one backward pass, or use rb.noise_scale(job)"


@dataclass(eq=False)
class Pass:
    """One forward pass of a step, and the gradient that came of it.

    Attributes:
        inputs: What the model was called with.
        fingerprint: Of the examples.
        reached: Parameters that got a gradient.
        square: Squared norm of that gradient, over all of them.
    """

    inputs: ModelInputs
    fingerprint: Tensor
    reached: set[int] = field(default_factory=set)
    square: Tensor | float = 0.0

    @classmethod
    def of(cls, inputs: ModelInputs) -> Pass:
        """A pass that begins."""
        return cls(inputs, inputs.fingerprint())


@dataclass
class PassPattern:
    """Compares the passes of steps, as far as it can be seen from gradients and inputs.

    Micro-batches are alike but for chance. Passes over the same examples, calls of
    another kind, and gradients that are always larger in one pass than in another, or
    point against each other, are parts of a loss, and their difference is no noise.
    """

    _ratios: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    _angles: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def difference(self, passes: Sequence[Pass], total: float) -> str:
        """How the passes differ by more than chance, and what to do; "" if they don't.

        Args:
            passes: Of one step, those whose gradients are part of it.
            total: Squared norm of the sum of their gradients.
        """
        first, last = passes[0], passes[-1]
        if any(p.inputs.manner != first.inputs.manner for p in passes):
            return f"the passes of a step call the model in different ways: {INSTEAD}"
        prints = [p.fingerprint for p in passes]
        if any(torch.equal(a, b) for a, b in itertools.pairwise(prints)):
            return f"the passes of a step see the same examples: {INSTEAD}"
        squares = [float(p.square) for p in passes]
        if min(squares) > 0 and math.isfinite(total):
            batches = first.inputs.batch, last.inputs.batch
            if batches[0] == batches[1]:
                self._ratios.append(math.log(squares[0] / squares[-1]))
            self._angles.append((total - sum(squares)) / sum(squares))
        log_ratio, error = _mean(self._ratios)
        if abs(log_ratio) > max(ERRORS * error, math.log(NOTICED)):
            return (
                "the first pass of a step has another gradient than the last "
                f"(squared norm {math.exp(log_ratio):.2g} x): they are no draws of one "
                f"distribution; {INSTEAD}"
            )
        angle, error = _mean(self._angles)
        if angle < -ERRORS * error:
            return (
                "the passes of a step have gradients that point against each other: "
                f"they are no draws of one distribution; {INSTEAD}"
            )
        return ""


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error; no error is small enough while there are few values."""
    if len(values) < LEAST:
        return 0.0, math.inf
    return statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))
