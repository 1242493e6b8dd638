"""Squared gradient norms of single examples, exactly, for any model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch.noise.capture.forward_pass import ForwardPass
from rightbatch.noise.capture.group_norms import GroupNorms, SharedParameters
from rightbatch.noise.capture.independence import misplaced_gradients
from rightbatch.noise.norms import squared_norm

Loss = Callable[[nn.Module, Any], Tensor]
TRIES = 3  # passes of the first batch: shared parameters are found in one [assumed]


class PerExample:
    r"""$|g_b|^2$ of every example, and the batch's gradient.

    The norms are taken inside the weight gradients of one backward pass where every
    parameter can be seen there, which is tested on the first batch; else one example
    after the other.

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
        self._shared = SharedParameters()
        self._tested = False

    def squares(self, batch: Any, count: int) -> Tensor:
        """Squared norms, by example and parameter, ``(count, parameters)``.

        The sum of the examples' gradients is added to ``.grad``.
        """
        if self.method == "inside":
            squares = self._inside(batch, count)
            if squares is not None:
                return squares
            self.method = "loop"
        return self._one_by_one(batch, count)

    def _inside(self, batch: Any, count: int) -> Tensor | None:
        before = [p.grad for p in self.parameters]
        for _ in range(TRIES):
            for p, grad in zip(self.parameters, before, strict=True):
                p.grad = None if grad is None else grad.clone()
            norms = GroupNorms(count, count, self._shared)
            coupled = self._pass(batch, norms)
            self._shared.learn(norms.newly_shared)
            if not norms.newly_shared:
                break
        seen = {key.index for key in norms.squares}
        reached = {i for i, p in enumerate(self.parameters) if p.grad is not None}
        if coupled or norms.conflicts or norms.newly_shared or reached - seen:
            for p, grad in zip(self.parameters, before, strict=True):
                p.grad = grad
            return None
        self._tested = True
        squares = torch.zeros(count, len(self.parameters), dtype=torch.float64)
        for key, values in norms.squares.items():
            squares[:, key.index] += values.double().cpu()
        return squares

    def _pass(self, batch: Any, norms: GroupNorms) -> bool:
        """One forward and backward pass; whether examples touch each other in it."""
        outputs: list[Any] = []
        forward = ForwardPass(self.model, self.parameters)
        hook = self.model.register_forward_hook(lambda m, a, out: outputs.append(out))
        forward.enter(norms)
        mode = forward.mode
        assert mode is not None
        try:
            loss = self.loss(self.model, batch)
        finally:
            forward.leave()
            hook.remove()
        coupled = mode.coupled
        if not self._tested and outputs and norms.count > 1 and not coupled:
            coupled = bool(misplaced_gradients(mode, outputs[-1]))
        loss.backward()
        norms.close()
        forward.close()
        return coupled

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
