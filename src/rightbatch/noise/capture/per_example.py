"""Squared gradient norms of single examples, exactly, for any model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from rightbatch.core.trees import slice_batch, stack
from rightbatch.noise.capture.group_norms import Key, Tally
from rightbatch.noise.capture.listening import Listener, test_independence
from rightbatch.noise.capture.rules import square

Loss = Callable[[nn.Module, Any], Tensor]
CHUNK = 8  # examples whose gradients are made at once where all are [assumed]


class PerExample:
    r"""$|g_b|^2$ of every example, and the batch's gradient, in one backward pass.

    The norms are taken inside the weight gradients where every parameter can be seen
    there, which is tested on the first batch; else by ``torch.func``, a few examples
    at a time; else one example after the other.

    Args:
        model: Not changed; no BatchNorm in training mode, which has no such gradient.
        parameters: Which gradients count.
        loss: ``(model, batch) ->`` sum of the examples' losses, a scalar.
        pick: ``(batch, b) ->`` the batch of example ``b`` alone.

    Attributes:
        method: How the last batch was done: ``"inside"``, ``"torch.func"``, ``"loop"``.
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
        self._shared: frozenset[Key] = frozenset()
        self._untied: frozenset[Key] = frozenset()
        self._tested = False

    def squares(self, batch: Any, count: int) -> Tensor:
        """Squared norms, by example and parameter, ``(count, parameters)``.

        The sum of the examples' gradients is added to ``.grad``.
        """
        if self.method == "inside":
            found = self._inside(batch, count)
            if found is not None:
                return found
            self.method = "torch.func"
        if self.method == "torch.func":
            found = self._by_func(batch, count)
            if found is not None:
                return found
            self.method = "loop"
        return self._one_by_one(batch, count)

    def _inside(self, batch: Any, count: int) -> Tensor | None:
        held = [p.grad for p in self.parameters]
        outputs: list[Any] = []
        for _ in range(3):  # once more where shared parameters had to be found first
            for p, old in zip(self.parameters, held, strict=True):
                p.grad = None if old is None else old.clone()
            tally = Tally(count, count, self._shared, self._untied)
            listener = Listener(self.model, self.parameters)
            outputs.clear()
            keep = self.model.register_forward_hook(
                lambda m, a, out: outputs.append(out)
            )
            listener.enter(tally)
            mode = listener.mode
            assert mode is not None
            try:
                loss = self.loss(self.model, batch)
            finally:
                listener.leave()
                keep.remove()
            failed = None
            if not self._tested and outputs and count > 1 and not mode.coupled:
                failed = test_independence(mode, outputs[-1], count, count)
                self._shared, self._untied = tally.shared, tally.untied
            loss.backward()
            tally.close()
            listener.close()
            self._untied |= tally.surprises & self._shared
            self._shared |= tally.surprises
            if not tally.surprises:
                break
        seen = {key.index for key in tally.squares}
        reached = {i for i, p in enumerate(self.parameters) if p.grad is not None}
        if (
            failed
            or tally.conflicts
            or mode.coupled
            or tally.surprises
            or reached - seen
        ):
            for p, old in zip(self.parameters, held, strict=True):
                p.grad = old
            return None
        self._tested = True
        found = torch.zeros(count, len(self.parameters), dtype=torch.float64)
        for key, squares in tally.squares.items():
            found[:, key.index] += squares.double().cpu()
        return found

    def _by_func(self, batch: Any, count: int) -> Tensor | None:
        """``vmap(grad)`` over the examples, whose batches must be stackable."""
        whole = _Loss(self.model, self.loss)
        named = {n: p.detach() for n, p in whole.named_parameters()}
        mine = {id(p): i for i, p in enumerate(self.parameters)}
        order = [(n, mine[id(p)]) for n, p in whole.named_parameters() if id(p) in mine]

        def alone(values: dict[str, Tensor], one: Any) -> Tensor:
            return functional_call(whole, values, (one,))

        found = torch.zeros(count, len(self.parameters), dtype=torch.float64)
        totals: dict[int, Tensor] = {}
        try:
            stacked = stack([self.pick(batch, b) for b in range(count)])
            for start in range(0, count, CHUNK):
                part = slice_batch(stacked, start, start + CHUNK, count)
                each = vmap(grad(alone), (None, 0), randomness="different")(named, part)
                for name, index in order:
                    g = each[name]
                    end = start + len(g)
                    norms = g.flatten(1).double().square().sum(1)
                    found[start:end, index] = norms.cpu()
                    one = g.sum(0)
                    totals[index] = totals[index] + one if index in totals else one
        except (RuntimeError, TypeError, ValueError):  # what vmap cannot do
            return None
        for index, total in totals.items():
            parameter = self.parameters[index]
            old = parameter.grad
            parameter.grad = total if old is None else old + total
        return found

    def _one_by_one(self, batch: Any, count: int) -> Tensor:
        found = torch.zeros(count, len(self.parameters), dtype=torch.float64)
        for b in range(count):
            loss = self.loss(self.model, self.pick(batch, b))
            gradients = torch.autograd.grad(
                loss, list(self.parameters), allow_unused=True
            )
            for i, (p, g) in enumerate(zip(self.parameters, gradients, strict=True)):
                if g is not None:
                    found[b, i] = float(square(g))
                    p.grad = g.clone() if p.grad is None else p.grad + g
        return found


def _keep(outputs: list[Any], module: nn.Module, args: Any, output: Any) -> None:
    outputs.append(output)


class _Loss(nn.Module):
    """The loss as a module, so that its parameters can be exchanged."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self, batch: Any) -> Tensor:
        return self._loss(self.model, batch)
