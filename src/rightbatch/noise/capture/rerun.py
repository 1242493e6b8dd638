"""Operations without a formula: run again for every group, beside the step's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch.noise.capture.group_norms import GroupNorms
from rightbatch.noise.capture.invocation import Invocation, flat
from rightbatch.noise.capture.layout import Groups
from rightbatch.noise.capture.tracked import TrackedTensor

RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}
CELLS = {"lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"}
# Layers whose first argument alone has the examples.
LAYERS = {
    *("prelu", "embedding_bag", "batch_norm", "layer_norm", "group_norm"),
    *("conv1d", "conv2d", "conv3d"),  # padded by name: "same"
    *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
}
PLAIN = {
    *("einsum", "tensordot", "bilinear", "baddbmm", "bmm", "matmul"),
    *("div", "true_divide", "maximum", "minimum", "add", "sub", "mul", "multiply"),
    *("addcmul", "where", "cat", "stack", "pow"),
}


class NotByGroupError(Exception):
    """The call cannot be made on some of the examples."""


@dataclass(frozen=True, slots=True)
class Rerun:
    """One call, to be made again on the examples of each group.

    Attributes:
        call: Which.
        parameters: The tracked tensors that enter it.
        inputs: The tensors that have the examples, and on which axis.
        outputs: The axes of the results.
    """

    call: Invocation
    parameters: Sequence[TrackedTensor]
    inputs: list[tuple[Tensor, int]]
    outputs: list[int]

    @classmethod
    def of(cls, call: Invocation, outs: list[Any], batch: int) -> Rerun | None:
        """The call with these results, if it may be made group by group."""
        if any(t.table_rows is not None for t in call.given):
            return None
        axes = _batch_axes(call, batch)
        if axes is None or len(outs) != len(axes[1]):
            return None
        fits = (
            isinstance(o, Tensor)
            and o.requires_grad
            and o.shape[axis : axis + 1] == (batch,)
            for o, axis in zip(outs, axes[1], strict=True)
        )
        return cls(call, list(dict.fromkeys(call.given)), *axes) if all(fits) else None

    def note(self, grads: Sequence[Tensor | None], norms: GroupNorms) -> None:
        """Every group's gradients from the gradients of the results."""
        groups = Groups.of(norms.batch, norms.count)
        for group, (a, b) in enumerate(groups.slices):
            examples = slice(a, b) if norms.order is None else norms.order[a:b]
            for tracked, gradient in zip(
                self.parameters, self._gradients(grads, examples), strict=True
            ):
                norms.add_group(tracked.key, group, gradient, groups)

    def _gradients(
        self, grads: Sequence[Tensor | None], examples: slice | Tensor
    ) -> list[Tensor]:
        def cut(tensor: Tensor, axis: int) -> Tensor:
            return tensor[(slice(None),) * axis + (examples,)].contiguous()

        copies = [p.tensor.detach().requires_grad_() for p in self.parameters]
        swap = {id(t): cut(t.detach(), axis) for t, axis in self.inputs}
        swap |= {id(p.tensor): c for p, c in zip(self.parameters, copies, strict=True)}
        try:
            with torch.enable_grad():
                made = flat(self.call.make(swap))
        except (RuntimeError, ValueError, IndexError) as error:  # torch's own
            raise NotByGroupError(str(error)) from error
        outs, gs = [], []
        for out, g, axis in zip(made, grads, self.outputs, strict=True):
            if g is not None:
                outs.append(out)
                gs.append(cut(g, axis))
        if [out.shape for out in outs] != [g.shape for g in gs]:
            raise NotByGroupError("its result has the examples elsewhere")
        found = torch.autograd.grad(outs, copies, gs, allow_unused=True)
        return [
            c.new_zeros(c.shape) if g is None else g
            for c, g in zip(copies, found, strict=True)
        ]


def _batch_axes(
    call: Invocation, batch: int
) -> tuple[list[tuple[Tensor, int]], list[int]] | None:
    """Inputs that have the examples, with their axes, and the axes of the results."""
    name, args, kwargs = call.name, call.args, call.kwargs
    if name in RECURRENT:
        # (input, state, weights, bias, layers, dropout, train, both ways, batch first)
        if not isinstance(args[1], (Tensor, tuple, list)) or len(args) != 9:
            return None  # packed sequences: their examples are not runs of entries
        first, states = 0 if args[8] else 1, flat(args[1])
        drops = args[5] and args[6] and args[4] > 1  # random numbers, drawn once
        if drops or args[0].dim() != 3 or args[0].shape[first] != batch:
            return None
        inputs = [(args[0], first), *((s, 1) for s in states)]
        return inputs, [first, *[1] * len(states)]
    if name not in LAYERS | CELLS | PLAIN:
        return None
    weights = {id(p.tensor) for p in call.given}
    given = flat((args, kwargs))
    inputs = [
        (t, 0)
        for t in (given[:1] if name in LAYERS else given)
        if isinstance(t, Tensor) and not isinstance(t, nn.Parameter)
        if id(t) not in weights and t.dim() and t.shape[0] == batch
    ]
    outputs = [0, 0] if name == "lstm_cell" else [0]
    return (inputs, outputs) if inputs else None
