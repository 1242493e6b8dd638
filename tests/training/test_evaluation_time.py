"""Slow evaluations are put off by the clock, fast ones never; nothing else changes."""

from __future__ import annotations

import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import rightbatch as rb
from cases import regression_job
from resumed_runs import same, state_of
from rightbatch.training import loop


class Clock:
    """Time that passes in steps and in evaluations only."""

    def __init__(self, step_s: float, evaluate_s: float) -> None:
        self.now, self.step_s, self.evaluate_s = 0.0, step_s, evaluate_s
        self.trained = self.evaluated = 0.0

    def job(self) -> rb.Job:
        plain = regression_job()

        def loss(model: torch.nn.Module, batch: Any) -> torch.Tensor:
            self.now += self.step_s
            self.trained += self.step_s
            value: Any = plain.loss(model, batch)
            return value

        def evaluate(model: torch.nn.Module) -> float:
            self.now += self.evaluate_s
            self.evaluated += self.evaluate_s
            return 1.0

        return replace(plain, loss=loss, evaluate=evaluate)


def trained(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, **more: Any
) -> tuple[rb.Run, list[int]]:
    """A run of 320 steps by that clock, and the steps at which it was evaluated."""
    times = types.SimpleNamespace(
        perf_counter=lambda: clock.now, process_time=lambda: clock.now
    )
    monkeypatch.setattr(loop, "time", times)
    run = rb.train(clock.job(), epochs=20, **more)
    return run, [row.steps for row in run.rows]


def test_fast_evaluations_fall_where_they_always_did(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, instant = trained(Clock(1.0, 0.0), monkeypatch)
    run, fast = trained(Clock(1.0, 0.04), monkeypatch)
    assert fast == instant
    assert fast[:3] == [4, 5, 6]
    assert not run.events
    _, forced = trained(Clock(1.0, 50.0), monkeypatch, evaluate_share=1e9)
    assert forced == instant


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_slow_evaluations_take_their_share(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(1.0, 10.0)
    run, steps = trained(clock, monkeypatch, evaluate_share=share)
    assert steps[0] == 4  # the first always runs
    assert steps[-1] == 320  # and the last
    assert clock.evaluated <= share * clock.trained + 1 + 2 * 10
    assert clock.evaluated >= 0.5 * min(share, 0.25) * clock.trained
    assert run.last.time_s == pytest.approx(320)
    (event,) = run.events
    assert "evaluate has taken 10 s" in event
    assert f"{share:.0%}" in event


def test_only_first_and_last_at_a_share_of_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, steps = trained(Clock(1.0, 10.0), monkeypatch, evaluate_share=0)
    assert steps == [4, 320]
    with pytest.raises(rb.SettingError, match="must not be negative"):
        rb.train(regression_job(), epochs=1, evaluate_share=-0.1)


def test_putting_off_does_not_change_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(Clock(1.0, 0.0), monkeypatch, out=tmp_path / "a")
    trained(Clock(1.0, 20.0), monkeypatch, out=tmp_path / "b")
    one, two = state_of(tmp_path / "a"), state_of(tmp_path / "b")
    assert all(same(one[key], two[key]) for key in one.keys() - {"due", "events"})
