"""A test, on the very model, that an example's gradient is seen where it belongs."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import torch

from rightbatch.core.trees import tensors
from rightbatch.noise.capture.function_mode import CaptureMode
from rightbatch.noise.capture.group_norms import GroupNorms
from rightbatch.noise.capture.layout import Groups, possible_layouts

OUTSIDE = 1e-4  # share of a gradient allowed outside of its group [assumed]
TRIES = 3  # passes of the test: shared parameters are found in the first [assumed]


def misplaced_gradients(mode: CaptureMode, output: Any) -> dict[int, str] | None:
    """Send a random gradient back from the outputs of the first group's examples only.

    What then arrives in other groups got there because examples touch each other inside
    the model, or because they lie elsewhere than was thought.

    Args:
        mode: The mode of the forward pass just made.
        output: What the model returned.

    Returns:
        The parameters that failed, by index, with what was seen; None if the output
        has no tensor with the examples on its first or second axis.
    """
    real = mode.group_norms
    batch, count = real.batch, real.count
    outputs = [
        t for t in tensors(output) if t.requires_grad and possible_layouts(t, batch)
    ]
    if not outputs:
        return None
    groups = Groups.of(batch, count)
    # Numbers of our own: the training's random stream goes on untouched.
    generator = torch.Generator().manual_seed(0)
    sent = []
    for tensor in outputs:
        gradient = torch.zeros_like(tensor)
        layout = possible_layouts(tensor, batch)[0]
        first_group = layout.split(gradient)[: groups.bounds[1]]
        first_group.copy_(torch.randn(first_group.shape, generator=generator))
        sent.append(gradient)
    test = real
    try:
        for _ in range(TRIES):
            test = real.redirect = GroupNorms(batch, count, real.shared)
            test.lookups.update(real.lookups)
            torch.autograd.grad(
                outputs,
                list(mode.parameters),
                sent,
                retain_graph=True,
                allow_unused=True,
            )
            test.close()
            if not test.newly_shared:
                break
            real.shared.learn(test.newly_shared)
    finally:
        real.redirect = None
    failed: dict[int, str] = {}
    for key, squares in test.squares.items():
        inside = bisect_left(test.groups[key].bounds, groups.bounds[1])
        outside = float(squares[inside:].sum())
        if outside > OUTSIDE * float(squares.sum()):
            share = outside / float(squares.sum())
            failed[key.index] = (
                f"{share:.0%} of an example's gradient is seen elsewhere"
            )
    return failed
