"""A job whose steps take as long as told, by a clock that only they move."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn

import rightbatch as rb
from cases import regression_job

CLOCKED = (
    "core.deadline",
    "core.progress",
    "lint.job_rules",
    "lint.probe",
    "measure.time",
    "measure.threads",
    "measure.trajectory",
    "tuning.measure_job",
)


class Clock:
    """Stands in for the module ``time``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        for module in CLOCKED:
            monkeypatch.setattr(f"rightbatch.{module}.time", self)

    def perf_counter(self) -> float:
        return self.now

    monotonic = process_time = perf_counter


def slow_job(
    clock: Clock,
    *,
    fixed_s: float = 0.0,
    example_s: float,
    examples: int = 2000,
    **more: Any,
) -> rb.Job:
    """A step of b examples takes ``fixed_s + example_s * b``, a forward pass a third.

    Args:
        clock: What shows it.
        fixed_s: Seconds of a step of no examples.
        example_s: Seconds of every example.
        examples: In the data set.
        more: Other fields of the job.
    """

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        forward_s = (fixed_s + example_s * len(batch[0])) / 3

        def backward(gradient: Tensor) -> None:
            clock.now += 2 * forward_s

        clock.now += forward_s
        value = (model(batch[0]) - batch[1]).square().mean()
        if value.requires_grad:
            value.register_hook(backward)
        return value

    return regression_job(examples=examples, loss=loss, **more)
