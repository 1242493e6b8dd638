"""Nodes in the autograd graph that make a parameter's gradient and note its norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rightbatch.noise.capture.gradient_formulas import Use
from rightbatch.noise.capture.group_norms import GroupNorms, ParameterKey
from rightbatch.noise.capture.layout import Groups


class GradientHook(torch.autograd.Function):
    """Sits on an operation's output and makes its parameters' gradients.

    Inputs are the output, where norms are noted, the parameters' keys and formulas,
    what each formula needs of the forward pass, and the parameters themselves.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, out: Tensor, group_norms: GroupNorms, uses: Any, *tensors: Any
    ) -> Any:
        ctx.mark_dirty(out)  # the output itself goes on, no copy and no view
        ctx.group_norms, ctx.uses, count = group_norms, uses, len(uses)
        ctx.save_for_backward(*tensors[:count])
        ctx.dtypes = [t.dtype for t in tensors[count:]]
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (g,) = grads
        gradients: list[Tensor | None] = []
        twice = torch.is_grad_enabled()  # somebody differentiates twice: stay out
        ctx.group_norms.differentiated |= twice
        for (key, formula), saved, dtype in zip(
            ctx.uses, ctx.saved_tensors, ctx.dtypes, strict=True
        ):
            if twice:
                saved = saved.to(g.dtype) if saved.is_floating_point() else saved
                gradient = formula.gradient(saved, g, None)
            else:
                gradient = ctx.group_norms.gradient(key, Use(formula, saved, g))
            gradients.append(gradient.to(dtype))
        return g, None, None, *[None] * len(gradients), *gradients


class GroupCopy(torch.autograd.Function):
    """A group's own copy of a parameter, for operations run group by group."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        weight: Tensor,
        group_norms: GroupNorms,
        key: ParameterKey,
        group: int,
        groups: Groups,
    ) -> Any:
        ctx.group_norms, ctx.place = group_norms, (key, group, groups)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (gradient,) = grads
        if not ctx.group_norms.closed and not torch.is_grad_enabled():
            key, group, groups = ctx.place
            ctx.group_norms.add_group(key, group, gradient, groups)
        return gradient, None, None, None, None
