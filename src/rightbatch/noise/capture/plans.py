"""Where a parameter enters an operation, operation by operation."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rightbatch.core.torch_private import without_torch_function
from rightbatch.noise.capture import rules
from rightbatch.noise.capture.group_norms import Key
from rightbatch.noise.capture.layout import Layout, layouts

CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}
NORMS = frozenset({"layer_norm", "rms_norm", "group_norm", "instance_norm"})


NO_PLACE = "it is used on something without a place for each example"
VIEW = -1  # in a key's part: a parameter seen through a view of it


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A tensor that is a parameter, or comes from one, in the forward pass.

    Attributes:
        key: The parameter, or which disjoint part of it.
        tensor: What the operation is given.
        table: Where these are rows looked up without examples: ids, number of rows,
            padding, and how many layouts with examples had been refuted by then.
        flipped: The parameter whose transpose this is.
    """

    key: Key
    tensor: Tensor
    table: tuple[Tensor, int, int, int] | None = None
    flipped: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Use:
    """A parameter's entry into one operation.

    Attributes:
        source: The parameter.
        rule: How its gradient is made.
        saved: What the rule needs of the forward pass.
        turned: The gradient is made for the parameter that was transposed.
    """

    source: Source
    rule: rules.Rule
    saved: Tensor
    turned: bool = False

    @property
    def key(self) -> Key:
        """What the gradient belongs to."""
        key = self.source.key
        if self.source.flipped is None or self.turned:
            return key
        return Key(key.index, (*key.part, VIEW))

    @property
    def taken(self) -> Tensor:
        """Whose gradient the tap makes."""
        flipped = self.source.flipped
        return flipped if flipped is not None and self.turned else self.source.tensor


@dataclass(frozen=True, slots=True)
class Plan:
    """How to make a call: its taps, and its result where it is made in another way."""

    uses: list[Use] = field(default_factory=list)
    out: Tensor | None = None


@dataclass
class Sites:
    """What was learned of each parameter's layout: candidates that proved wrong.

    Attributes:
        wrong: How many layouts of a parameter were tried and refuted.
        refuted: What was seen when a layout of a parameter proved wrong.
        excluded: Parameters that are left alone, and why.
    """

    wrong: dict[int, int] = field(default_factory=dict)
    refuted: dict[int, str] = field(default_factory=dict)
    excluded: dict[int, str] = field(default_factory=dict)


