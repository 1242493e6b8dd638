"""Listening to a model's operations while its forward pass runs.

A torch function mode sees every call that torch's Python functions make. Where a
parameter is an argument and another one carries the batch, the call is made with the
parameter detached, and a tap on its output takes over the parameter's gradient: the
same gradient, with the norms of its parts noted. Module code, classes and names stay as
they are.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rightbatch.core.torch_private import as_no_view, without_override_check
from rightbatch.noise.capture.autograd_hooks import GroupTap, Tap
from rightbatch.noise.capture.group_norms import Key, Tally
from rightbatch.noise.capture.layout import Groups
from rightbatch.noise.capture.plans import Planner, Sites, Source, Use

# Operations whose result is the parameter itself in another shape or precision.
VIEWS = {
    *("t", "transpose", "permute", "view", "reshape", "unsqueeze", "squeeze"),
    *("flatten", "unflatten", "contiguous", "to", "float", "type_as", "narrow"),
}
PARTS = {"chunk", "split", "unbind", "tensor_split"}
DERIVING = VIEWS | PARTS | {"__getitem__", "__get__"}
RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}
CELLS = {"lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"}
TRANSPOSED = torch.Tensor.T.__get__  # type: ignore[attr-defined]
# Operations that may be run group by group: an example's part of the result is its own.
SPLIT = {
    *RECURRENT,
    *CELLS,
    *("einsum", "tensordot", "bilinear", "prelu", "embedding_bag"),
    *("conv1d", "conv2d", "conv3d"),  # padded more on one side
    *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    *("div", "true_divide", "maximum", "minimum", "batch_norm"),
}
COUPLED = {"batch_norm"}  # an example's output depends on the others: no groups


class TapMode(TorchFunctionMode):
    """Taps every operation a tracked parameter enters while it is active.

    Args:
        parameters: The tracked ones.
        tally: What the taps report to.
        sites: What is known of the parameters' layouts; added to.
        only: Indices of the parameters to tap; default all.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        tally: Tally,
        sites: Sites,
        only: frozenset[int] | None = None,
    ) -> None:
        super().__init__()
        self.parameters, self.tally = parameters, tally
        self.coupled = False  # an operation mixes the examples of a batch
        self.skipped = False  # something was left alone because `allowed` said so
        self.allowed: Callable[[], bool] = lambda: True
        self._planner = Planner(tally.batch, sites, order=tally.order)
        for i, parameter in enumerate(parameters):
            if i not in sites.excluded and (only is None or i in only):
                self._planner.sources[id(parameter)] = Source(Key(i), parameter)
        self._copies: dict[tuple[Key, int], Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__" and func != TRANSPOSED:
            return func(*args, **kwargs)
        if name in COUPLED and (args[5:6] or [kwargs.get("training")])[0]:
            self.coupled = True
            return func(*args, **kwargs)
        if name == "multi_head_attention_forward" and torch.is_grad_enabled():
            return self._inside(func, args, kwargs)
        source = self._planner.source
        given = [s for a in _flat((args, kwargs)) if (s := source(a)) is not None]
        if not given:
            return func(*args, **kwargs)
        if not (torch.is_grad_enabled() and self.allowed()):
            # Checkpointing of the older kind has no gradients the first time.
            self.skipped = True
            return func(*args, **kwargs)
        out = self._tapped(name, func, args, kwargs, given)
        return func(*args, **kwargs) if out is None else out

    def _tapped(
        self, name: str, func: Any, args: Any, kwargs: Any, given: list[Source]
    ) -> Any:
        """The call's result with its parameters tapped, or None to leave it alone."""
        if name in DERIVING:
            return self._derived(name, func, args, kwargs, given)
        if any(type(s.tensor) not in (Tensor, nn.Parameter) for s in given):
            return None  # a distributed or quantised tensor
        plan = self._planner.plan(name, func, args, kwargs)
        if plan is None:
            return self._by_group(name, func, args, kwargs, given)
        out = plan.out
        if out is None:
            plain = {id(u.source.tensor): u.source.tensor.detach() for u in plan.uses}
            out = func(*_swap(args, plain), **_swap(kwargs, plain))
        return self._tap(out, plan.uses) if plan.uses else out

    def _tap(self, out: Tensor, uses: list[Use]) -> Tensor:
        # torch's products of more than two axes end in a view; a tap on a view costs
        # copies. Nothing else refers to what this is a view of.
        out = as_no_view(out)
        for use in uses:
            self.tally.expect(use.key, use.rule, use.saved)
        pairs = [(u.key, u.rule) for u in uses]
        return Tap.apply(
            out, self.tally, pairs, *[u.saved for u in uses], *[u.taken for u in uses]
        )

    def _derived(
        self, name: str, func: Any, args: Any, kwargs: Any, given: list[Source]
    ) -> Any:
        """Views of parameters are parameters: their gradient has the same norm."""
        if len(given) != 1 or (name == "__getitem__" and not _basic(args[1])):
            return None
        source, out = given[0], func(*args, **kwargs)
        if name in PARTS:
            for i, one in enumerate(out):
                if source.table is None:
                    self._planner.derive(source, one, i)
        elif isinstance(out, Tensor) and out.requires_grad:
            self._planner.derive_view(source, out)
        return out

    def _inside(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Torch's attention, whose tensors are (length, batch, features) inside."""
        before, self._planner.inside = self._planner.inside, True
        try:
            query = args[0] if args else kwargs["query"]
            batched = query.dim() == 3
            with self:
                body = without_override_check(func) if batched else None
                return (body or func)(*args, **kwargs)
        finally:
            self._planner.inside = before

    def _by_group(
        self, name: str, func: Any, args: Any, kwargs: Any, given: list[Source]
    ) -> Any:
        """Some other operations: run once per group, with a copy of the parameters."""
        if name not in SPLIT or any(s.table is not None for s in given):
            return None
        axes = _batch_axes(name, args, kwargs, self.tally.batch)
        if axes is None:
            return None
        if self._planner.inside:
            return None
        order = self.tally.order
        groups = Groups.of(self.tally.batch, self.tally.count)
        outs = []
        for j, (a, b) in enumerate(groups.slices):
            swap = {id(s.tensor): self._copy(s, j, groups) for s in given}
            cut = {
                id(t): (
                    t.narrow(axis, a, b - a)
                    if order is None
                    else t.index_select(axis, order[a:b])
                )
                for t, axis in axes.inputs
                if id(t) not in swap
            }
            if name in RECURRENT | CELLS:
                cut = {k: v.contiguous() for k, v in cut.items()}
            outs.append(func(*_swap(args, swap | cut), **_swap(kwargs, swap | cut)))

        def whole(parts: Sequence[Tensor], axis: int) -> Tensor:
            out = torch.cat(list(parts), axis)
            return out if order is None else out.index_select(axis, order.argsort())

        first = next(_flat(outs[0]))
        if (
            first.dim() <= axes.outputs[0]
            or first.shape[axes.outputs[0]] != (groups.sizes[0])
        ):
            return None  # the examples are summed over, or lie elsewhere
        if isinstance(outs[0], Tensor):
            return whole(outs, axes.outputs[0])
        joined = zip(zip(*outs, strict=True), axes.outputs, strict=True)
        return tuple(whole(parts, axis) for parts, axis in joined)

    def _copy(self, source: Source, group: int, groups: Groups) -> Tensor:
        """The group's copy of a parameter: one for all its uses, so that they add."""
        place = source.key, group
        if place not in self._copies:
            self._copies[place] = GroupTap.apply(
                source.tensor, self.tally, source.key, group, groups
            )
        return self._copies[place]


@dataclass(frozen=True, slots=True)
class _Axes:
    """Where the batch is in an operation's inputs and outputs."""

    inputs: list[tuple[Tensor, int]]
    outputs: list[int]


def _batch_axes(name: str, args: Any, kwargs: Any, batch: int) -> _Axes | None:
    if name in RECURRENT:
        # (input, state, weights, bias, layers, dropout, train, both ways, batch first)
        if not isinstance(args[1], (Tensor, tuple, list)) or len(args) != 9:
            return None  # packed sequences: their examples are not runs of entries
        first, states = 0 if args[8] else 1, list(_flat(args[1]))
        if args[0].dim() != 3 or args[0].shape[first] != batch:
            return None
        inputs = [(args[0], first), *((s, 1) for s in states)]
        return _Axes(inputs, [first, *[1] * len(states)])
    tensors = [
        t
        for t in _flat((args, kwargs))
        if isinstance(t, Tensor) and t.dim() and t.shape[0] == batch
    ]
    tensors = [t for t in tensors if not isinstance(t, nn.Parameter)]
    if not tensors:
        return None
    outputs = [0, 0] if name == "lstm_cell" else [0]
    return _Axes([(t, 0) for t in tensors], outputs)


def _flat(values: Any) -> Iterator[Any]:
    if isinstance(values, (list, tuple)):
        for value in values:
            yield from _flat(value)
    elif isinstance(values, dict):
        yield from _flat(tuple(values.values()))
    else:
        yield values


def _swap(values: Any, by: dict[int, Tensor]) -> Any:
    """The same arguments with some tensors, by identity, replaced."""
    if isinstance(values, Tensor):
        return by.get(id(values), values)
    if isinstance(values, (list, tuple)):
        return type(values)([_swap(v, by) for v in values])
    if isinstance(values, dict):
        return {k: _swap(v, by) for k, v in values.items()}
    return values


def _basic(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return all(isinstance(p, int | slice | None | types.EllipsisType) for p in parts)
