r"""Gradients of single parameters from groups of examples, and their squared norms.

A formula knows how one parameter entered one operation. From the gradient that flows
back into the operation's output it makes the part of the parameter's gradient that
comes from some of the examples. The batch's gradient is the sum of these parts: the
norms of all groups come out of the same multiplications that make the weight gradient
("simultaneous" norms, Gray et al. 2024, arXiv:2411.00999), and where the factors are
small enough from their Gram matrices without forming the parts at all (Goodfellow
2015, arXiv:1510.01799, for one vector per example; the general form is in Li et al.
2022, arXiv:2110.05679).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rightbatch.noise.capture.layout import Groups, Layout
from rightbatch.noise.norms import sum_dtype

# One pass over a number in memory takes as long as so many multiply-adds inside a
# matrix product [measured: one CPU thread, float32, 30 to 60].
PASS_COST = 40
# Group gradients that are formed side by side rather than one by one, in numbers: more
# would not stay in the cache [measured] and takes memory [assumed].
SIDE_BY_SIDE = 1 << 20


class GradientFormula:
    """How one parameter entered one operation.

    In all methods ``saved`` is what the formula needs of the forward pass (usually the
    operation's input), ``g`` the gradient of the operation's output.
    """

    __slots__ = ()

    def gradient(self, saved: Tensor, g: Tensor, examples: slice | None) -> Tensor:
        """The parameter's gradient from some of the examples; None: from all."""
        raise NotImplementedError

    def norms(self, saved: Tensor, g: Tensor, groups: Groups) -> Tensor | None:
        """Norms of the groups' gradients, ``(groups,)``, single precision at least.

        None where forming the gradients is the cheaper way.
        """
        return None

    def group_gradients(
        self, saved: Tensor, g: Tensor, groups: Groups
    ) -> Tensor | None:
        """The groups' gradients side by side, ``(groups, *shape)``, if small."""
        return None

    def entries(self, gradient: Tensor) -> Tensor:
        """What `gradient` returned, as the gradient of the parameter's entries."""
        return gradient


class Use(NamedTuple):
    """A formula with its tensors: one use of a parameter, in the backward pass."""

    formula: GradientFormula
    saved: Tensor
    g: Tensor

    def gradient(self, examples: slice | None = None) -> Tensor:
        """The parameter's gradient from some of the examples; None: from all."""
        return self.formula.gradient(self.saved, self.g, examples)


def _rows(layout: Layout, tensor: Tensor, examples: slice | None) -> Tensor:
    """The entries of some examples as a matrix ``(entries, features)``."""
    if examples is None:
        return tensor.reshape(-1, tensor.shape[-1])
    return layout.split(tensor, examples).reshape(-1, tensor.shape[-1])


def _by_group(layout: Layout, tensor: Tensor, groups: Groups) -> Tensor:
    """``(groups, entries, features)``; the groups must be equally large."""
    return layout.split(tensor).reshape(groups.count, -1, tensor.shape[-1])


def gram_norms(x: Tensor, g: Tensor) -> Tensor:
    r"""$\|\sum_r g_r x_r^\top\|$ for each group, without forming the sums.

    Args:
        x: Inputs, shape (groups, entries, features in).
        g: Output gradients, shape (groups, entries, features out).
    """
    if x.shape[1] == 1:
        a = torch.linalg.vector_norm(x[:, 0], dim=1, dtype=sum_dtype(x))
        b = torch.linalg.vector_norm(g[:, 0], dim=1, dtype=sum_dtype(g))
        return a * b
    x, g = x.to(sum_dtype(x)), g.to(sum_dtype(g))
    return (x @ x.mT).mul_(g @ g.mT).sum((1, 2)).clamp_(min=0).sqrt_()


@dataclass(frozen=True, slots=True)
class MatrixProduct(GradientFormula):
    r"""A matrix: gradient $\sum_r g_r x_r^\top$, or its transpose for ``x @ w``."""

    layout: Layout
    transposed: bool = False

    def gradient(self, saved: Tensor, g: Tensor, examples: slice | None) -> Tensor:
        x = _rows(self.layout, saved, examples)
        g = _rows(self.layout, g, examples)
        return x.mT @ g if self.transposed else g.mT @ x

    def norms(self, saved: Tensor, g: Tensor, groups: Groups) -> Tensor | None:
        entries = math.prod(saved.shape[:-1]) // groups.count
        inputs, outputs = saved.shape[-1], g.shape[-1]
        costly = entries * entries * (inputs + outputs) > PASS_COST * inputs * outputs
        if costly or not groups.equal_size:
            return None
        x = _by_group(self.layout, saved, groups)
        return gram_norms(x, _by_group(self.layout, g, groups))

    def group_gradients(
        self, saved: Tensor, g: Tensor, groups: Groups
    ) -> Tensor | None:
        size = groups.count * saved.shape[-1] * g.shape[-1]
        if not groups.equal_size or size > SIDE_BY_SIDE:
            return None
        x = _by_group(self.layout, saved, groups)
        g = _by_group(self.layout, g, groups)
        return x.mT @ g if self.transposed else g.mT @ x


@dataclass(frozen=True, slots=True)
class EmbeddingLookup(GradientFormula):
    """Rows looked up by number: the gradient of a row sums over where it was used."""

    layout: Layout
    rows: int
    padding: int

    def gradient(self, saved: Tensor, g: Tensor, examples: slice | None) -> Tensor:
        if examples is not None:
            saved = self.layout.split(saved, examples)
            g = self.layout.split(g, examples)
        return torch.ops.aten.embedding_dense_backward(
            g.contiguous(), saved.contiguous(), self.rows, self.padding, False
        )

    def norms(self, saved: Tensor, g: Tensor, groups: Groups) -> Tensor | None:
        group = torch.repeat_interleave(
            torch.arange(groups.count, device=saved.device),
            torch.tensor(groups.sizes, device=saved.device),
        )
        ids = self.layout.split(saved).reshape(groups.batch, -1)
        keys, slots = (ids + group[:, None] * self.rows).unique(return_inverse=True)
        entries = self.layout.split(g).reshape(-1, g.shape[-1])
        entries = entries.to(sum_dtype(g))
        sums = entries.new_zeros(len(keys), g.shape[-1])
        sums.index_add_(0, slots.reshape(-1), entries)
        sums[keys % self.rows == self.padding] = 0
        per_key = sums.square().sum(1)
        squares = per_key.new_zeros(groups.count)
        return squares.index_add_(0, keys // self.rows, per_key).sqrt_()


@dataclass(frozen=True, slots=True)
class Convolution(GradientFormula):
    """A convolution's kernel, from torch's own backward on some of the examples.

    Attributes:
        shape: The kernel's, (channels out, channels in / channel_groups, *sizes).
        channel_groups: The operation's ``groups``: channels that do not mix.
    """

    layout: Layout
    shape: torch.Size
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    channel_groups: int

    def gradient(self, saved: Tensor, g: Tensor, examples: slice | None) -> Tensor:
        if examples is not None:
            saved = self.layout.split(saved, examples).flatten(0, 1)
            g = self.layout.split(g, examples).flatten(0, 1)
        return torch.ops.aten.convolution_backward.default(
            g,
            saved,
            saved.new_empty(()).expand(self.shape),
            None,
            self.stride,
            self.padding,
            self.dilation,
            False,
            (0,) * len(self.stride),
            self.channel_groups,
            (False, True, False),
        )[1]


@dataclass(frozen=True, slots=True)
class Broadcast(GradientFormula):
    """A parameter stretched over the output: the gradient, times a factor, summed.

    Serves biases (factor 1), scales of normalisation layers (the normalised input) and
    any parameter in a sum, a difference or a product.

    Attributes:
        aligned: The parameter's shape as stretched, aligned with the output's axes.
        shape: The parameter's own shape.
        factor: Makes the factor from what was saved; None: no factor.
    """

    layout: Layout
    aligned: tuple[int, ...]
    shape: torch.Size
    factor: Callable[[Tensor], Tensor | int] | None = None

    @classmethod
    def fit(
        cls,
        layout: Layout,
        out: torch.Size,
        stretched: torch.Size,
        shape: torch.Size,
        **more: Any,
    ) -> Broadcast | None:
        """For a parameter seen as ``stretched``; None if it has the batch's axis."""
        aligned = (1,) * (len(out) - len(stretched)) + tuple(stretched)
        if len(aligned) > len(out) or aligned[layout.batch_axis] != 1:
            return None
        if any(a not in (1, size) for a, size in zip(aligned, out, strict=True)):
            return None  # tiled
        return cls(layout, aligned, shape, **more)

    def _per_example(self, saved: Tensor, g: Tensor) -> Tensor:
        """``(batch, *shape)``: every example's own gradient."""
        if self.factor is not None:
            g = g * self.factor(saved)
        g = self.layout.split(g)  # (batch, entries, *rest)
        at = self.layout.batch_axis
        sizes = (*(self.aligned[:1] if at else (1,)), *self.aligned[1 + at :])
        summed = [i + 1 for i, size in enumerate(sizes) if size == 1]
        if summed:
            g = g.sum(summed)
        return g.reshape(self.layout.batch, *self.shape)

    def gradient(self, saved: Tensor, g: Tensor, examples: slice | None) -> Tensor:
        if examples is None and self.factor is None:
            axes = [i for i, size in enumerate(self.aligned) if size == 1]
            return g.sum(axes).reshape(self.shape)
        each = self._per_example(saved, g)
        return (each if examples is None else each[examples]).sum(0)

    def group_gradients(
        self, saved: Tensor, g: Tensor, groups: Groups
    ) -> Tensor | None:
        each = self._per_example(saved, g)
        return groups.sum(each.to(sum_dtype(g)))


@dataclass(frozen=True, slots=True)
class PositionLookup(GradientFormula):
    """Rows of a table looked up without examples, as positions are, then broadcast.

    ``table[positions]`` has no examples; they come in where it is added to something.
    There `broadcast` gives every group's gradient of the looked-up rows, and the
    table's own formula the rest of the way.
    """

    broadcast: Broadcast
    ids: Tensor
    rows: int
    padding: int

    def gradient(self, saved: Tensor, g: Tensor, examples: slice | None) -> Tensor:
        return self.broadcast.gradient(saved, g, examples)

    def entries(self, gradient: Tensor) -> Tensor:
        return torch.ops.aten.embedding_dense_backward(
            gradient.contiguous(), self.ids, self.rows, self.padding, False
        )
