"""A torch function mode that sees where parameters enter operations.

While a measured step's forward pass runs, it sees every call that torch's Python
functions make. Where a parameter is an argument and another one carries the batch, the
call is made with the parameter detached, and a hook on its output takes over the
parameter's gradient: the same gradient, with the norms of its parts noted. Module
code, classes and names stay as they are.
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
from rightbatch.noise.capture.autograd_hooks import GradientHook, GroupCopy
from rightbatch.noise.capture.group_norms import GroupNorms, ParameterKey
from rightbatch.noise.capture.layout import Groups
from rightbatch.noise.capture.operations import (
    LayoutKnowledge,
    Operations,
    ParameterUse,
    TrackedTensor,
)

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
BY_GROUP = {
    *RECURRENT,
    *CELLS,
    *("einsum", "tensordot", "bilinear", "prelu", "embedding_bag"),
    *("conv1d", "conv2d", "conv3d"),  # padded more on one side
    *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    *("div", "true_divide", "maximum", "minimum", "batch_norm"),
}


class CaptureMode(TorchFunctionMode):
    """Hooks every operation a tracked parameter enters while it is active.

    Args:
        parameters: The tracked ones.
        group_norms: Where the hooks note norms.
        layouts: What is known of the parameters' layouts; added to.

    Attributes:
        coupled: Whether BatchNorm mixes the examples of the batch: there are no groups.
        skipped: Whether something was left alone because ``allowed`` said so.
        allowed: Whether operations may be hooked now.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        group_norms: GroupNorms,
        layouts: LayoutKnowledge,
    ) -> None:
        super().__init__()
        self.parameters, self.group_norms = parameters, group_norms
        self.coupled = self.skipped = False
        self.allowed: Callable[[], bool] = lambda: True
        self._operations = Operations(group_norms.batch, layouts, group_norms.order)
        for i, parameter in enumerate(parameters):
            if i not in layouts.excluded:
                tracked = TrackedTensor(ParameterKey(i), parameter)
                self._operations.tracked[id(parameter)] = tracked
        self._copies: dict[tuple[ParameterKey, int], Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__" and func != TRANSPOSED:
            return func(*args, **kwargs)
        if name == "batch_norm" and (args[5:6] or [kwargs.get("training")])[0]:
            self.coupled = True
            return func(*args, **kwargs)
        if name == "multi_head_attention_forward" and torch.is_grad_enabled():
            return self._attention(func, args, kwargs)
        find = self._operations.find
        given = [t for a in _flat((args, kwargs)) if (t := find(a)) is not None]
        if not given:
            return func(*args, **kwargs)
        if not (torch.is_grad_enabled() and self.allowed()):
            # Checkpointing of the older kind has no gradients the first time.
            self.skipped = True
            return func(*args, **kwargs)
        out = self._captured(name, func, args, kwargs, given)
        return func(*args, **kwargs) if out is None else out

    def _captured(
        self, name: str, func: Any, args: Any, kwargs: Any, given: list[TrackedTensor]
    ) -> Any:
        """The call's result with its parameters hooked, or None to leave it alone."""
        if name in DERIVING:
            return self._derived(name, func, args, kwargs, given)
        if any(type(t.tensor) not in (Tensor, nn.Parameter) for t in given):
            return None  # a distributed or quantised tensor
        call = self._operations.understand(name, func, args, kwargs)
        if call is None:
            return self._by_group(name, func, args, kwargs, given)
        out = call.out
        if out is None:
            detached = {
                id(u.tracked.tensor): u.tracked.tensor.detach() for u in call.uses
            }
            out = func(*_swap(args, detached), **_swap(kwargs, detached))
        return self._hook(out, call.uses) if call.uses else out

    def _hook(self, out: Tensor, uses: list[ParameterUse]) -> Tensor:
        # torch's products of more than two axes end in a view; a hook on a view costs
        # copies. Nothing else refers to what this is a view of.
        out = as_no_view(out)
        for use in uses:
            self.group_norms.expect(use.key, use.formula, use.saved)
        pairs = [(u.key, u.formula) for u in uses]
        saved, targets = [u.saved for u in uses], [u.target for u in uses]
        return GradientHook.apply(out, self.group_norms, pairs, *saved, *targets)

    def _derived(
        self, name: str, func: Any, args: Any, kwargs: Any, given: list[TrackedTensor]
    ) -> Any:
        """Views of parameters are parameters: their gradient has the same norm."""
        if len(given) != 1 or (name == "__getitem__" and not _basic(args[1])):
            return None
        source, out = given[0], func(*args, **kwargs)
        if name in PARTS:
            for i, part in enumerate(out):
                if source.table_rows is None:
                    self._operations.track_part(source, part, i)
        elif isinstance(out, Tensor) and out.requires_grad:
            self._operations.track_view(source, out)
        return out

    def _attention(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Torch's attention, whose tensors are (length, batch, features) inside."""
        before, self._operations.length_first = self._operations.length_first, True
        try:
            query = args[0] if args else kwargs["query"]
            batched = query.dim() == 3
            with self:
                body = without_override_check(func) if batched else None
                return (body or func)(*args, **kwargs)
        finally:
            self._operations.length_first = before

    def _by_group(
        self, name: str, func: Any, args: Any, kwargs: Any, given: list[TrackedTensor]
    ) -> Any:
        """Some other operations: run once per group, with a copy of the parameters."""
        if name not in BY_GROUP or any(t.table_rows is not None for t in given):
            return None
        norms = self.group_norms
        axes = _batch_axes(name, args, kwargs, norms.batch)
        if axes is None or self._operations.length_first:
            return None
        order, groups = norms.order, Groups.of(norms.batch, norms.count)
        outs = []
        for j, (a, b) in enumerate(groups.slices):
            swap = {id(t.tensor): self._copy(t, j, groups) for t in given}
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

        first, axis = next(_flat(outs[0])), axes.outputs[0]
        if first.dim() <= axis or first.shape[axis] != groups.sizes[0]:
            return None  # the examples are summed over, or lie elsewhere

        def joined(parts: Sequence[Tensor], axis: int) -> Tensor:
            out = torch.cat(list(parts), axis)
            return out if order is None else out.index_select(axis, order.argsort())

        if isinstance(outs[0], Tensor):
            return joined(outs, axis)
        by_output = zip(zip(*outs, strict=True), axes.outputs, strict=True)
        return tuple(joined(parts, axis) for parts, axis in by_output)

    def _copy(self, source: TrackedTensor, group: int, groups: Groups) -> Tensor:
        """The group's copy of a parameter: one for all its uses, so that they add."""
        place = source.key, group
        if place not in self._copies:
            self._copies[place] = GroupCopy.apply(
                source.tensor, self.group_norms, source.key, group, groups
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
    inputs = [
        (t, 0)
        for t in _flat((args, kwargs))
        if isinstance(t, Tensor) and not isinstance(t, nn.Parameter)
        if t.dim() and t.shape[0] == batch
    ]
    outputs = [0, 0] if name == "lstm_cell" else [0]
    return _Axes(inputs, outputs) if inputs else None


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
    """Whether it takes a view: no tensors, no lists."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(isinstance(p, int | slice | None | types.EllipsisType) for p in parts)
