"""A scheduler that counts steps, made to count examples."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import rightbatch as rb
from made_optimizers import sgd


def test_a_scheduler_made_to_count_examples_ends_at_the_same_example() -> None:
    fixed, grown = sgd(1.0), sgd(1.0)
    make = torch.optim.lr_scheduler.LinearLR
    usual = make(fixed, 1.0, 0.1, total_iters=100)
    other = rb.schedules.ByExamples(
        make(grown, 1.0, 0.1, total_iters=100), batch_size=10
    )
    for _ in range(60):
        fixed.step()
        usual.step()
    sizes = [10] * 20 + [25] * 8 + [100] * 2
    for size in sizes:
        grown.step()
        other.step(examples=size)
    assert sum(sizes) == 600
    assert grown.param_groups[0]["lr"] == pytest.approx(fixed.param_groups[0]["lr"])
    saved = other.state_dict()
    other.step(examples=400)
    other.load_state_dict(saved)
    assert other.examples == 600


class Watching:
    """A scheduler of somebody's own that wants to hear the loss."""

    def step(self, loss: float) -> None: ...


def test_what_counts_no_steps_is_refused_when_it_is_made() -> None:
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(sgd())
    chained: Any = torch.optim.lr_scheduler.ChainedScheduler(
        [torch.optim.lr_scheduler.ConstantLR(sgd())]
    )
    chained._schedulers.append(plateau)
    for scheduler in (plateau, chained, Watching()):
        with pytest.raises(rb.SettingError, match="its steps alone") as refused:
            rb.schedules.ByExamples(scheduler, batch_size=8)
        assert "step(" in refused.value.seen
    with pytest.raises(rb.SettingError, match=r"no step\(\)"):
        rb.schedules.ByExamples(object(), batch_size=8)
