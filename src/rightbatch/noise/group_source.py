"""What every place has in common where a training step has groups of examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from rightbatch.noise.guard import Guard
from rightbatch.noise.model_inputs import ModelInputs
from rightbatch.noise.statistics.optimizer_metric import OptimizerMetrics
from rightbatch.noise.statistics.samples import Sample

# From the groups' sizes: what is to see every group's gradient in this step, if it is
# measured in the optimizer's metrics too.
MetricsFor = Callable[[tuple[int, ...]], OptimizerMetrics | None]


class GroupSource:
    """Where groups come from. One measured step at a time goes through it.

    Attributes:
        guard: Of the hooks that show gradients.
        name: For people.
        why: Why this one was chosen.
        missing: Parameters that are not seen, by index, and why.
        verified: Whether what is seen was confirmed by passes of its own for every
            group; None: nothing was tested.
        verifies: Whether this step does that.
        unmeasurable: Why nothing can be measured here, and what would work; "" if
            something can.
        problem: Why the last step gave nothing.
        used: Which of the step's forward passes have a part in its gradient; empty:
            all.
        seen_changed: Whether other parameters are seen than in the step before.
        metrics: Norms in the optimizer's metrics in this step, if they are measured.
    """

    name = ""
    why = ""

    def __init__(
        self, parameters: Sequence[Tensor], population: int | None, guard: Guard
    ) -> None:
        self.parameters, self.population = parameters, population
        self.guard = guard
        self.missing: dict[int, str] = {}
        self.verified: bool | None = None
        self.verifies = False
        self.unmeasurable = ""
        self.used: tuple[int, ...] = ()
        self.seen_changed = False
        self.problem = ""
        self.metrics: OptimizerMetrics | None = None

    @property
    def waiting(self) -> bool:
        """Whether the model was called, and no gradient has come back yet."""
        return False

    def begin(self, metrics_for: MetricsFor, last_batches: tuple[int, ...]) -> None:
        """A measured step begins; the last one had micro-batches of these sizes."""

    def forward_begins(self, inputs: ModelInputs) -> None:
        """The model is called."""

    def forward_ends(self, output: object) -> None:
        """The model has returned."""

    def finish(self, batches: Sequence[int]) -> Sample | None:
        """All gradients of the step's micro-batches, of these sizes, are there.

        Returns:
            The sample, or None, with the reason in ``problem``.
        """
        raise NotImplementedError

    def cancel(self) -> None:
        """The step came to nothing: take every hook away."""
