r"""Gradients of single parameters from groups of examples, and their squared norms.

A rule knows how one parameter entered one operation. From the gradient that flows back
into the operation's output it makes the part of the parameter's gradient that comes
from some of the examples. The batch's gradient is the sum of these parts: the norms
of all groups come out of the same multiplications that make the weight gradient
("simultaneous" norms, Gray et al. 2024, arXiv:2411.00999), and where the factors are
small enough from their Gram matrices without forming the parts at all (Goodfellow
2015, arXiv:1510.01799, for one vector per example; the general form is in Li et al.
2022, arXiv:2110.05679).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rightbatch.noise.capture.layout import Groups, Layout

# One pass over a number in memory takes as long as so many multiply-adds inside a
# matrix product [measured: one CPU thread, float32, 30 to 60].
PASS_COST = 40
# Group gradients that are formed side by side rather than one by one, in numbers: more
# would not stay in the cache [measured] and takes memory [assumed].
SIDE_BY_SIDE = 1 << 20


def wide(tensor: Tensor) -> torch.dtype:
    """The precision for sums of squares: single at least."""
    return torch.promote_types(tensor.dtype, torch.float32)


def norm(tensor: Tensor) -> Tensor:
    """The norm, summed in single precision at least."""
    return torch.linalg.vector_norm(tensor, dtype=wide(tensor))


def square(tensor: Tensor) -> Tensor:
    """The squared norm, summed in single precision at least."""
    return norm(tensor).square()


class Rule:
    """How one parameter entered one operation."""

    __slots__ = ()

    def gradient(self, saved: Tensor, g: Tensor, part: slice | None) -> Tensor:
        """The parameter's gradient from the examples of ``part``; None: from all."""
        raise NotImplementedError

    def norms(self, saved: Tensor, g: Tensor, groups: Groups) -> Tensor | None:
        """Norms of the groups' gradients, ``(groups,)``, single precision at least.

        None where forming the gradients is the cheaper way.
        """
        return None

    def stack(self, saved: Tensor, g: Tensor, groups: Groups) -> Tensor | None:
        """The groups' gradients side by side, ``(groups, *shape)``, if small."""
        return None

    def norm_of(self, gradient: Tensor) -> Tensor:
        """Norm of what `gradient` returned."""
        return norm(gradient)


def _rows(layout: Layout, tensor: Tensor, part: slice | None) -> Tensor:
    """The entries of some examples as a matrix ``(entries, features)``."""
    if part is None:
        return tensor.reshape(-1, tensor.shape[-1])
    return layout.split(tensor)[part].reshape(-1, tensor.shape[-1])


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
        a = torch.linalg.vector_norm(x[:, 0], dim=1, dtype=wide(x))
        b = torch.linalg.vector_norm(g[:, 0], dim=1, dtype=wide(g))
        return a * b
    x, g = x.to(wide(x)), g.to(wide(g))
    return (x @ x.mT).mul_(g @ g.mT).sum((1, 2)).clamp_(min=0).sqrt_()


@dataclass(frozen=True, slots=True)
class Outer(Rule):
    r"""A matrix: gradient $\sum_r g_r x_r^\top$, or its transpose for ``x @ w``."""

    layout: Layout
    transposed: bool = False

    def gradient(self, saved: Tensor, g: Tensor, part: slice | None) -> Tensor:
        x = _rows(self.layout, saved, part)
        out = _rows(self.layout, g, part)
        return x.mT @ out if self.transposed else out.mT @ x

    def norms(self, saved: Tensor, g: Tensor, groups: Groups) -> Tensor | None:
        entries = math.prod(saved.shape[:-1]) // groups.count
        inner, outer = saved.shape[-1], g.shape[-1]
        if entries * entries * (inner + outer) > PASS_COST * inner * outer:
            return None
        if not groups.equal:
            parts = [slice(a, b) for a, b in groups.slices]
            pairs = (
                (_rows(self.layout, saved, p)[None], _rows(self.layout, g, p)[None])
                for p in parts
            )
            return torch.cat([gram_norms(x, d) for x, d in pairs])
        x = _by_group(self.layout, saved, groups)
        return gram_norms(x, _by_group(self.layout, g, groups))

    def stack(self, saved: Tensor, g: Tensor, groups: Groups) -> Tensor | None:
        size = groups.count * saved.shape[-1] * g.shape[-1]
        if not groups.equal or size > SIDE_BY_SIDE:
            return None
        x = _by_group(self.layout, saved, groups)
        out = _by_group(self.layout, g, groups)
        return x.mT @ out if self.transposed else out.mT @ x


