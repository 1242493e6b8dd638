"""What sits in the autograd graph and notes the norms of a parameter's gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rightbatch.noise.capture.gradient_formulas import Use
from rightbatch.noise.capture.group_norms import GroupNorms


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


class Together(torch.autograd.Function):
    """Copies of an operation's results, whose gradients are looked at together.

    One result may be made from another, as an LSTM's from its last state: what comes
    back to a copy is what the rest of the model sends, and nothing else.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, arrived: Callable[[tuple[Tensor | None, ...]], None], *outs: Tensor
    ) -> Any:
        ctx.arrived = arrived
        ctx.set_materialize_grads(False)
        return tuple(out.clone() for out in outs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        ctx.arrived(grads)
        return None, *grads
