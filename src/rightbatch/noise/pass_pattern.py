"""Whether the passes of an accumulated step are draws of one distribution."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rightbatch.noise.model_inputs import ModelInputs
from rightbatch.noise.statistics.tendency import Tendency

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
    fingerprint: Tensor = field(init=False)
    reached: set[int] = field(default_factory=set)
    square: Tensor | float = 0.0

    def __post_init__(self) -> None:
        # Taken as the pass begins: a loop may write its next batch over this one.
        self.fingerprint = self.inputs.fingerprint()


@dataclass
class PassPattern:
    """Compares the passes of steps, as far as it can be seen from gradients and inputs.

    Micro-batches are alike but for chance. Passes over the same examples, calls of
    another kind, and gradients that are always larger in one pass than in another, or
    point against each other, are parts of a loss, and their difference is no noise.
    """

    _log_ratios: Tendency = field(default_factory=Tendency)
    _angles: Tendency = field(default_factory=Tendency)

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
            if first.inputs.batch == last.inputs.batch:
                self._log_ratios.add(math.log(squares[0] / squares[-1]))
            self._angles.add((total - sum(squares)) / sum(squares))
        if log_ratio := self._log_ratios.beyond(math.log(NOTICED)):
            return (
                "the first pass of a step has another gradient than the last "
                f"(squared norm {math.exp(log_ratio):.2g} x): they are no draws of one "
                f"distribution; {INSTEAD}"
            )
        if self._angles.beyond(0.0) < 0:
            return (
                "the passes of a step have gradients that point against each other: "
                f"they are no draws of one distribution; {INSTEAD}"
            )
        return ""