@dataclass(frozen=True, slots=True)
class Table(Rule):
    """Rows looked up by number: the gradient of a row sums over where it was used."""

    layout: Layout
    rows: int
    padding: int

    def gradient(self, saved: Tensor, g: Tensor, part: slice | None) -> Tensor:
        if part is not None:
            saved = self.layout.split(saved)[part]
            g = self.layout.split(g)[part]
        return torch.ops.aten.embedding_dense_backward(
            g.contiguous(), saved.contiguous(), self.rows, self.padding, False
        )

    def segments(
        self, saved: Tensor, g: Tensor, groups: Groups
    ) -> tuple[Tensor, Tensor]:
        """Keys ``group * rows + row``, and the gradients of those rows in float32."""
        split = self.layout.split(saved)
        group = torch.repeat_interleave(
            torch.arange(groups.count, device=saved.device),
            torch.tensor(groups.sizes, device=saved.device),
        )
        ids = split.reshape(groups.batch, -1)
        keys, slots = (ids + group[:, None] * self.rows).unique(return_inverse=True)
        values = self.layout.split(g).reshape(-1, g.shape[-1]).to(wide(g))
        sums = values.new_zeros(len(keys), g.shape[-1])
        sums.index_add_(0, slots.reshape(-1), values)
        sums[keys % self.rows == self.padding] = 0
        return keys, sums

    def norms(self, saved: Tensor, g: Tensor, groups: Groups) -> Tensor | None:
        keys, sums = self.segments(saved, g, groups)
        per_key = sums.square().sum(1)
        sums = per_key.new_zeros(groups.count)
        return sums.index_add_(0, keys // self.rows, per_key).sqrt_()


@dataclass(frozen=True, slots=True)
class Kernel(Rule):
    """A convolution's kernel, from torch's own backward on some of the examples."""

    layout: Layout
    shape: torch.Size
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    def gradient(self, saved: Tensor, g: Tensor, part: slice | None) -> Tensor:
        if part is not None:
            saved = self.layout.split(saved)[part].flatten(0, 1)
            g = self.layout.split(g)[part].flatten(0, 1)
        return torch.ops.aten.convolution_backward(
            g,
            saved,
            saved.new_empty(()).expand(self.shape),
            None,
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding or (0,) * len(self.stride),
            self.groups,
            (False, True, False),
        )[1]

    def norms(self, saved: Tensor, g: Tensor, groups: Groups) -> Tensor | None:
        moved = saved.shape[0] != groups.batch or self.layout.order is not None
        if self.transposed or not groups.equal or moved:
            return None
        places = math.prod(g.shape[2:]) * groups.equal
        inner = math.prod(self.shape[1:])
        outer = self.shape[0] // self.groups
        # Beside the Gram matrices the patches have to be laid out, once.
        cost = places * (places * (inner + outer) + 2 * PASS_COST * inner)
        if len(self.stride) != 2 or cost > PASS_COST * inner * outer:
            return None
        return self._gram(saved, g, groups)

    def _gram(self, saved: Tensor, g: Tensor, groups: Groups) -> Tensor:
        patches = F.unfold(
            saved, self.shape[2:], self.dilation, self.padding, self.stride
        )
        candidates = groups.count, groups.equal, self.groups
        x = patches.unflatten(1, (self.groups, -1)).unflatten(0, candidates[:2])
        d = g.flatten(2).unflatten(1, (self.groups, -1)).unflatten(0, candidates[:2])
        # (groups, size, candidates, features, places) -> (groups * candidates, rows, features)
        x, d = (t.permute(0, 2, 1, 4, 3).flatten(2, 3).flatten(0, 1) for t in (x, d))
        lanes_norms = gram_norms(x, d).unflatten(0, (groups.count, -1))
        return torch.linalg.vector_norm(lanes_norms, dim=1)


@dataclass(frozen=True, slots=True)
class Broadcast(Rule):
    """A parameter stretched over the output: the gradient, times a factor, summed.

    Serves biases (factor 1), scales of normalisation layers (the normalised input) and
    any parameter in a sum, a difference or a product.

    Attributes:
        aligned: The parameter's shape as stretched, aligned with the output's axes.
        own: The parameter's own shape.
        factor: Makes the factor from what was saved; None: no factor.
        sign: -1 for a parameter that is subtracted.
    """

    layout: Layout
    aligned: tuple[int, ...]
    own: torch.Size
    factor: Callable[[Tensor], Tensor] | None = None
    sign: int = 1

    @classmethod
    def fit(
        cls,
        layout: Layout,
        out: torch.Size,
        stretched: torch.Size,
        own: torch.Size,
        **more: Any,
    ) -> Broadcast | None:
        """The rule for a parameter seen as ``stretched``; None if it has the batch."""
        aligned = (1,) * (len(out) - len(stretched)) + tuple(stretched)
        if len(aligned) > len(out) or aligned[layout.index] != 1:
            return None
        return cls(layout, aligned, own, **more)

    def _parts(self, saved: Tensor, g: Tensor) -> Tensor:
        """``(batch, *own)``: every example's own gradient."""
        if self.factor is not None:
            g = g * self.factor(saved)
        g = self.layout.split(g if self.sign > 0 else -g)  # (batch, entries, *rest)
        at = self.layout.index
        sizes = (*(self.aligned[:1] if at else (1,)), *self.aligned[1 + at :])
        summed = [i + 1 for i, size in enumerate(sizes) if size == 1]
        if summed:
            g = g.sum(summed)
        return g.reshape(self.layout.batch, *self.own)

    def gradient(self, saved: Tensor, g: Tensor, part: slice | None) -> Tensor:
        if part is None and self.factor is None and self.sign > 0:
            axes = [i for i, size in enumerate(self.aligned) if size == 1]
            return g.sum(axes).reshape(self.own)
        parts = self._parts(saved, g)
        return (parts if part is None else parts[part]).sum(0)

    def norms(self, saved: Tensor, g: Tensor, groups: Groups) -> Tensor | None:
        vectors = g.shape == (groups.batch, *self.own) and self.factor is None
        if vectors and groups.count == groups.batch and self.layout.order is None:
            return torch.linalg.vector_norm(g.flatten(1), dim=1, dtype=wide(g))
        return None

    def stack(self, saved: Tensor, g: Tensor, groups: Groups) -> Tensor | None:
        return groups.sum(self._parts(saved, g).to(wide(g)))


@dataclass(frozen=True, slots=True)
class Reached(Rule):
    """A row of a table reached through a tensor without examples, as positions are.

    ``table[positions]`` has no examples; they come in where it is added to something.
    There `inner` gives every group's gradient of the looked-up rows, and the table's
    own rule the rest of the way.
    """

    inner: Broadcast
    ids: Tensor
    rows: int
    padding: int

    def gradient(self, saved: Tensor, g: Tensor, part: slice | None) -> Tensor:
        return self.inner.gradient(saved, g, part)

    def norms(self, saved: Tensor, g: Tensor, groups: Groups) -> Tensor | None:
        found = self.inner.stack(saved, g, groups)
        assert found is not None
        return self._through(found)

    def norm_of(self, gradient: Tensor) -> Tensor:
        return self._through(gradient[None])[0]

    def _through(self, found: Tensor) -> Tensor:
        count = len(found)
        table = Table(Layout(count, "first"), self.rows, self.padding)
        ids = self.ids.expand(count, *self.ids.shape)
        norms = table.norms(ids, found, Groups.of(count, count))
        assert norms is not None
        return norms
