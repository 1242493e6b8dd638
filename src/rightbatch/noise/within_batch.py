"""Groups told apart inside the weight gradients of one ordinary batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from rightbatch.noise.capture.forward_pass import ForwardPass
from rightbatch.noise.capture.group_norms import GroupNorms, ParameterKey
from rightbatch.noise.capture.layout import Groups
from rightbatch.noise.capture.verification import verify
from rightbatch.noise.group_source import GroupSource, MetricsFor
from rightbatch.noise.guard import Guard
from rightbatch.noise.model_inputs import ModelInputs
from rightbatch.noise.neighbours import Cut, Neighbours
from rightbatch.noise.statistics.samples import Sample, sample_from_norms, with_metrics

LEAST = 0.5  # share of the parameters below which nothing is reported [assumed]
SECOND = "the step had a second micro-batch: the next step's groups are micro-batches"
ALONE = "a batch of one example has no groups"
UNLIKE = "two passes before one backward pass had different numbers of examples"
LEARNING = "the layout of the batch is still being learned"
DEPARTED = "it entered a call that was not there when the model was verified"
UNEQUAL = (
    "the batch cannot be cut into groups of equal composition: the numbers of examples "
    "of the strata have no common divisor (Strata(..., multiple=8) gives one)"
)
INSTEAD = "; accumulate two or more micro-batches, or use rb.noise_scale(job)"


class WithinBatch(GroupSource):
    """Notes every group's norms while the backward pass makes the weight gradients.

    The first measured step verifies what is seen (`verification`), and so does one
    after shapes or calls have changed: at once for the first new ones, then every time
    their number has doubled.

    Attributes:
        equal_groups: ``(batch, count) ->`` how many groups of equal composition, of a
            batch that is composed of strata.
        coupled: Whether BatchNorm mixes the examples of a batch: there are no groups.
        neighbours: Whether neighbouring examples are alike.
    """

    name = "groups inside the weight gradient"
    why = "one batch per step: its groups are told apart in the backward pass"

    def __init__(
        self,
        model: nn.Module,
        parameters: Sequence[Tensor],
        population: int | None,
        groups: int | None,
        verify: bool,
        guard: Guard,
    ) -> None:
        super().__init__(parameters, population, guard)
        self.equal_groups: Callable[[int, int], int] | None = None
        self.coupled = False
        self.neighbours = Neighbours()
        self._groups = groups
        self._forward = ForwardPass(model, parameters)
        self._shared: set[ParameterKey] = set()
        self._norms: GroupNorms | None = None
        self._metrics_for: MetricsFor = lambda sizes: None
        self._cut: Cut = ""
        self._arrivals: list[Any] = []  # hooks that notice a second pass's gradient
        self._outputs: list[Any] = []
        self._entered = False
        self._seen: set[int] | None = None  # parameters in the last sample
        # When to verify:
        self._verify_again = verify
        self._steps = 0  # measured ones
        self._due = 0.0  # the next that verifies in any case
        self._repeats = 0  # times that another try was called for
        self._shapes: set[Any] = set()  # of the inputs, that were there already

    @property
    def waiting(self) -> bool:
        return self._norms is not None and not self._norms.started

    def begin(self, metrics_for: MetricsFor, last_batches: tuple[int, ...]) -> None:
        self._metrics_for, self._norms, self.problem = metrics_for, None, ""
        self.verifies, self.used, self.seen_changed = False, (), False

    def forward_begins(self, inputs: ModelInputs) -> None:
        if self._norms is not None and self._norms.started:
            self._watch_second()
            return
        if self._norms is not None and self._norms.batch != inputs.batch:
            self.problem = UNLIKE
            return
        if self._norms is None:
            count = self._group_count(inputs.batch)
            if count < 2:
                self.problem = ALONE if inputs.batch < 2 else UNEQUAL
                return
            self.verifies = self._has_to_verify(inputs)
            if self.unmeasurable and not self.verifies:
                self.problem = self.unmeasurable
                return
            self._norms = self._new_norms(inputs.batch, count)
        self._entered = True
        self._forward.enter(self._norms, inputs, verifies=self.verifies)

    def _has_to_verify(self, inputs: ModelInputs) -> bool:
        self._steps += 1
        shapes = inputs.shapes, inputs.manner
        new = shapes not in self._shapes
        self._shapes.add(shapes)
        doubled = len(self._shapes) & (len(self._shapes) - 1) == 0
        return self._steps > self._due or (new and doubled and self._verify_again)

    def _try_later(self) -> None:
        """Verify in the next measured step; if that happens often, ever later."""
        self._due = self._steps + (2**self._repeats) // 4
        self._repeats += 1

    def _group_count(self, batch: int) -> int:
        count = batch if self._groups is None else min(self._groups, batch)
        if batch < 2 or self.equal_groups is None:
            return count
        return self.equal_groups(batch, count)

    def _new_norms(self, batch: int, count: int) -> GroupNorms:
        groups = Groups.of(batch, count)
        self.metrics = None if self.verifies else self._metrics_for(groups.sizes)
        order, self._cut = None, ""
        plain = self.metrics is None and not self.verifies
        if plain and self.equal_groups is None:
            self._cut = self.neighbours.next_cut()
        if self._cut == "across":
            order = groups.strided_order(self.parameters[0].device)
        return GroupNorms(
            batch,
            count,
            self._shared,
            self.metrics,
            order,
            same_groups=bool(self._cut) or self.equal_groups is not None,
            guard=self.guard,
        )

    def _watch_second(self) -> None:
        """The model is called once more: is anything of that in the gradient?"""
        if self._arrivals:
            return
        for parameter in self.parameters:
            if parameter.requires_grad:
                self._arrivals.append(parameter.register_hook(self._second_arrived))

    def _second_arrived(self, gradient: Tensor) -> None:
        self.problem = SECOND

    def forward_ends(self, output: Any) -> None:
        entered, self._entered = self._entered, False
        self._forward.leave()
        mode = self._forward.mode
        if not entered or mode is None:
            return
        self.coupled |= mode.coupled
        if not mode.verifies or self.coupled or self.problem:
            return
        self._outputs.append(output)
        try:
            verdict = verify(mode, self._outputs)
        except RuntimeError as error:
            text = str(error).lower()
            if "graph a second time" in text:  # an earlier call had its backward pass
                self.problem = SECOND
                return
            if "checkpoint" not in text:  # of the older kind
                raise
            self.unmeasurable = (
                "checkpointing with use_reentrant=True allows no pass that verifies "
                "what is seen; use_reentrant=False does" + INSTEAD
            )
            return
        self.unmeasurable = verdict.problem and verdict.problem + INSTEAD
        self._due = math.inf
        if verdict.relearn:
            self.problem = LEARNING
        if verdict.relearn or verdict.zero:
            self._try_later()

    def finish(self, batches: Sequence[int]) -> Sample | None:
        norms, mode, self._norms = self._norms, self._forward.mode, None
        if norms is None or mode is None:
            self.cancel()
            return None
        norms.close()
        self.used = () if self.problem == SECOND else (0,)
        if mode.departed and not mode.verifies:
            self._forward.plan.depart(mode.departed, DEPARTED)
            self.problem = self.problem or LEARNING
            self._try_later()
        self._shared |= norms.newly_shared
        self.cancel()
        self._note_missing()
        if not self.problem:
            self.problem = self._problem(norms)
        if self.problem:
            return None
        confirmed = self._forward.plan.confirmed - set(self.guard.lost)
        self.seen_changed = self._seen is not None and confirmed != self._seen
        self._seen = confirmed
        for key in [key for key in norms.squares if key.index not in confirmed]:
            del norms.squares[key]
        sample = sample_from_norms(norms, len(self.parameters), self.population)
        if sample.finite:
            self.neighbours.add(sample.grouped_noise, self._cut)
        if self.metrics is None:
            return sample
        return with_metrics(sample, self.metrics, self.metrics.rows())

    def _problem(self, norms: GroupNorms) -> str:
        """Why this step says nothing; "" if it does."""
        if self.coupled:
            return "BatchNorm mixes the examples of a batch"
        if norms.differentiated:
            return (
                "the loss contains gradients (a penalty): examples cannot be told apart"
            )
        if norms.newly_shared:
            return "parameters were found that are used more than once"
        return self.unmeasurable

    def _note_missing(self) -> None:
        """Which parameters are not seen; whether the rest is worth telling."""
        plan = self._forward.plan
        sizes = {
            i: p.numel()
            for i, p in enumerate(self.parameters)
            if p.requires_grad and p.grad is not None
        }
        why = plan.refused | self.guard.lost_parameters
        unknown = self.unmeasurable or LEARNING
        self.missing = {
            i: why.get(i, unknown) for i in sizes if i in why or i not in plan.confirmed
        }
        self.verified = bool(plan.confirmed) and not self.missing
        seen = sum(n for i, n in sizes.items() if i not in self.missing)
        settled = not (self.problem or self.unmeasurable)
        if settled and seen < LEAST * sum(sizes.values()):
            reasons = sorted(
                set(self.missing.values()),
                key=lambda w: -sum(sizes[i] for i, v in self.missing.items() if v == w),
            )
            self.unmeasurable = (
                f"only {seen / sum(sizes.values()):.0%} of the parameters are seen as "
                f"they are, the rest not: {'; '.join(reasons[:2])}{INSTEAD}"
            )

    def cancel(self) -> None:
        if self._norms is not None:
            self._norms.close()
        self._norms = None
        for hook in self._arrivals:
            hook.remove()
        self._arrivals.clear()
        self._outputs.clear()
        self._forward.leave()
        self._forward.close()
