"""Groups told apart inside the weight gradients of one ordinary batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from rightbatch.noise.capture.forward_pass import ForwardPass
from rightbatch.noise.capture.group_norms import GroupNorms, SharedParameters
from rightbatch.noise.capture.independence import misplaced_gradients
from rightbatch.noise.capture.layout import Groups
from rightbatch.noise.group_source import GroupSource, MetricsFor
from rightbatch.noise.neighbours import Cut, Neighbours
from rightbatch.noise.statistics.samples import Sample, sample_from_norms, with_metrics

MOST_LAYOUTS = 3  # refuted layouts of a parameter before it is left out [assumed]
SECOND = "the step had a second micro-batch: the next step's groups are micro-batches"
UNEQUAL = (
    "the batch cannot be cut into groups of equal composition: the numbers of examples "
    "of the strata have no common divisor (Strata(..., multiple=8) gives one)"
)


class WithinBatch(GroupSource):
    """Notes every group's norms while the backward pass makes the weight gradients.

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
    ) -> None:
        super().__init__(parameters, population)
        self.equal_groups: Callable[[int, int], int] | None = None
        self.coupled = False
        self.neighbours = Neighbours()
        self._groups = groups
        self._to_verify = verify
        self._forward = ForwardPass(model, parameters)
        self._shared = SharedParameters()
        self._norms: GroupNorms | None = None
        self._metrics_for: MetricsFor = lambda sizes: None
        self._cut: Cut = ""

    @property
    def waiting(self) -> bool:
        return self._norms is not None and not self._norms.started

    def begin(self, metrics_for: MetricsFor, last_batches: tuple[int, ...]) -> None:
        self._metrics_for, self._norms, self.problem = metrics_for, None, ""

    def forward_begins(self, batch: int) -> None:
        if self._norms is not None and self._norms.started:
            self.problem = SECOND
            return
        if self._norms is None or self._norms.batch != batch:
            count = self._group_count(batch)
            if count < 2:
                self.problem = (
                    "a batch of one example has no groups" if batch < 2 else UNEQUAL
                )
                return
            self._norms = self._new_norms(batch, count)
        self._forward.enter(self._norms)

    def _group_count(self, batch: int) -> int:
        count = batch if self._groups is None else min(self._groups, batch)
        if batch < 2 or self.equal_groups is None:
            return count
        return self.equal_groups(batch, count)

    def _new_norms(self, batch: int, count: int) -> GroupNorms:
        groups = Groups.of(batch, count)
        self.metrics = self._metrics_for(groups.sizes)
        order, self._cut = None, ""
        if self.metrics is None and self.equal_groups is None:
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
        )

    def forward_ends(self, output: Any) -> None:
        mode = self._forward.mode
        self._forward.leave()
        if mode is None or mode.group_norms is not self._norms:
            return
        self.coupled |= mode.coupled
        if not self._to_verify or self.coupled or self.problem:
            return
        try:
            misplaced = misplaced_gradients(mode, output)
        except RuntimeError:  # checkpointing of the older kind allows no such pass
            misplaced = None
        layouts = self._forward.layouts
        for index, what in (misplaced or {}).items():
            layouts.wrong[index] = layouts.wrong.get(index, 0) + 1
            layouts.refuted[index] = what
            if layouts.wrong[index] >= MOST_LAYOUTS:
                layouts.excluded[index] = what
            self.problem = "the layout of the batch is still being learned"
        self._to_verify = bool(misplaced)  # until no gradient is in a wrong place
        self.verified = None if misplaced is None else not misplaced

    def finish(self, batches: Sequence[int]) -> Sample | None:
        norms, self._norms = self._norms, None
        if norms is None:
            return None
        norms.close()
        self._forward.close()
        self._shared.learn(norms.newly_shared)
        self._forward.layouts.excluded |= norms.conflicts
        self.problem = self._problem(norms, batches)
        if self.problem:
            return None
        if norms.order is None:
            self._note_missing(norms)
        if not norms.squares:
            self.problem = "no parameter enters an operation that is known"
            return None
        sample = sample_from_norms(norms, len(self.parameters), self.population)
        if sample.finite:
            self.neighbours.add(sample.grouped_noise, self._cut)
        if self.metrics is None:
            return sample
        return with_metrics(sample, self.metrics, self.metrics.rows())

    def _problem(self, norms: GroupNorms, batches: Sequence[int]) -> str:
        """Why this step says nothing; "" if it does."""
        if self.coupled:
            return "BatchNorm mixes the examples of a batch"
        if norms.differentiated:
            return (
                "the loss contains gradients (a penalty): examples cannot be told apart"
            )
        if norms.newly_shared or norms.conflicts:
            return "parameters were found that are used more than once"
        if any(key.index in self._forward.layouts.excluded for key in norms.squares):
            return (
                "a parameter was found whose gradient cannot be told apart by example"
            )
        if not self.problem and len(batches) != 1:
            return SECOND
        return self.problem

    def _note_missing(self, norms: GroupNorms) -> None:
        seen = {key.index for key in norms.squares}
        layouts = self._forward.layouts
        why = layouts.refuted | layouts.excluded
        self.missing = {
            i: why.get(i, "it enters no operation that is known")
            for i, p in enumerate(self.parameters)
            if i not in seen and p.requires_grad and p.grad is not None
        }
        if self.verified and any(i in layouts.refuted for i in self.missing):
            self.verified = False

    def cancel(self) -> None:
        if self._norms is not None:
            self._norms.close()
        self._norms = None
        self._forward.leave()
        self._forward.close()
