"""Which operations are known, and where a parameter enters each of them."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rightbatch.core.torch_private import without_torch_function
from rightbatch.noise.capture import gradient_formulas as formulas
from rightbatch.noise.capture.group_norms import ParameterKey
from rightbatch.noise.capture.invocation import Invocation
from rightbatch.noise.capture.layout import AXES, Axis, Layout, possible_axes
from rightbatch.noise.capture.tracked import TableRows, TrackedTensor, TrackedTensors

# The method of `Operations` that understands a torch function, by the function's name.
KNOWN = {
    "linear": "_linear",
    "addmm": "_addmm",
    "embedding": "_embedding",
    **dict.fromkeys(("matmul", "mm"), "_matmul"),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), "_convolution"),
    **dict.fromkeys(("layer_norm", "rms_norm", "group_norm", "instance_norm"), "_norm"),
    **dict.fromkeys(("add", "sub", "subtract", "mul", "multiply"), "_sum"),
    **dict.fromkeys(("expand", "expand_as", "repeat"), "_expand"),
}


@dataclass(frozen=True, slots=True, eq=False)
class ParameterUse:
    """A parameter's entry into one operation.

    Attributes:
        tracked: The parameter, as the operation is given it.
        formula: How its gradient is made.
        saved: What the formula needs of the forward pass.
        owner: What the gradient belongs to, and is made for.
    """

    tracked: TrackedTensor
    formula: formulas.GradientFormula
    saved: Tensor
    owner: TrackedTensor

    @classmethod
    def of(
        cls, tracked: TrackedTensor, formula: formulas.GradientFormula, saved: Tensor
    ) -> ParameterUse:
        """A use whose gradient is made for the tensor that the operation is given."""
        return cls(tracked, formula, saved, tracked)

    @property
    def key(self) -> ParameterKey:
        """What the gradient belongs to."""
        return self.owner.key


@dataclass
class Operations:
    """The calls of one forward pass, as far as they are understood.

    Attributes:
        batch: Examples in the batch.
        order: In which order the examples are cut into groups; None: as they are.
        tracked: The parameters, and what was derived from them.
        axis: Where the call's examples are taken to lie.
        subject: The tensor that has them there, of the call looked at last.
    """

    batch: int
    order: Tensor | None = None
    tracked: TrackedTensors = field(default_factory=TrackedTensors)
    axis: Axis = "first"
    subject: Tensor | None = None

    def possible(self, call: Invocation) -> dict[Axis, list[ParameterUse]]:
        """How parameters enter a call, for every axis that may have the examples."""
        uses = {axis: self.understand(call, axis) for axis in AXES}
        return {axis: u for axis, u in uses.items() if u}

    def understand(self, call: Invocation, axis: Axis) -> list[ParameterUse]:
        """How parameters enter a call; [] for one that is not known."""
        self.axis, self.subject = axis, None
        method = KNOWN.get(call.name)
        if method is None or not _is_form_of(
            method, len(call.args), tuple(call.kwargs)
        ):
            return []
        return getattr(self, method)(call.name, *call.args, **call.kwargs)

    def rows_of_a_table(self, call: Invocation) -> Tensor | None:
        """An embedding of ids without examples, tracked until it meets some."""
        lookup = _EmbeddingCall(*call.args, **call.kwargs)
        source = self.tracked.find(lookup.weight)
        if source is None or lookup.special:
            return None
        out = call.make()
        rows = TableRows(lookup.input.detach(), len(lookup.weight), lookup.padding)
        self.tracked.add(TrackedTensor(source.key, out, out, source.key, rows))
        return out

    def _layout(self, tensor: Tensor, features: bool = True) -> Layout | None:
        """The layout in question, if the tensor has room for it."""
        self.subject = tensor
        if self.axis not in possible_axes(tensor, self.batch, features=features):
            return None
        return Layout(self.batch, self.axis, self.order)

    # Each of these has the signature of its torch function.

    def _bias(
        self, bias: Any, layout: Layout, x: Tensor, axis: int
    ) -> list[ParameterUse]:
        """A bias along one axis of the output; none where it is not tracked."""
        source = self.tracked.find(bias)
        if source is None:
            return []
        aligned = [1] * x.dim()
        aligned[axis] = bias.shape[0]
        formula = formulas.Broadcast(layout, tuple(aligned), bias.shape)
        return [ParameterUse.of(source, formula, x.new_empty(0))]

    def _linear(
        self, name: str, input: Tensor, weight: Tensor, bias: Any = None
    ) -> list[ParameterUse]:
        source = self.tracked.find(weight)
        layout = self._layout(input)
        if layout is None or weight.dim() != 2:
            return []
        biases = self._bias(bias, layout, input, -1)
        if source is None:
            return biases
        return [_matrix_use(source, layout, input, x_at_w=False), *biases]

    def _matmul(self, name: str, input: Tensor, other: Tensor) -> list[ParameterUse]:
        source, layout = self.tracked.find(other), None
        if source is not None and other.dim() == 2 and source.table_rows is None:
            layout = self._layout(input)
        if source is None or layout is None:
            return []
        return [_matrix_use(source, layout, input, x_at_w=True)]

    def _addmm(
        self, name: str, input: Tensor, mat1: Tensor, mat2: Tensor
    ) -> list[ParameterUse]:
        weight, layout = self.tracked.find(mat2), self._layout(mat1)
        if layout is None or input.dim() != 1:
            return []
        uses = self._bias(input, layout, mat1, -1)
        if weight is not None:
            uses.append(_matrix_use(weight, layout, mat1, x_at_w=True))
        return uses

    def _convolution(
        self,
        name: str,
        input: Tensor,
        weight: Tensor,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> list[ParameterUse]:
        source, axes = self.tracked.find(weight), weight.dim() - 2
        layout = self._layout(input)
        if layout is None or layout.axis != "first" or input.dim() != weight.dim():
            return []
        if (source or self.tracked.find(bias)) is None:
            return []
        if isinstance(padding, str):
            return []  # may be more on one side
        stride, padding, dilation = (
            _each(v, axes) for v in (stride, padding, dilation)
        )
        formula = formulas.Convolution(
            layout, weight.shape, stride, padding, dilation, groups
        )
        uses = [] if source is None else [ParameterUse.of(source, formula, input)]
        return uses + self._bias(bias, layout, input, 1)

    def _embedding(self, name: str, *args: Any, **kwargs: Any) -> list[ParameterUse]:
        call = _EmbeddingCall(*args, **kwargs)
        source = self.tracked.find(call.weight)
        layout = self._layout(call.input, features=False)
        if source is None or call.special or layout is None:
            return []
        formula = formulas.EmbeddingLookup(layout, len(call.weight), call.padding)
        return [ParameterUse.of(source, formula, call.input)]

    def _norm(
        self, name: str, input: Tensor, *args: Any, **kwargs: Any
    ) -> list[ParameterUse]:
        names = {
            "layer_norm": ("normalized_shape", "weight", "bias", "eps"),
            "rms_norm": ("normalized_shape", "weight", "eps"),
            "group_norm": ("num_groups", "weight", "bias", "eps"),
            "instance_norm": (
                *("running_mean", "running_var", "weight", "bias"),
                *("use_input_stats", "momentum", "eps"),
            ),
        }[name]
        given = dict(zip(names, args, strict=False)) | kwargs
        weight, bias = given.get("weight"), given.get("bias")
        parameters = [p for p in (weight, bias) if isinstance(p, Tensor)]
        layout = self._layout(input)
        if layout is None:
            return []
        settings = {k: v for k, v in given.items() if k not in ("weight", "bias")}
        if name == "instance_norm" and given.get("use_input_stats", True):
            settings |= {"running_mean": None, "running_var": None}  # already updated
        trailing = name in ("layer_norm", "rms_norm")
        uses = []
        for parameter in parameters:
            source = self.tracked.find(parameter)
            if source is None:
                continue
            shape = parameter.shape
            if not trailing:
                shape = torch.Size([*shape, *[1] * (input.dim() - 2)])
            scale = parameter is weight
            func = getattr(torch.nn.functional, name)
            factor = functools.partial(_normalised, func, settings) if scale else None
            formula = formulas.Broadcast.fit(
                layout, input.shape, shape, parameter.shape, factor=factor
            )
            if formula is not None:
                saved = input if scale else input.new_empty(0)
                uses.append(ParameterUse.of(source, formula, saved))
        return uses

    def _sum(self, name: str, input: Any, other: Any) -> list[ParameterUse]:
        """Sums, differences and products with one parameter."""
        first, second = self.tracked.find(input), self.tracked.find(other)
        source, data = (first, other) if first is not None else (second, input)
        if source is None or not isinstance(data, Tensor):
            return []
        if first is not None and second is not None:
            return []
        layout = self._layout(data)
        product = name in ("mul", "multiply")
        minus = name.startswith("sub") and second is not None
        if layout is None or (product and source.table_rows is not None):
            return []
        out = torch.broadcast_shapes(data.shape, source.tensor.shape)
        at = layout.batch_axis
        if len(out) != data.dim() or out[at] != data.shape[at]:
            return []  # not the data carries the examples
        shape = source.tensor.shape
        broadcast = formulas.Broadcast.fit(
            layout,
            out,
            shape,
            shape,
            factor=_identity if product else _minus if minus else None,
        )
        if broadcast is None:
            return []
        formula: formulas.GradientFormula = broadcast
        if (table := source.table_rows) is not None:
            formula = formulas.PositionLookup(
                broadcast, table.ids, table.rows, table.padding
            )
        saved = data if product else data.new_empty(0)
        return [ParameterUse.of(source, formula, saved)]

    def _expand(
        self, name: str, input: Tensor, *sizes: Any, **kwargs: Any
    ) -> list[ParameterUse]:
        """A parameter stretched to the batch, as class tokens are."""
        source = self.tracked.find(input)
        if source is None or source.table_rows is not None:
            return []
        stretch = getattr(input.detach(), name)
        out = stretch(*sizes, **kwargs)
        layout = self._layout(out)
        if layout is None:
            return []
        formula = formulas.Broadcast.fit(layout, out.shape, input.shape, input.shape)
        if formula is None:
            return []
        use = ParameterUse.of(source, formula, input.new_empty(0))
        return [use]


@functools.cache
def _is_form_of(method: str, arguments: int, keywords: tuple[str, ...]) -> bool:
    """Whether a method takes these arguments; not ``add(alpha=2)``, nor ``out=``."""
    given = [None] * (2 + arguments)  # itself, and the function's name
    try:
        inspect.signature(getattr(Operations, method)).bind(
            *given, **dict.fromkeys(keywords)
        )
    except TypeError:
        return False
    return True


def _matrix_use(
    source: TrackedTensor, layout: Layout, x: Tensor, *, x_at_w: bool
) -> ParameterUse:
    """The use of a matrix as ``x @ w``, or as ``x @ w.T``."""
    if source.transpose_of is None:
        return ParameterUse.of(source, formulas.MatrixProduct(layout, x_at_w), x)
    # The gradient is made for what was transposed.
    formula = formulas.MatrixProduct(layout, not x_at_w)
    return ParameterUse(source, formula, x, source.transpose_of)


def _each(value: Any, axes: int) -> tuple[int, ...]:
    """One number for each axis."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return values * (axes // len(values))


def _identity(tensor: Tensor) -> Tensor:
    return tensor


def _minus(tensor: Tensor) -> int:
    return -1


def _normalised(func: Any, settings: dict[str, Any], saved: Tensor) -> Tensor:
    """What a normalisation layer multiplies its scale with, made again."""
    with without_torch_function():
        return func(saved, **settings)


class _EmbeddingCall:
    """The arguments of torch's ``embedding``."""

    def __init__(
        self,
        input: Tensor,
        weight: Tensor,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> None:
        self.input, self.weight = input, weight
        self.padding = -1 if padding_idx is None else padding_idx % len(weight)
        self.special = scale_grad_by_freq or sparse
