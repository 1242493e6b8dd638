"""Taps: nodes in the autograd graph that make a parameter's gradient and look at it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rightbatch.noise.capture.group_norms import Key, Tally
from rightbatch.noise.capture.layout import Groups


class Tap(torch.autograd.Function):
    """Sits on an operation's output and makes its parameters' gradients."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, out: Tensor, tally: Tally, uses: Any, *tensors: Any
    ) -> Any:
        ctx.mark_dirty(out)  # the output itself goes on, no copy and no view
        ctx.tally, ctx.uses, count = tally, uses, len(uses)
        ctx.save_for_backward(*tensors[:count])
        ctx.kinds = [t.dtype for t in tensors[count:]]
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (g,) = grads
        made: list[Tensor | None] = []
        ctx.tally.differentiated |= torch.is_grad_enabled()
        for (key, rule), saved, kind in zip(
            ctx.uses, ctx.saved_tensors, ctx.kinds, strict=True
        ):
            if torch.is_grad_enabled():  # somebody differentiates twice: stay out
                like = saved.to(g.dtype) if saved.is_floating_point() else saved
                made.append(rule.gradient(like, g, None).to(kind))
            else:
                made.append(ctx.tally.take(key, rule, saved, g).to(kind))
        return g, None, None, *[None] * len(made), *made


class GroupTap(torch.autograd.Function):
    """A group's own copy of a parameter, for operations run group by group."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, weight: Tensor, tally: Tally, key: Key, group: int, groups: Groups
    ) -> Any:
        ctx.tally, ctx.place = tally, (key, group, groups)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (g,) = grads
        if not ctx.tally.closed and not torch.is_grad_enabled():
            key, group, groups = ctx.place
            ctx.tally.add_group(key, group, g, groups)
        return g, None, None, None, None
