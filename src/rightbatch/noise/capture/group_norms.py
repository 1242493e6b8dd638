"""What one backward pass says of the noise: squared norms, parameter by parameter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rightbatch.noise.capture.gradient_formulas import (
    Broadcast,
    Convolution,
    GradientFormula,
    MatrixProduct,
    Use,
)
from rightbatch.noise.capture.layout import Groups
from rightbatch.noise.guard import Guard
from rightbatch.noise.norms import norm, squared_norm, sum_dtype

# Formulas for which one vector per example is simplest.
VECTORS = (MatrixProduct, Broadcast)


class ParameterKey(NamedTuple):
    """A parameter, by its place in the model, or some of its entries.

    Entries that are used in several parts are taken to be disjoint: then the parts'
    squared norms add up. Where they are not, verifying finds out.
    """

    index: int
    part: tuple[int, ...] = ()


class Observer(Protocol):
    """Looks at every group's gradient itself, where norms are not enough."""

    def observe(
        self, key: ParameterKey, before: Tensor | None, gradient: Tensor, group: int
    ) -> None:
        """One group's part of the gradient, and the sum of the groups' before it."""
        ...


@dataclass
class GroupNorms:
    """Collects the norms of one backward pass.

    Attributes:
        batch: Examples in the batch.
        count: Groups; ``batch`` for every example by itself.
        shared: Parameters known to enter several operations: their parts are added
            before the norm is taken.
        observer: Shown every group's gradient, if there is one.
        order: In which order the examples are cut into groups; None: as they are.
        same_groups: Whether every parameter's groups are the same, whatever it costs.
        guard: Through which everything is noted.
        squares: Squared norms of the groups' parts, by parameter.
        totals: Squared norm of the sum of these parts.
        groups: How the batch was cut for each parameter.
        newly_shared: Parameters used more than once that were not known to be.
        differentiated: Whether somebody differentiated through the gradient.
        closed: Whether the backward pass is over.
    """

    batch: int
    count: int
    shared: set[ParameterKey] = field(default_factory=set)
    observer: Observer | None = None
    order: Tensor | None = None
    same_groups: bool = False
    guard: Guard = field(default_factory=Guard)
    squares: dict[ParameterKey, Tensor] = field(default_factory=dict)
    totals: dict[ParameterKey, Tensor] = field(default_factory=dict)
    groups: dict[ParameterKey, Groups] = field(default_factory=dict)
    newly_shared: set[ParameterKey] = field(default_factory=set)
    differentiated: bool = False
    closed: bool = False
    _uses: dict[ParameterKey, list[Use]] = field(
        default_factory=lambda: defaultdict(list)
    )
    _sums: dict[ParameterKey, dict[int, Tensor]] = field(
        default_factory=lambda: defaultdict(dict)
    )

    @property
    def started(self) -> bool:
        """Whether the backward pass has reached any parameter."""
        return bool(self.groups or self._uses)

    def gradient(self, key: ParameterKey, use: Use) -> Tensor:
        """The parameter's gradient from this use; its norms are noted on the way."""
        if use.saved.is_floating_point() and use.saved.dtype != use.g.dtype:
            # autocast did so inside the operation
            use = use._replace(saved=use.saved.to(use.g.dtype))
        if self.closed:
            return use.gradient()
        noted = self.guard.run(self._note, key, use, part=key.index)
        return use.gradient() if noted is None else noted

    def _note(self, key: ParameterKey, use: Use) -> Tensor:
        if key in self.shared:
            self._uses[key].append(use)
            return use.gradient()
        if key in self.groups:
            self.newly_shared.add(key)
            return use.gradient()
        groups = self.groups[key] = self._groups_for(use)
        gradient, norms = self._measure(key, use, groups)
        self.squares[key] = norms.square_()
        self.totals[key] = squared_norm(use.formula.entries(gradient))
        return gradient

    def add_group(
        self, key: ParameterKey, group: int, gradient: Tensor, groups: Groups
    ) -> None:
        """One group's gradient from one use, where that was run again by group."""
        if self.closed:
            return
        self.groups[key] = groups
        before = self._sums[key].get(group)
        self._sums[key][group] = gradient if before is None else before + gradient

    @torch.no_grad()
    def close(self) -> None:
        """Add up what was used more than once; nothing is noted any more."""
        for key, uses in self._uses.items():
            self.guard.run(self._add_uses, key, uses, part=key.index)
        for key, sums in self._sums.items():
            self.guard.run(self._add_sums, key, sums, part=key.index)
        self._uses.clear()
        self._sums.clear()
        self.closed = True

    def _add_sums(self, key: ParameterKey, sums: dict[int, Tensor]) -> None:
        total, squares = None, []
        for group, gradient in sorted(sums.items()):
            if self.observer is not None:
                self.observer.observe(key, total, gradient, group)
            squares.append(squared_norm(gradient))
            total = gradient if total is None else total + gradient
        assert total is not None
        self.squares[key] = torch.stack(squares)
        self.totals[key] = squared_norm(total)

    def _groups_for(self, use: Use) -> Groups:
        if self.observer is None and not self.same_groups and self.count < self.batch:
            # One vector per example: its norm costs less than any group's.
            vectors = use.g.dim() == 2 and use.g.shape[0] == self.batch
            if vectors and isinstance(use.formula, VECTORS):
                return Groups.of(self.batch, self.batch)
            # A small group's convolution costs nearly what a large one's does.
            if isinstance(use.formula, Convolution):
                return Groups.of(self.batch, max(2, self.count // 2))
        return Groups.of(self.batch, self.count)

    def _measure(
        self, key: ParameterKey, use: Use, groups: Groups
    ) -> tuple[Tensor, Tensor]:
        """The gradient, and the norms of the groups' parts of it."""
        formula, saved, g = use
        if self.observer is None:
            norms = formula.norms(saved, g, groups)
            if norms is not None:
                return use.gradient(), norms
            parts = formula.group_gradients(saved, g, groups)
            if parts is not None:
                flat = parts.reshape(len(parts), -1)
                norms = torch.linalg.vector_norm(flat, dim=1, dtype=sum_dtype(flat))
                return parts.sum(0).to(g.dtype), norms
        return self._by_group(key, formula, use.gradient, groups)

    def _by_group(
        self,
        key: ParameterKey,
        formula: GradientFormula,
        gradient: Callable[[slice], Tensor],
        groups: Groups,
    ) -> tuple[Tensor, Tensor]:
        """The sum of the groups' gradients, and their norms, one after the other."""
        total, norms = None, []
        for j, (a, b) in enumerate(groups.slices):
            part = gradient(slice(a, b))
            entries = formula.entries(part)
            norms.append(norm(entries))
            if self.observer is not None:
                before = None if total is None else formula.entries(total)
                self.observer.observe(key, before, entries, j)
            total = part if total is None else total.add_(part)
        assert total is not None
        return total, torch.stack(norms)

    def _add_uses(self, key: ParameterKey, uses: list[Use]) -> None:
        """Every group's gradient is summed over the uses, then its norm is taken."""

        def gradient(examples: slice) -> Tensor:
            parts = (use.formula.entries(use.gradient(examples)) for use in uses)
            first, *rest = parts
            # The same entries in the same order, in whatever shape.
            return sum((part.reshape(first.shape) for part in rest), first)

        groups = self.groups[key] = Groups.of(self.batch, self.count)
        total, norms = self._by_group(key, GradientFormula(), gradient, groups)
        self.squares[key] = norms.square()
        self.totals[key] = squared_norm(total)