@dataclass
class Planner:
    """Plans the calls of one forward pass.

    Attributes:
        batch: Examples in the batch.
        sites: What is known of the parameters' layouts.
        sources: The parameters, and what was derived from them, by ``id``.
        inside: Whether the calls are inside torch's attention, length first.
        order: In which order the examples are cut into groups; None: as they are.
    """

    batch: int
    sites: Sites
    sources: dict[int, Source] = field(default_factory=dict)
    inside: bool = False
    order: Tensor | None = None

    def source(self, value: Any) -> Source | None:
        """The tracked parameter this is, if it is one."""
        if not isinstance(value, Tensor):
            return None
        found = self.sources.get(id(value))
        return found if found is not None and value.requires_grad else None

    def derive(self, source: Source, part: Tensor, number: int) -> None:
        """A disjoint part of a parameter: the parts' squared norms add up."""
        key = Key(source.key.index, (*source.key.part, number))
        self.sources[id(part)] = Source(key, part)

    def derive_view(self, source: Source, view: Tensor) -> None:
        """The same numbers, or some of them, in another shape."""
        before, key = source.tensor, source.key
        if source.table is not None:
            if view.numel() == before.numel() and view.shape[-1] == before.shape[-1]:
                ids, rows, padding, refuted = source.table
                table = ids.reshape(view.shape[:-1]), rows, padding, refuted
                self.sources[id(view)] = Source(key, view, table)
            return
        same = view.shape == before.shape and view.stride() == before.stride()
        turned = view.dim() == 2 and view.shape == before.mT.shape
        if same or (view.shape == before.shape and view.dim() < 2):
            self.sources[id(view)] = Source(key, view, flipped=source.flipped)
        elif turned and view.stride() == before.mT.stride() and not key.part:
            back = source.flipped
            flipped = before if back is None else None
            self.sources[id(view)] = Source(key, view, flipped=flipped)
        else:
            key = Key(key.index, (*key.part, VIEW))
            self.sources[id(view)] = Source(key, view)

    def plan(self, name: str, func: Any, args: Any, kwargs: Any) -> Plan | None:
        """The plan for a call, or None where none of ours fits."""
        method = getattr(self, f"_{_family(name)}", None)
        if method is None:
            return None
        try:
            return method(name, func, *args, **kwargs)
        except (TypeError, ValueError, IndexError, RuntimeError):
            return None  # a call of a form we do not know: it is left alone

    def _layout(
        self, tensor: Tensor, source: Source | None, features: bool = True
    ) -> Layout | None:
        found = layouts(
            tensor,
            self.batch,
            inside=self.inside,
            features=features,
            order=self.order,
        )
        if source is not None and not found and features and tensor.dim() > 1:
            # Routed to experts, say: by chance the next number of rows may fit.
            self.sites.excluded[source.key.index] = NO_PLACE
        wrong = 0 if source is None else self.sites.wrong.get(source.key.index, 0)
        if source is not None and source.table is not None:
            wrong -= source.table[3]
        return found[wrong] if wrong < len(found) else None

    # Each plan has its function's own signature and says where the parameters enter.

    def _bias(self, bias: Any, out: Sequence[int], x: Tensor, axis: int) -> list[Use]:
        """A bias along one axis of the output; none where it is not tracked."""
        source = self.source(bias)
        layout = self._layout(x, source)
        if source is None or layout is None:
            return []
        own = bias.shape
        shape = [1] * len(out)
        shape[axis] = own[0]
        rule = rules.Broadcast(layout, tuple(shape), own)
        return [Use(source, rule, x.new_empty(0))]

    def _linear(
        self, name: str, func: Any, input: Tensor, weight: Tensor, bias: Any = None
    ) -> Plan | None:
        source = self.source(weight)
        layout = self._layout(input, source)
        out = (*input.shape[:-1], weight.shape[0])
        biases = self._bias(bias, out, input, -1)
        if layout is None or weight.dim() != 2:
            return None
        uses = [] if source is None else [_matrix(source, layout, input, False)]
        return Plan(uses + biases)

    def _matmul(
        self, name: str, func: Any, input: Tensor, other: Tensor
    ) -> Plan | None:
        source, layout = self.source(other), None
        if source is not None and other.dim() == 2 and source.table is None:
            layout = self._layout(input, source)
        if source is None or layout is None:
            return None
        return Plan([_matrix(source, layout, input, True)])

    def _addmm(
        self, name: str, func: Any, input: Tensor, mat1: Tensor, mat2: Tensor
    ) -> Plan | None:
        weight, layout = self.source(mat2), self._layout(mat1, self.source(mat2))
        if layout is None or input.dim() != 1:
            return None
        uses = self._bias(input, (len(mat1), mat2.shape[1]), mat1, -1)
        if weight is not None:
            uses.append(_matrix(weight, layout, mat1, True))
        return Plan(uses)

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
    ) -> Plan | None:
        source, axes = self.source(weight), weight.dim() - 2
        layout = self._layout(input, source)
        if layout is None or layout.axis != "first" or input.dim() != weight.dim():
            return None
        if (source or self.source(bias)) is None:
            return None
        stride, dilation = _each(stride, axes), _each(dilation, axes)
        spans = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        if padding == "same":
            if any(span % 2 for span in spans):
                return None  # padded more on one side
            padding = [span // 2 for span in spans]
        padding = _each(0 if padding == "valid" else padding, axes)
        rule = rules.Kernel(layout, weight.shape, stride, padding, dilation, groups)
        uses = [] if source is None else [Use(source, rule, input)]
        shape = [input.shape[0], weight.shape[0], *[1] * axes]
        return Plan(uses + self._bias(bias, shape, input, 1))

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
    ) -> Plan | None:
        source = self.source(weight)
        if source is None or scale_grad_by_freq or sparse:
            return None
        rows = weight.shape[0]
        padding = -1 if padding_idx is None else padding_idx % rows
        layout = self._layout(input, source, features=False)
        if layout is not None:
            return Plan([Use(source, rules.Table(layout, rows, padding), input)])
        out = func(input, weight, padding_idx, max_norm, norm_type)
        refuted = len(layouts(input, self.batch, inside=self.inside, features=False))
        table = (input.detach(), rows, padding, refuted)
        self.sources[id(out)] = Source(source.key, out, table)
        return Plan(out=out)

    def _norm(
        self, name: str, func: Any, input: Tensor, *args: Any, **kwargs: Any
    ) -> Plan | None:
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
        own = [p for p in (weight, bias) if isinstance(p, Tensor)]
        if not own or self._layout(input, self.source(own[0])) is None:
            return None
        quiet = {k: v for k, v in given.items() if k not in ("weight", "bias")}
        if name == "instance_norm" and given.get("use_input_stats", True):
            quiet |= {"running_mean": None, "running_var": None}  # already updated
        trailing = name in ("layer_norm", "rms_norm")
        uses = []
        for parameter in own:
            source = self.source(parameter)
            layout = self._layout(input, source)
            if source is None or layout is None:
                continue
            shape = parameter.shape
            if not trailing:
                shape = torch.Size([*shape, *[1] * (input.dim() - 2)])
            scaled = parameter is weight
            factor = functools.partial(_normalised, func, quiet) if scaled else None
            rule = rules.Broadcast.fit(
                layout, input.shape, shape, parameter.shape, factor=factor
            )
            if rule is not None:
                uses.append(Use(source, rule, input if scaled else input.new_empty(0)))
        return Plan(uses) if uses else None

    def _sum(self, name: str, func: Any, input: Any, other: Any) -> Plan | None:
        """Sums, differences and products with one parameter."""
        first, second = self.source(input), self.source(other)
        source, data = (first, other) if first is not None else (second, input)
        if source is None or not isinstance(data, Tensor):
            return None
        if first is not None and second is not None:
            return None
        layout = self._layout(data, source)
        product = name in ("mul", "multiply")
        minus = name.startswith("sub") and second is not None
        if layout is None or (product and source.table is not None):
            return None
        out = torch.broadcast_shapes(data.shape, source.tensor.shape)
        at = layout.index
        if len(out) != data.dim() or out[at] != data.shape[at]:
            return None  # not the data carries the examples
        rule: rules.Rule | None = rules.Broadcast.fit(
            layout,
            out,
            source.tensor.shape,
            source.tensor.shape,
            factor=_itself if product else None,
            sign=-1 if minus else 1,
        )
        if isinstance(rule, rules.Broadcast) and source.table is not None:
            rule = rules.Reached(rule, *source.table[:3])
        saved = data if product else data.new_empty(0)
        return None if rule is None else Plan([Use(source, rule, saved)])

    def _expand(
        self, name: str, func: Any, input: Tensor, *sizes: Any, **kwargs: Any
    ) -> Plan | None:
        """A parameter stretched to the batch, as class tokens are."""
        source = self.source(input)
        if source is None or source.table is not None:
            return None
        out = func(input.detach(), *sizes, **kwargs).clone()
        layout = self._layout(out, source)
        if layout is None:
            return None
        rule = rules.Broadcast.fit(layout, out.shape, input.shape, input.shape)
        if rule is None:
            return None
        return Plan([Use(source, rule, input.new_empty(0))], out)


def _matrix(source: Source, layout: Layout, x: Tensor, second: bool) -> Use:
    """The use of a matrix as ``x @ w`` (second), or as ``x @ w.T``."""
    turned = source.flipped is not None
    return Use(source, rules.Outer(layout, second != turned), x, turned)


def _family(name: str) -> str:
    if name in CONVOLUTIONS:
        return "convolution"
    if name in NORMS:
        return "norm"
    if name in ("add", "sub", "subtract", "mul", "multiply"):
        return "sum"
    if name in ("expand", "expand_as", "repeat"):
        return "expand"
    if name in ("matmul", "mm"):
        return "matmul"
    return name if name in ("linear", "addmm", "embedding") else "none"


def _each(value: Any, axes: int) -> tuple[int, ...]:
    return (
        tuple(value) * (axes // len(value))
        if isinstance(value, (list, tuple))
        else (value,) * axes
    )


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _normalised(func: Any, settings: dict[str, Any], saved: Tensor) -> Tensor:
    """What a normalisation layer multiplies its scale with, made again."""
    with without_torch_function():
        return func(saved, **settings)
