"""Where a forward pass is listened to: the model, and what recomputes inside it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch.core.torch_private import saved_tensor_hook
from rightbatch.core.trees import tensors
from rightbatch.noise.capture.group_norms import Tally
from rightbatch.noise.capture.layout import Groups, layouts
from rightbatch.noise.capture.mode import TapMode
from rightbatch.noise.capture.plans import Sites

OUTSIDE = 1e-4  # share of a gradient allowed outside of its group [assumed]
TRIES = 3  # passes of the test: shared parameters are found in the first [assumed]


class Listener:
    """Puts a `TapMode` around the forward pass of a measured step.

    Activation checkpointing runs parts of the forward pass again inside the backward
    pass, where nothing of the first time is active. Once it has been seen, every
    submodule gets hooks of its own that put the mode back around the second run;
    before, and for code that no submodule's call surrounds, checkpointed parts are
    left alone.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[Tensor]) -> None:
        self.model, self.parameters = model, parameters
        self.sites = Sites()
        self.mode: TapMode | None = None
        self.checkpointed = False
        self._frames: list[Any] = []
        self._inner: list[Any] = []
        self._stance: Any = None

    def enter(self, tally: Tally, only: frozenset[int] | None = None) -> None:
        """The model's forward pass begins."""
        if self.mode is None or self.mode.tally is not tally:
            self.mode = TapMode(self.parameters, tally, self.sites, only)
            self.mode.allowed = self._allowed
        if self.checkpointed and not self._inner:
            for module in self.model.modules():
                if module is not self.model:
                    self._inner += [
                        module.register_forward_pre_hook(self._enter_inner),
                        module.register_forward_hook(
                            self._leave_inner, always_call=True
                        ),
                    ]
        # A compiled model runs as written while it is listened to.
        self._stance = torch.compiler.set_stance("force_eager")
        self._stance.__enter__()
        self._push()

    def leave(self) -> None:
        """It has ended, well or not."""
        if self._stance is None:
            return
        self._pop()
        stance, self._stance = self._stance, None
        stance.__exit__(None, None, None)

    def close(self) -> None:
        """The backward pass is over."""
        for hook in self._inner:
            hook.remove()
        self._inner.clear()
        if self.mode is not None:
            self.checkpointed |= self.mode.skipped
        self.mode = None

    def _enter_inner(self, module: nn.Module, args: Any) -> None:
        if self.mode is not None:
            self._push()

    def _leave_inner(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._frames:
            self._pop()

    def _push(self) -> None:
        assert self.mode is not None
        self.mode.__enter__()
        self._frames.append(saved_tensor_hook())

    def _pop(self) -> None:
        assert self.mode is not None
        self._frames.pop()
        self.mode.__exit__(None, None, None)

    def _allowed(self) -> bool:
        """Not in a checkpointed stretch whose second run we would not see."""
        return bool(self._frames) and self._frames[-1] is saved_tensor_hook()


def test_independence(
    mode: TapMode, output: Any, batch: int, count: int
) -> dict[int, str] | None:
    """Whether each example's gradient is seen where it belongs, on this very model.

    A random gradient is sent back from the outputs of the first group's examples only.
    What then arrives in other groups got there because examples touch each other inside
    the model, or because they lie elsewhere than was thought.

    Args:
        mode: The mode of the forward pass just made.
        output: What the model returned.
        batch: Examples in it.
        count: Groups.

    Returns:
        The parameters that failed, by index, with what was seen; None if the output
        has no tensor with the examples on its first or second axis.
    """
    ends = [t for t in tensors(output) if t.requires_grad and layouts(t, batch)]
    if not ends:
        return None
    groups = Groups.of(batch, count)
    # Numbers of our own: the training's random stream goes on untouched.
    generator = torch.Generator().manual_seed(0)
    sent = []
    for end in ends:
        cotangent = torch.zeros_like(end)
        rows = layouts(end, batch)[0].split(cotangent)[: groups.bounds[1]]
        rows.copy_(torch.randn(rows.shape, generator=generator))
        sent.append(cotangent)
    real = mode.tally
    shared, untied = real.shared, real.untied
    tally = real
    try:
        for _ in range(TRIES):
            tally = Tally(batch, count, shared, untied)
            real.stand_in = tally
            tally._lookups.update(real._lookups)
            torch.autograd.grad(
                ends, list(mode.parameters), sent, retain_graph=True, allow_unused=True
            )
            tally.close()
            if not tally.surprises:
                break
            untied |= tally.surprises & shared
            shared |= tally.surprises
    finally:
        real.stand_in = None
        real.shared, real.untied = shared, untied
    failed: dict[int, str] = {}
    for key, squares in tally.squares.items():
        inside = bisect_left(tally.groups[key].bounds, groups.bounds[1])
        outside = float(squares[inside:].sum())
        if outside > OUTSIDE * float(squares.sum()):
            share = outside / float(squares.sum())
            failed[key.index] = (
                f"{share:.0%} of an example's gradient is seen elsewhere"
            )
    return failed


def batch_of(args: Any, kwargs: Any, axis: int) -> int | None:
    """Examples in a forward pass: the size that most inputs have on the batch axis.

    The first input's, where as many have another one.
    """
    sizes = [int(t.shape[axis]) for t in tensors((args, kwargs)) if t.dim() > axis]
    return max(sizes, key=sizes.count) if sizes else None
