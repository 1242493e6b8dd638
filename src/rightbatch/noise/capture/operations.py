"""Which operations are known, and where a parameter enters each of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from rightbatch.core.torch_private import without_torch_function
from rightbatch.noise.capture import gradient_formulas as formulas
from rightbatch.noise.capture.group_norms import ParameterKey
from rightbatch.noise.capture.layout import Layout, possible_layouts

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
NO_PLACE = "it is used on something without a place for each example"
VIEW = -1  # in a key's part: a parameter seen through a view of it


@dataclass(frozen=True, slots=True)
class TableRows:
    """Rows of a table that were looked up without examples, as positions are.

    Attributes:
        ids: Which rows.
        rows: How many the table has.
        padding: The row that has no gradient, or -1.
        refuted: How many layouts with examples had been refuted by then.
    """

    ids: Tensor
    rows: int
    padding: int
    refuted: int


@dataclass(frozen=True, slots=True, eq=False)
class TrackedTensor:
    """A tensor that is a parameter, or comes from one, in the forward pass.

    Attributes:
        key: The parameter, or which disjoint part of it.
        tensor: What the operation is given.
        table_rows: Where these are rows of the parameter looked up without examples.
        transpose_of: The parameter whose transpose this is.
    """

    key: ParameterKey
    tensor: Tensor
    table_rows: TableRows | None = None
    transpose_of: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ParameterUse:
    """A parameter's entry into one operation.

    Attributes:
        tracked: The parameter, as the operation is given it.
        formula: How its gradient is made.
        saved: What the formula needs of the forward pass.
        key: What the gradient belongs to.
        target: The tensor whose gradient is made.
    """

    tracked: TrackedTensor
    formula: formulas.GradientFormula
    saved: Tensor
    key: ParameterKey
    target: Tensor

    @classmethod
    def of(
        cls, tracked: TrackedTensor, formula: formulas.GradientFormula, saved: Tensor
    ) -> ParameterUse:
        """A use whose gradient is made for the tensor that the operation is given."""
        key = tracked.key
        if tracked.transpose_of is not None:
            key = ParameterKey(key.index, (*key.part, VIEW))
        return cls(tracked, formula, saved, key, tracked.tensor)


@dataclass(frozen=True, slots=True)
class Call:
    """How parameters enter a call, and its result where it was made already."""

    uses: list[ParameterUse] = field(default_factory=list)
    out: Tensor | None = None


@dataclass
class LayoutKnowledge:
    """What was learned, step by step, of where the examples lie at each parameter.

    Attributes:
        wrong: How many layouts of a parameter were tried and refuted.
        refuted: What was seen when a layout of a parameter proved wrong.
        excluded: Parameters that are left alone, and why.
    """

    wrong: dict[int, int] = field(default_factory=dict)
    refuted: dict[int, str] = field(default_factory=dict)
    excluded: dict[int, str] = field(default_factory=dict)


@dataclass
class Operations:
    """The calls of one forward pass, as far as they are understood.

    Attributes:
        batch: Examples in the batch.
        layouts: What is known of the parameters' layouts.
        order: In which order the examples are cut into groups; None: as they are.
        tracked: The parameters, and what was derived from them, by ``id``.
        length_first: Whether the calls are inside torch's attention.
    """

    batch: int
    layouts: LayoutKnowledge
    order: Tensor | None = None
    tracked: dict[int, TrackedTensor] = field(default_factory=dict)
    length_first: bool = False

    def find(self, value: Any) -> TrackedTensor | None:
        """The tracked parameter this is, if it is one."""
        if not isinstance(value, Tensor) or not value.requires_grad:
            return None
        return self.tracked.get(id(value))

    def track_part(self, whole: TrackedTensor, part: Tensor, number: int) -> None:
        """A disjoint part of a parameter: the parts' squared norms add up."""
        key = ParameterKey(whole.key.index, (*whole.key.part, number))
        self.tracked[id(part)] = TrackedTensor(key, part)

    def track_view(self, source: TrackedTensor, view: Tensor) -> None:
        """The same numbers, or some of them, in another shape."""
        before, key = source.tensor, source.key
        if (rows := source.table_rows) is not None:
            if view.numel() == before.numel() and view.shape[-1] == before.shape[-1]:
                rows = replace(rows, ids=rows.ids.reshape(view.shape[:-1]))
                self.tracked[id(view)] = TrackedTensor(key, view, rows)
            return
        same = view.shape == before.shape and (
            view.dim() < 2 or view.stride() == before.stride()
        )
        transposed = (
            view.dim() == before.dim() == 2
            and view.shape == before.mT.shape
            and view.stride() == before.mT.stride()
        )
        if same:
            derived = replace(source, tensor=view)
        elif transposed and not key.part:
            back = source.transpose_of is not None  # transposed twice
            derived = TrackedTensor(key, view, transpose_of=None if back else before)
        else:
            part = ParameterKey(key.index, (*key.part, VIEW))
            derived = TrackedTensor(part, view)
        self.tracked[id(view)] = derived

    def understand(self, name: str, func: Any, args: Any, kwargs: Any) -> Call | None:
        """How parameters enter a call; None for an operation that is not known."""
        if name not in KNOWN:
            return None
        try:
            return getattr(self, KNOWN[name])(name, func, *args, **kwargs)
        except (TypeError, ValueError, IndexError, RuntimeError):
            return None  # a call of a form we do not know: it is left alone

    def _layout(
        self, tensor: Tensor, source: TrackedTensor | None, features: bool = True
    ) -> Layout | None:
        """The likeliest layout that has not been refuted for this parameter."""
        possible = possible_layouts(
            tensor,
            self.batch,
            length_first=self.length_first,
            features=features,
            order=self.order,
        )
        if source is None:
            return possible[0] if possible else None
        if not possible and features and tensor.dim() > 1:
            # Routed to experts, say: by chance the next number of rows may fit.
            self.layouts.excluded[source.key.index] = NO_PLACE
        wrong = self.layouts.wrong.get(source.key.index, 0)
        if source.table_rows is not None:
            wrong -= source.table_rows.refuted
        return possible[wrong] if wrong < len(possible) else None

    # Each of these has the signature of its torch function.

    def _bias(
        self, bias: Any, out: Sequence[int], x: Tensor, axis: int
    ) -> list[ParameterUse]:
        """A bias along one axis of the output; none where it is not tracked."""
        source = self.find(bias)
        layout = self._layout(x, source)
        if source is None or layout is None:
            return []
        aligned = [1] * len(out)
        aligned[axis] = len(bias)
        formula = formulas.Broadcast(layout, tuple(aligned), bias.shape)
        return [ParameterUse.of(source, formula, x.new_empty(0))]

    def _linear(
        self, name: str, func: Any, input: Tensor, weight: Tensor, bias: Any = None
    ) -> Call | None:
        source = self.find(weight)
        layout = self._layout(input, source)
        out = (*input.shape[:-1], weight.shape[0])
        biases = self._bias(bias, out, input, -1)
        if layout is None or weight.dim() != 2:
            return None
        if source is None:
            return Call(biases)
        return Call([_matrix_use(source, layout, input, x_at_w=False), *biases])

    def _matmul(
        self, name: str, func: Any, input: Tensor, other: Tensor
    ) -> Call | None:
        source, layout = self.find(other), None
        if source is not None and other.dim() == 2 and source.table_rows is None:
            layout = self._layout(input, source)
        if source is None or layout is None:
            return None
        return Call([_matrix_use(source, layout, input, x_at_w=True)])

    def _addmm(
        self, name: str, func: Any, input: Tensor, mat1: Tensor, mat2: Tensor
    ) -> Call | None:
        weight, layout = self.find(mat2), self._layout(mat1, self.find(mat2))
        if layout is None or input.dim() != 1:
            return None
        uses = self._bias(input, (len(mat1), mat2.shape[1]), mat1, -1)
        if weight is not None:
            uses.append(_matrix_use(weight, layout, mat1, x_at_w=True))
        return Call(uses)

    def _convolution(
        self,
        name: str,
        func: Any,
        input: Tensor,
        weight: Tensor,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Call | None:
        source, axes = self.find(weight), weight.dim() - 2
        layout = self._layout(input, source)
        if layout is None or layout.axis != "first" or input.dim() != weight.dim():
            return None
        if (source or self.find(bias)) is None:
            return None
        stride, dilation = _each(stride, axes), _each(dilation, axes)
        spans = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        if padding == "same":
            if any(span % 2 for span in spans):
                return None  # padded more on one side
            padding = [span // 2 for span in spans]
        padding = _each(0 if padding == "valid" else padding, axes)
        formula = formulas.Convolution(
            layout, weight.shape, stride, padding, dilation, groups
        )
        uses = [] if source is None else [ParameterUse.of(source, formula, input)]
        shape = [input.shape[0], weight.shape[0], *[1] * axes]
        return Call(uses + self._bias(bias, shape, input, 1))

    def _embedding(
        self,
        name: str,
        func: Any,
        input: Tensor,
        weight: Tensor,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> Call | None:
        source = self.find(weight)
        if source is None or scale_grad_by_freq or sparse:
            return None
        rows = weight.shape[0]
        padding = -1 if padding_idx is None else padding_idx % rows
        layout = self._layout(input, source, features=False)
        if layout is not None:
            formula = formulas.EmbeddingLookup(layout, rows, padding)
            return Call([ParameterUse.of(source, formula, input)])
        out = func(input, weight, padding_idx, max_norm, norm_type)
        refuted = possible_layouts(
            input, self.batch, length_first=self.length_first, features=False
        )
        table_rows = TableRows(input.detach(), rows, padding, len(refuted))
        self.tracked[id(out)] = TrackedTensor(source.key, out, table_rows)
        return Call(out=out)

    def _norm(
        self, name: str, func: Any, input: Tensor, *args: Any, **kwargs: Any
    ) -> Call | None:
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
        if not parameters or self._layout(input, self.find(parameters[0])) is None:
            return None
        settings = {k: v for k, v in given.items() if k not in ("weight", "bias")}
        if name == "instance_norm" and given.get("use_input_stats", True):
            settings |= {"running_mean": None, "running_var": None}  # already updated
        trailing = name in ("layer_norm", "rms_norm")
        uses = []
        for parameter in parameters:
            source = self.find(parameter)
            layout = self._layout(input, source)
            if source is None or layout is None:
                continue
            shape = parameter.shape
            if not trailing:
                shape = torch.Size([*shape, *[1] * (input.dim() - 2)])
            scale = parameter is weight
            factor = functools.partial(_normalised, func, settings) if scale else None
            formula = formulas.Broadcast.fit(
                layout, input.shape, shape, parameter.shape, factor=factor
            )
            if formula is not None:
                saved = input if scale else input.new_empty(0)
                uses.append(ParameterUse.of(source, formula, saved))
        return Call(uses) if uses else None

    def _sum(self, name: str, func: Any, input: Any, other: Any) -> Call | None:
        """Sums, differences and products with one parameter."""
        first, second = self.find(input), self.find(other)
        source, data = (first, other) if first is not None else (second, input)
        if source is None or not isinstance(data, Tensor):
            return None
        if first is not None and second is not None:
            return None
        layout = self._layout(data, source)
        product = name in ("mul", "multiply")
        minus = name.startswith("sub") and second is not None
        if layout is None or (product and source.table_rows is not None):
            return None
        out = torch.broadcast_shapes(data.shape, source.tensor.shape)
        at = layout.batch_axis
        if len(out) != data.dim() or out[at] != data.shape[at]:
            return None  # not the data carries the examples
        shape = source.tensor.shape
        broadcast = formulas.Broadcast.fit(
            layout,
            out,
            shape,
            shape,
            factor=_identity if product else None,
            sign=-1 if minus else 1,
        )
        if broadcast is None:
            return None
        formula: formulas.GradientFormula = broadcast
        if (table := source.table_rows) is not None:
            formula = formulas.PositionLookup(
                broadcast, table.ids, table.rows, table.padding
            )
        saved = data if product else data.new_empty(0)
        return Call([ParameterUse.of(source, formula, saved)])

    def _expand(
        self, name: str, func: Any, input: Tensor, *sizes: Any, **kwargs: Any
    ) -> Call | None:
        """A parameter stretched to the batch, as class tokens are."""
        source = self.find(input)
        if source is None or source.table_rows is not None:
            return None
        out = func(input.detach(), *sizes, **kwargs).clone()
        layout = self._layout(out, source)
        if layout is None:
            return None
        formula = formulas.Broadcast.fit(layout, out.shape, input.shape, input.shape)
        if formula is None:
            return None
        return Call([ParameterUse.of(source, formula, input.new_empty(0))], out)


def _matrix_use(
    source: TrackedTensor, layout: Layout, x: Tensor, *, x_at_w: bool
) -> ParameterUse:
    """The use of a matrix as ``x @ w``, or as ``x @ w.T``."""
    if source.transpose_of is None:
        return ParameterUse.of(source, formulas.MatrixProduct(layout, x_at_w), x)
    # The gradient is made for the parameter that was transposed.
    formula = formulas.MatrixProduct(layout, not x_at_w)
    return ParameterUse(source, formula, x, source.key, source.transpose_of)


def _each(value: Any, axes: int) -> tuple[int, ...]:
    """One number for each axis."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return values * (axes // len(values))


def _identity(tensor: Tensor) -> Tensor:
    return tensor


def _normalised(func: Any, settings: dict[str, Any], saved: Tensor) -> Tensor:
    """What a normalisation layer multiplies its scale with, made again."""
    with without_torch_function():
        return func(saved, **settings)
