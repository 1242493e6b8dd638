"""What one backward pass says of the noise: squared norms, parameter by parameter."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rightbatch.noise.capture.layout import Groups
from rightbatch.noise.capture.rules import (
    Broadcast,
    Kernel,
    Outer,
    Rule,
    Table,
    square,
    wide,
)

VECTORS = (Outer, Broadcast)  # rules for which one vector per example is simplest


class Key(NamedTuple):
    """A parameter, by its place in the model, or a disjoint part of one."""

    index: int
    part: tuple[int, ...] = ()


class Observer(Protocol):
    """Looks at every group's gradient itself, where norms are not enough."""

    def see(self, key: Key, before: Tensor | None, part: Tensor, seen: int) -> None:
        """A group's part of the gradient, and the sum of the ``seen`` parts before."""
        ...


@dataclass
class Tally:
    """Collects the norms of one backward pass.

    Attributes:
        batch: Examples in the batch.
        count: Groups; ``batch`` for every example by itself.
        shared: Parameters known to be used more than once: their parts are added
            before the norm is taken.
        untied: Those among them that are more than one embedding and one output layer.
        order: In which order the examples are cut into groups; None: as they are.
        observer: Shown every group's gradient, if there is one.
        squares: Squared norms of the groups' parts, by parameter.
        totals: Squared norm of the sum of these parts.
        conflicts: Parameters whose uses cannot be added up, by index, and why.
        surprises: Parameters used more than once that were not known to be.
    """

    batch: int
    count: int
    shared: frozenset[Key] = frozenset()
    untied: frozenset[Key] = frozenset()
    observer: Observer | None = None
    order: Tensor | None = None
    squares: dict[Key, Tensor] = field(default_factory=dict)
    totals: dict[Key, Tensor] = field(default_factory=dict)
    groups: dict[Key, Groups] = field(default_factory=dict)
    surprises: set[Key] = field(default_factory=set)
    conflicts: dict[int, str] = field(default_factory=dict)
    closed: bool = False
    coarse: bool = False  # every parameter's groups are the same, whatever it costs
    differentiated: bool = False  # somebody differentiated through the gradient
    stand_in: Tally | None = None  # takes everything while the layout is tested
    _parked: dict[Key, list[tuple[Rule, Tensor, Tensor]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    _ties: dict[Key, _Tie] = field(default_factory=dict)
    _lookups: dict[Key, tuple[Table, Tensor]] = field(default_factory=dict)
    _norms: dict[Key, Tensor] = field(default_factory=dict)  # not squared yet
    _wholes: dict[Key, Tensor] = field(default_factory=dict)
    _running: dict[Key, Tensor] = field(default_factory=dict)
    _seen: dict[Key, int] = field(default_factory=dict)

    @property
    def started(self) -> bool:
        """Whether the backward pass has reached any parameter."""
        return bool(self.groups or self._parked)

    def expect(self, key: Key, rule: Rule, saved: Tensor) -> None:
        """A use in the forward pass; tables are remembered for what is tied to them."""
        if isinstance(rule, Table):
            self._lookups[key] = rule, saved

    def take(self, key: Key, rule: Rule, saved: Tensor, g: Tensor) -> Tensor:
        """The parameter's gradient from this use; its norms are noted on the way."""
        if self.stand_in is not None:
            return self.stand_in.take(key, rule, saved, g)
        if saved.is_floating_point() and saved.dtype != g.dtype:
            saved = saved.to(g.dtype)  # autocast did so inside the operation
        if self.closed:
            return rule.gradient(saved, g, None)
        if key in self.shared:
            return self._take_shared(key, rule, saved, g)
        if key in self.groups:
            self.surprises.add(key)
            return rule.gradient(saved, g, None)
        groups = self.groups[key] = self._grouping(rule, saved, g)
        gradient, self._norms[key] = self._measure(key, rule, saved, g, groups)
        self._wholes[key] = rule.norm_of(gradient)
        return gradient

    def add_group(self, key: Key, group: int, part: Tensor, sizes: Groups) -> None:
        """One group's gradient, where an operation is run group by group."""
        if self.stand_in is not None:
            self.stand_in.add_group(key, group, part, sizes)
            return
        self.groups[key] = sizes
        before = self._running.get(key)
        seen = self._seen.get(key, 0)
        if self.observer is not None:
            self.observer.see(key, before, part, seen)
        if not seen:
            self.squares[key] = part.new_zeros(sizes.count, dtype=wide(part))
        self.squares[key][group] = square(part)
        self._running[key] = part.clone() if before is None else before + part
        self._seen[key] = seen + 1
        if seen + 1 == sizes.count:
            self.totals[key] = square(self._running.pop(key))

    @torch.no_grad()
    def close(self) -> None:
        """Add up what was used more than once; nothing is noted any more."""
        for key, uses in self._parked.items():
            self._settle(key, uses)
        if self._norms:  # squared together: many small operations cost more
            squares = torch.cat(list(self._norms.values())).square()
            sizes = [len(n) for n in self._norms.values()]
            self.squares.update(zip(self._norms, squares.split(sizes), strict=True))
            totals = torch.stack(list(self._wholes.values())).square().unbind()
            self.totals.update(zip(self._wholes, totals, strict=True))
        for key in [k for k in self.squares if k not in self.totals]:
            self.surprises.add(key)  # some groups never came
        parts = defaultdict(set)
        for key in self.groups:
            parts[key.index].add(key.part)
        for key in self.surprises:
            if any(p < 0 for p in key.part):
                self.conflicts[key.index] = "a view of it is used more than once"
        for index, found in parts.items():
            if len(found) > 1 and (() in found or any(p[-1] < 0 for p in found)):
                self.conflicts[index] = "it is used whole and in part"
        self._parked.clear()
        self._ties.clear()
        self._lookups.clear()
        self._running.clear()
        self.closed = True

    def _grouping(self, rule: Rule, saved: Tensor, g: Tensor) -> Groups:
        if self.observer is not None or self.coarse or self.count == self.batch:
            return Groups.of(self.batch, self.count)
        # One vector per example: its norm costs less than any group's.
        if g.dim() == 2 and len(g) == self.batch and isinstance(rule, VECTORS):
            return Groups.of(self.batch, self.batch)
        if isinstance(rule, Kernel):  # a small group's costs nearly a large one's
            return Groups.of(self.batch, max(2, self.count // 2))
        return Groups.of(self.batch, self.count)

    def _measure(
        self, key: Key, rule: Rule, saved: Tensor, g: Tensor, groups: Groups
    ) -> tuple[Tensor, Tensor]:
        """The gradient, and the norms of the groups' parts of it."""
        if self.observer is None:
            found = rule.norms(saved, g, groups)
            if found is not None:
                return rule.gradient(saved, g, None), found
            parts = rule.stack(saved, g, groups)
            if parts is not None:
                flat = parts.reshape(len(parts), -1)
                norms = torch.linalg.vector_norm(flat, dim=1, dtype=wide(flat))
                return parts.sum(0).to(g.dtype), norms
        running, each = None, []
        for j, (a, b) in enumerate(groups.slices):
            part = rule.gradient(saved, g, slice(a, b))
            each.append(rule.norm_of(part))
            if self.observer is not None:
                self.observer.see(key, running, part, j)
            running = part if running is None else running.add_(part)
        assert running is not None
        return running, torch.stack(each)

    def _take_shared(self, key: Key, rule: Rule, saved: Tensor, g: Tensor) -> Tensor:
        tie = self._tie(key, rule)
        if tie is None:
            self._parked[key].append((rule, saved, g))
            return rule.gradient(saved, g, None)
        if type(rule) in tie.met:
            self.surprises.add(key)
        tie.met.add(type(rule))
        self.groups[key] = tie.groups
        gradient, norms = self._measure(key, rule, saved, g, tie.groups)
        cross, cross_total = tie.join(rule, saved, g, gradient)
        squares, total = norms.square(), rule.norm_of(gradient).square()
        self.squares[key] = self.squares.get(key, 0) + squares + 2 * cross
        self.totals[key] = self.totals.get(key, 0) + total + 2 * cross_total
        return gradient

    def _tie(self, key: Key, rule: Rule) -> _Tie | None:
        """The tie of an embedding with an output layer, if that is what this is."""
        if self.observer is not None or key in self.untied:
            return None
        if key in self._ties:
            return self._ties[key]
        if key not in self._lookups or not isinstance(rule, Outer) or rule.transposed:
            return None
        table, ids = self._lookups[key]
        groups = Groups.of(self.batch, self.count)
        return self._ties.setdefault(key, _Tie(table, ids, groups))

    def _settle(self, key: Key, uses: list[tuple[Rule, Tensor, Tensor]]) -> None:
        if any(key in known for known in (self.squares, self._ties)):
            self.surprises.add(key)
            return
        groups = self.groups[key] = Groups.of(self.batch, self.count)
        total, norms = None, []
        for j, (a, b) in enumerate(groups.slices):
            part = None
            for rule, saved, g in uses:
                one = rule.gradient(saved, g, slice(a, b))
                if part is not None and part.shape != one.shape:
                    self.conflicts[key.index] = "it is used in different shapes"
                    del self.groups[key]
                    return
                part = one if part is None else part + one
            assert part is not None
            norms.append(uses[0][0].norm_of(part))
            if self.observer is not None:
                self.observer.see(key, total, part, j)
            total = part if total is None else total.add_(part)
        assert total is not None
        self.squares[key] = torch.stack(norms).square()
        self.totals[key] = uses[0][0].norm_of(total).square()


@dataclass
class _Tie:
    """An embedding whose table is the output layer's matrix too.

    The output layer comes first in the backward pass. Of its groups' gradients only
    the rows are kept that the embedding will add to: as much as the embedded batch.
    """

    table: Table
    ids: Tensor
    groups: Groups
    rows: Tensor | None = None
    total_rows: Tensor | None = None
    met: set[type[Rule]] = field(default_factory=set)

    def join(
        self, rule: Rule, saved: Tensor, g: Tensor, gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Inner products with the other use's gradients, once both are known."""
        zero = g.new_zeros(self.groups.count, dtype=wide(g))
        if isinstance(rule, Table):
            if self.rows is None or self.total_rows is None:
                return zero, zero[0]
            keys, sums = self.table.segments(saved, g, self.groups)
            dots = (sums * self.rows).sum(1)
            cross = zero.index_add_(0, keys // self.table.rows, dots)
            used = self.ids.unique()
            return cross, (gradient[used].to(wide(g)) * self.total_rows).sum()
        assert isinstance(rule, Outer)
        split_ids = self.table.layout.split(self.ids)
        kept = []
        for a, b in self.groups.slices:
            used = split_ids[a:b].unique()
            x = rule.layout.split(saved)[a:b].reshape(-1, saved.shape[-1])
            out = rule.layout.split(g)[a:b].reshape(-1, g.shape[-1])
            kept.append(out[:, used].to(wide(g)).mT @ x.to(wide(g)))
        self.rows = torch.cat(kept)
        self.total_rows = gradient[self.ids.unique()].to(wide(g))
        return zero, zero[0]
