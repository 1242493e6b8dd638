"""The parameters that are measured, and the places where their groups may come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from rightbatch.noise.group_source import GroupSource
from rightbatch.noise.guard import Guard
from rightbatch.noise.micro_batches import MicroBatches
from rightbatch.noise.monitor_settings import trained_parameters
from rightbatch.noise.rank_gradients import RankGradients, world_size_of
from rightbatch.noise.statistics.scale import Coverage
from rightbatch.noise.updates import Updates
from rightbatch.noise.within_batch import WithinBatch


class Watched:
    """What a monitor looks at, until other parameters are trained.

    Args:
        model: What the loop calls.
        optimizers: Whose parameters they are; None: any.
        named: The parameters, by name.
        guard: Of the hooks on them.
        population: Size of the data set, where an epoch repeats no example.
        groups: Groups per batch; None: every example by itself.
        verify: Whether to test that gradients are seen where they belong.
        stream: Says how a batch is composed, if it is.

    Attributes:
        parameters: The parameters.
        names: Of them; with FSDP of the wrapped modules, which alone are told apart.
        updates: Of them.
        within_batch: Groups inside a batch.
        micro_batches: Groups of an accumulated step.
        ranks: Groups of a distributed one; None on a single rank.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer] | None,
        named: Sequence[tuple[str, Tensor]],
        guard: Guard,
        population: int | None,
        *,
        groups: int | None,
        verify: bool,
        stream: Any,
    ) -> None:
        self._model, self._optimizers, self._guard = model, optimizers, guard
        guard.clean_up = self.cancel
        self.parameters = parameters = [p for _, p in named]
        self.names = [n for n, _ in named]
        self.updates = Updates(parameters)
        self.within_batch = WithinBatch(
            model, parameters, population, groups, verify, guard
        )
        if stream is not None and stream.composed:
            self.within_batch.equal_groups = stream.alike
        self.micro_batches = MicroBatches(parameters, population, guard)
        self.ranks: RankGradients | None = None
        self.world_size = world_size_of(model)
        if self.world_size > 1:
            self.ranks = RankGradients(
                model, parameters, population, self.world_size, guard
            )
            self.names = self.ranks.units or self.names

    def cleared(self, *, sure: bool) -> bool:
        """Whether all gradients are gone, or zero: what came before is no step's part.

        Args:
            sure: Whether an accelerator may be waited for to find out.
        """
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if gradients and gradients[0].is_cuda and not sure:
            return False
        return not any(bool(g.any()) for g in sorted(gradients, key=Tensor.numel))

    def source(self, *, accumulated: bool) -> GroupSource:
        """Where a step's groups are cheapest."""
        return self.ranks or (self.micro_batches if accumulated else self.within_batch)

    def others(self) -> list[tuple[str, Tensor]] | None:
        """What is trained now; None if it is the same, or cannot be told apart."""
        now = trained_parameters(self._model, self._optimizers)
        same = {id(p) for _, p in now} == {id(p) for p in self.parameters}
        return None if same or not now or self.ranks is not None else now

    def coverage(self, source: GroupSource) -> Coverage:
        """How much of what is trained now is seen."""
        missing = source.missing | self._guard.lost_parameters
        sizes = [p.numel() for p in self.parameters]
        known = {id(p) for p in self.parameters}
        trained = trained_parameters(self._model, self._optimizers)
        late = {n: p.numel() for n, p in trained if id(p) not in known}
        unseen = sum(sizes[i] for i in missing) + sum(late.values())
        return Coverage(
            parameters=1 - unseen / (sum(sizes) + sum(late.values())),
            missing={self.names[i]: why for i, why in missing.items()}
            | dict.fromkeys(late, "it is trained only since the last measured step"),
            verified=source.verified,
        )

    def cancel(self) -> None:
        """Take away what measuring has put into the step."""
        for source in (self.within_batch, self.micro_batches, self.ranks):
            if source is not None:
                source.cancel()
