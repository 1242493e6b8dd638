"""Squared gradient norms of single examples, exactly, for any model."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch.noise.capture.forward_pass import ForwardPass
from rightbatch.noise.capture.group_norms import GroupNorms, ParameterKey
from rightbatch.noise.capture.verification import precision, tolerance, verify
from rightbatch.noise.model_inputs import ModelInputs
from rightbatch.noise.norms import squared_norm

Loss = Callable[[nn.Module, Any], Tensor]
TRIES = 3  # forward passes until it is known where the examples lie [assumed]


class PerExample:
    r"""$|g_b|^2$ of every example, and the batch's gradient.

    The norms are taken inside the weight gradients of one backward pass where every
    parameter can be seen there, else one example after the other. The first batch of
    every shape is done in both ways: only if they agree, the next are done inside.

    Args:
        model: Not changed; no BatchNorm in training mode, which has no such gradient.
        parameters: Which gradients count.
        loss: ``(model, batch) ->`` sum of the examples' losses, a scalar.
        pick: ``(batch, b) ->`` the batch of example ``b`` alone.

    Attributes:
        method: How the last batch was done: ``"inside"`` or ``"loop"``.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Sequence[Tensor],
        loss: Loss,
        pick: Callable[[Any, int], Any],
    ) -> None:
        self.model, self.parameters = model, parameters
        self.loss, self.pick = loss, pick
        self.method = "inside"
        self._forward = ForwardPass(model, parameters)
        self._shared: set[ParameterKey] = set()
        self._agreed: set[Hashable] = set()  # shapes for which both ways gave the same

    def squares(self, batch: Any, count: int) -> Tensor:
        """Squared norms, by example and parameter, ``(count, parameters)``.

        The sum of the examples' gradients is added to ``.grad``.
        """
        if self.method == "loop" or count < 2:
            return self._one_by_one(batch, count)
        before = [p.grad for p in self.parameters]
        inside, shapes = self._inside(batch, count)
        if inside is not None and shapes in self._agreed:
            return inside
        for p, gradient in zip(self.parameters, before, strict=True):
            p.grad = gradient
        truth = self._one_by_one(batch, count)
        if inside is not None and self._agree(inside, truth):
            self._agreed.add(shapes)
        else:
            self.method = "loop"
        return truth

    def _agree(self, inside: Tensor, truth: Tensor) -> bool:
        eps = max(precision(p) for p in self.parameters)
        # Of squares, whose relative error is twice that of norms.
        allowed = 2 * tolerance(eps) * truth + 4 * eps * truth.max()
        return bool(((inside - truth).abs() <= allowed).all())

    def _inside(self, batch: Any, count: int) -> tuple[Tensor | None, Hashable]:
        """The norms inside one pass, or None; the shapes that the model was given."""
        before = [p.grad for p in self.parameters]
        shapes: Hashable = ()
        for _ in range(TRIES):
            for p, gradient in zip(self.parameters, before, strict=True):
                p.grad = None if gradient is None else gradient.clone()
            norms = GroupNorms(count, count, self._shared)
            shapes, known = self._pass(batch, norms)
            self._shared |= norms.newly_shared
            if known and not norms.newly_shared:
                break
        seen = {key.index for key in norms.squares}
        reached = {i for i, p in enumerate(self.parameters) if p.grad is not None}
        if not known or norms.newly_shared or reached - seen:
            return None, shapes
        squares = torch.zeros(count, len(self.parameters), dtype=torch.float64)
        for key, values in norms.squares.items():
            squares[:, key.index] += values.double().cpu()
        return squares, shapes

    def _pass(self, batch: Any, norms: GroupNorms) -> tuple[Hashable, bool]:
        """One forward and backward pass; what the model was given, and if all is known.

        It follows the plan, if there is one for these shapes, and makes one else.
        """
        given: list[ModelInputs] = []
        outputs: list[Any] = []
        plan, forward = self._forward.plan, self._forward

        def begins(module: nn.Module, args: Any, kwargs: Any) -> None:
            inputs = ModelInputs.of(args, kwargs, 0)
            if inputs is not None and inputs.batch == norms.batch:
                given.append(inputs)
                shapes = tuple(i.shapes for i in given)
                forward.enter(norms, inputs, verifies=shapes not in self._agreed)

        def ends(module: nn.Module, args: Any, output: Any) -> None:
            outputs.append(output)
            forward.leave()

        hooks = [
            self.model.register_forward_pre_hook(begins, with_kwargs=True),
            self.model.register_forward_hook(ends),
        ]
        try:
            loss = self.loss(self.model, batch)
        finally:
            forward.leave()
            for hook in hooks:
                hook.remove()
        mode, known = forward.mode, False
        if mode is not None and not mode.coupled and len(outputs) == len(given):
            verdict = verify(mode, outputs) if mode.verifies else None
            known = verdict is None or not (verdict.problem or verdict.relearn)
        loss.backward()
        norms.close()
        known &= mode is not None and not (mode.departed & plan.confirmed)
        forward.close()
        return tuple(i.shapes for i in given), known

    def _one_by_one(self, batch: Any, count: int) -> Tensor:
        squares = torch.zeros(count, len(self.parameters), dtype=torch.float64)
        for b in range(count):
            loss = self.loss(self.model, self.pick(batch, b))
            gradients = torch.autograd.grad(
                loss, list(self.parameters), allow_unused=True
            )
            for i, (p, g) in enumerate(zip(self.parameters, gradients, strict=True)):
                if g is not None:
                    squares[b, i] = float(squared_norm(g))
                    p.grad = g.clone() if p.grad is None else p.grad + g
        return squares
