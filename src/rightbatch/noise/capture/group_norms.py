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
    EmbeddingLookup,
    GradientFormula,
    MatrixProduct,
    Use,
)
from rightbatch.noise.capture.layout import Groups
from rightbatch.noise.guard import Guard
from rightbatch.noise.norms import squared_norm, sum_dtype

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
class SharedParameters:
    """Parameters that enter several operations, learned from step to step.

    Their parts are added before the norm is taken.

    Attributes:
        keys: All that are known.
        untied: Those among them that are more than one embedding and one output layer.
    """

    keys: set[ParameterKey] = field(default_factory=set)
    untied: set[ParameterKey] = field(default_factory=set)

    def learn(self, keys: set[ParameterKey]) -> None:
        """These were used once more than was known."""
        self.untied |= keys & self.keys
        self.keys |= keys


@dataclass
class GroupNorms:
    """Collects the norms of one backward pass.

    Attributes:
        batch: Examples in the batch.
        count: Groups; ``batch`` for every example by itself.
        shared: What is known of parameters that are used more than once.
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
    shared: SharedParameters = field(default_factory=SharedParameters)
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
    lookups: dict[ParameterKey, tuple[EmbeddingLookup, Tensor]] = field(
        default_factory=dict
    )
    _uses: dict[ParameterKey, list[Use]] = field(
        default_factory=lambda: defaultdict(list)
    )
    _ties: dict[ParameterKey, _TiedEmbedding] = field(default_factory=dict)
    _sums: dict[ParameterKey, dict[int, Tensor]] = field(
        default_factory=lambda: defaultdict(dict)
    )

    @property
    def started(self) -> bool:
        """Whether the backward pass has reached any parameter."""
        return bool(self.groups or self._uses)

    def expect(
        self, key: ParameterKey, formula: GradientFormula, saved: Tensor
    ) -> None:
        """A use in the forward pass; an output layer may be tied to an embedding."""
        if isinstance(formula, EmbeddingLookup):
            if key in self.lookups:  # encoder and decoder have the same
                self.shared.untied.add(key)
            self.lookups[key] = formula, saved

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
        if key in self.shared.keys:
            return self._shared_gradient(key, use)
        if key in self.groups:
            self.newly_shared.add(key)
            return use.gradient()
        groups = self.groups[key] = self._groups_for(use)
        gradient, norms = self._measure(key, use, groups)
        self.squares[key] = norms.square_()
        self.totals[key] = use.formula.norm_of(gradient).square_()
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
        self._ties.clear()
        self.lookups.clear()
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
            norms.append(formula.norm_of(part))
            if self.observer is not None:
                entries = formula.entries
                before = None if total is None else entries(total)
                self.observer.observe(key, before, entries(part), j)
            total = part if total is None else total.add_(part)
        assert total is not None
        return total, torch.stack(norms)

    def _shared_gradient(self, key: ParameterKey, use: Use) -> Tensor:
        """One use of a parameter that has several: norms only once all are there."""
        tie = self._tie(key, use.formula)
        if tie is None:
            self._uses[key].append(use)
            return use.gradient()
        if type(use.formula) in tie.used:
            self.newly_shared.add(key)
        tie.used.add(type(use.formula))
        self.groups[key] = tie.groups
        gradient, norms = self._measure(key, use, tie.groups)
        cross, total_cross = tie.join(use, gradient)
        squares, total = norms.square(), use.formula.norm_of(gradient).square()
        self.squares[key] = self.squares.get(key, 0) + squares + 2 * cross
        self.totals[key] = self.totals.get(key, 0) + total + 2 * total_cross
        return gradient

    def _tie(
        self, key: ParameterKey, formula: GradientFormula
    ) -> _TiedEmbedding | None:
        """The tie of an embedding with an output layer, if that is what this is."""
        if self.observer is not None or key in self.shared.untied:
            return None
        if key in self._ties:
            return self._ties[key]
        output_layer = isinstance(formula, MatrixProduct) and not formula.transposed
        if not output_layer or key not in self.lookups:
            return None
        lookup, ids = self.lookups[key]
        groups = Groups.of(self.batch, self.count)
        return self._ties.setdefault(key, _TiedEmbedding(lookup, ids, groups))

    def _add_uses(self, key: ParameterKey, uses: list[Use]) -> None:
        """Every group's gradient is summed over the uses, then its norm is taken."""
        if key in self.squares or key in self._ties:
            self.newly_shared.add(key)
            return

        def gradient(examples: slice) -> Tensor:
            parts = (use.formula.entries(use.gradient(examples)) for use in uses)
            first, *rest = parts
            # The same entries in the same order, in whatever shape.
            return sum((part.reshape(first.shape) for part in rest), first)

        groups = self.groups[key] = Groups.of(self.batch, self.count)
        total, norms = self._by_group(key, GradientFormula(), gradient, groups)
        self.squares[key] = norms.square()
        self.totals[key] = squared_norm(total)


@dataclass
class _TiedEmbedding:
    """An embedding whose table is the output layer's matrix too.

    The output layer comes first in the backward pass. Of its groups' gradients only
    the rows are kept that the embedding will add to: as much as the embedded batch.
    """

    lookup: EmbeddingLookup
    ids: Tensor
    groups: Groups
    rows: Tensor | None = None
    total_rows: Tensor | None = None
    used: set[type[GradientFormula]] = field(default_factory=set)

    def join(self, use: Use, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Inner products with the other use's gradients, once both are known."""
        formula, saved, g = use
        dtype = sum_dtype(g)
        zero = g.new_zeros(self.groups.count, dtype=dtype)
        if isinstance(formula, EmbeddingLookup):
            if self.rows is None or self.total_rows is None:
                return zero, zero[0]
            keys, sums = self.lookup.row_gradients(saved, g, self.groups)
            dots = (sums * self.rows).sum(1)
            cross = zero.index_add_(0, keys // self.lookup.rows, dots)
            used = self.ids.unique()
            return cross, (gradient[used].to(dtype) * self.total_rows).sum()
        assert isinstance(formula, MatrixProduct)
        split_ids = self.lookup.layout.split(self.ids)
        rows = []
        for a, b in self.groups.slices:
            used = split_ids[a:b].unique()
            x = formula.layout.split(saved)[a:b].reshape(-1, saved.shape[-1])
            out = formula.layout.split(g)[a:b].reshape(-1, g.shape[-1])
            rows.append(out[:, used].to(dtype).mT @ x.to(dtype))
        self.rows = torch.cat(rows)
        self.total_rows = gradient[self.ids.unique()].to(dtype)
        return zero, zero[0]
