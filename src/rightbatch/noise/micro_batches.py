"""The micro-batches of an accumulated step are groups: their norms are nearly free."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rightbatch.noise.capture.group_norms import ParameterKey
from rightbatch.noise.group_source import GroupSource, MetricsFor
from rightbatch.noise.guard import Guard, Hook
from rightbatch.noise.model_inputs import ModelInputs
from rightbatch.noise.norms import inner_product, squared_norm
from rightbatch.noise.pass_pattern import INSTEAD, Pass, PassPattern
from rightbatch.noise.statistics.samples import (
    Sample,
    sample_from_groups,
    with_metrics,
)


class MicroBatches(GroupSource):
    """Reads every micro-batch's gradient just before it is added to ``.grad``.

    What has been accumulated is the sum of the micro-batches before, so the norm of the
    whole follows from norms and inner products as they come, whatever clips, unscales
    or clears the gradients later. Nothing is copied.
    """

    name = "micro-batches of the accumulated step"
    why = "the step is accumulated: its micro-batches are groups already"

    def __init__(
        self, parameters: Sequence[Tensor], population: int | None, guard: Guard
    ) -> None:
        super().__init__(parameters, population, guard)
        self._parts: dict[int, Tensor] = {}  # sum of the micro-batches' squared norms
        self._totals: dict[int, Tensor] = {}  # squared norm of their sum
        self._arrived: dict[int, int] = {}  # micro-batches that reached the parameter
        self._expected: tuple[int, ...] = ()
        self._passes: list[Pass] = []
        self._pattern = PassPattern()
        self._hooks: list[Any] = []

    def begin(self, metrics_for: MetricsFor, last_batches: tuple[int, ...]) -> None:
        self.metrics, self.problem = metrics_for(last_batches), ""
        self._expected, self.missing, self.used = last_batches, {}, ()
        self._passes = []
        self._parts, self._totals, self._arrived = {}, {}, {}
        for index, parameter in enumerate(self.parameters):
            if parameter.requires_grad:
                hook = Hook(weakref.ref(self), "_gradient_arrived", index)
                self._hooks.append(parameter.register_hook(hook))

    def forward_begins(self, inputs: ModelInputs) -> None:
        self._passes.append(Pass(inputs))

    def _gradient_arrived(self, index: int, gradient: Tensor) -> None:
        if gradient.is_sparse:
            self.missing[index] = "its gradient is sparse"
            return
        gradient, before = gradient.detach(), self.parameters[index].grad
        arrived = 0 if before is None else self._arrived.get(index, 0)
        square, current = squared_norm(gradient), self._passes[-1]
        if index in current.reached:
            self.problem = f"a pass had more than one backward pass: {INSTEAD}"
        current.reached.add(index)
        current.square = current.square + square
        total = square
        if before is not None:  # of this step, or zeros, or what somebody left in .grad
            so_far = self._totals[index] if arrived else squared_norm(before)
            total = so_far + 2 * inner_product(before, gradient) + square
        self._totals[index] = total
        self._parts[index] = self._parts[index] + square if arrived else square
        if self.metrics is not None:
            earlier = before.detach() if arrived and before is not None else None
            key = ParameterKey(index)
            self.metrics.observe(key, earlier, gradient, arrived)
        self._arrived[index] = arrived + 1

    def finish(self, batches: Sequence[int]) -> Sample | None:
        passes, self._passes = self._passes, []
        self.cancel()
        self.used = tuple(i for i, p in enumerate(passes) if p.reached)
        passes = [passes[i] for i in self.used]
        batches = [batches[i] for i in self.used]
        if not self._parts:
            self.problem = "no gradient arrived"
        elif len(batches) < 2:
            self.problem = "the step had one micro-batch only"
        if self.problem:
            return None
        zero = torch.zeros((), device=self.parameters[0].device)
        parts, totals = (
            torch.stack([squares.get(i, zero) for i in range(len(self.parameters))])
            for squares in (self._parts, self._totals)
        )
        self.unmeasurable = self._pattern.difference(passes, float(totals.sum()))
        if self.unmeasurable:
            self.problem = self.unmeasurable
            return None
        sample = sample_from_groups(parts, totals, batches, self.population)
        if self.metrics is None or tuple(batches) != self._expected:
            return sample
        return with_metrics(sample, self.metrics, self.metrics.rows())

    def cancel(self) -> None:
        self._passes = []
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
