"""Jobs whose truth is known, and measurements made up from known laws."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

import rightbatch as rb
from reference import steps_by_law
from rightbatch.core.estimate import Estimate
from rightbatch.measure.measurements import (
    JobFacts,
    Lane,
    Machine,
    Measurements,
    MetricPoint,
    NoisePoint,
    Race,
    TimePoint,
)
from rightbatch.memory.points import MemoryPoint
from rightbatch.noise.statistics.moments import NoiseMoments, ratio


def regression_job(
    examples: int = 256,
    width: int = 5,
    batch_size: int = 16,
    seed: int = 0,
    **more: Any,
) -> rb.Job:
    """Linear regression with noisy targets: per-example gradients in closed form."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(examples, width, generator=generator)
    truth = torch.arange(1.0, width + 1)
    y = x @ truth[:, None] + torch.randn(examples, 1, generator=generator)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (model(batch[0]) - batch[1]).square().mean()

    given: dict[str, Any] = {
        "model": lambda: nn.Linear(width, 1, bias=False),
        "loss": loss,
        "data": (x, y),
        "optimizer": lambda params: torch.optim.SGD(params, lr=0.01),
        "batch_size": batch_size,
    }
    return rb.Job(**{**given, **more})


def with_target(job: rb.Job, target: float = 2.0) -> rb.Job:
    """The job with its own training loss as evaluation."""
    x, y = job.data

    def evaluate(model: nn.Module) -> float:
        return float((model(x) - y).square().mean())

    return replace(job, evaluate=evaluate, target=target)


def noisy_quadratic_job(
    lr: float, batch_size: int = 16, *, width: int = 128, target: float = 0.004
) -> rb.Job:
    """A bowl whose sides are 30 times as steep one way as another, and its middle.

    `reference.quadratic_steps` says what batches and rates take.
    """
    generator = torch.Generator().manual_seed(0)
    middles = torch.randn(1024, width, generator=generator)
    middles -= middles.mean(0)
    steep = torch.logspace(0, -1.5, width)

    class Place(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.at = nn.Parameter(torch.ones(width))

        def forward(self, middles: Tensor) -> Tensor:
            return 0.5 * (steep * (self.at - middles).square()).sum(1)

    def loss(model: nn.Module, batch: tuple[Tensor]) -> Tensor:
        return model(batch[0]).mean()

    def evaluate(model: nn.Module) -> float:
        return float(model(torch.zeros(1, width))) / width

    return rb.Job(
        model=Place,
        loss=loss,
        data=(middles,),
        optimizer=lambda params: torch.optim.SGD(params, lr=lr),
        batch_size=batch_size,
        evaluate=evaluate,
        target=target,
    )


def made_up(
    *,
    t0: float = 2e-3,
    t1: float = 5e-4,
    critical: float = 64.0,
    today: int = 64,
    sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128),
    jitter: float = 0.0,
    spread: float = 0.02,
    points: int = 8,
    optimizer: str = "SGD",
) -> Measurements:
    """Measurements that follow known laws exactly, up to a stated jitter."""
    generator = torch.Generator().manual_seed(0)

    def rounds(b: int) -> tuple[float, ...]:
        noise = 1 + jitter * torch.randn(9, generator=generator)
        return tuple((float(n) * (t0 + t1 * b)) for n in noise)

    times = []
    for b in sizes:
        r = rounds(b)
        times.append(
            TimePoint(
                micro_batch=b,
                step_time_s=Estimate.median(r, "s"),
                process_time_s=Estimate.median(r, "s"),
                update_time_s=0.1 * t0,
                fetch_time_s=0.0,
                rounds=r,
                process_rounds=r,
            )
        )
    signal = 1.0
    moments = NoiseMoments(
        grad_norm_sq=signal,
        trace=critical * signal,
        var_grad_norm_sq=(spread * signal) ** 2,
        var_trace=(spread * critical) ** 2,
        covariance=0.0,
    )
    noise = tuple(
        NoisePoint(
            step=10 * (i + 1),
            examples=10 * (i + 1) * today,
            loss=1.0 / (i + 1),
            groups=32,
            group_size=16,
            noise_scale=ratio(moments, samples=32, n=512, method="made up"),
            plain=moments,
            preconditioned=moments if optimizer.startswith("Adam") else None,
        )
        for i in range(points)
    )
    return Measurements(
        version="0",
        command="test",
        started="2026-01-01T00:00:00",
        job=JobFacts(
            name="made_up",
            spec="made_up",
            example="example",
            examples=100_000,
            parameters=10,
            optimizer=optimizer,
            family="adam" if optimizer.startswith("Adam") else "sgd",
            decoupled_decay=optimizer == "AdamW",
            lr=0.1,
            momentum=None,
            betas=(0.9, 0.95) if optimizer.startswith("Adam") else None,
            weight_decay=0.01,
            batch_size=today,
            has_evaluate=False,
            target=None,
            goal="min",
            precision="float32",
            seed=0,
        ),
        machine=Machine(
            device="cpu",
            processor="made up",
            cores=2,
            threads=1,
            memory_bytes=2**34,
            python="3",
            torch="2",
        ),
        times=tuple(times),
        memory=tuple(
            MemoryPoint(micro_batch=b, peak_memory_bytes=10_000_000 + 100_000 * b)
            for b in sizes
        ),
        noise=noise,
    )


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Steps of whole runs by batch and rate, as the law of the race has them.

    A rate beyond ``edge`` times the best of its batch diverges.
    """

    least: float = 100.0
    critical: float = 64.0
    power: float = 1.0
    price: float = 2.0
    lr_max: float = 0.2
    edge: float = math.inf

    def steps(self, batch_size: int, lr: float) -> float:
        """From the start to the target."""
        by_law = steps_by_law(
            batch_size, lr, self.critical, self.power, self.price, self.lr_max
        )
        return self.least * by_law

    def best_lr(self, batch_size: int) -> float:
        """Of so many examples per step."""
        return self.lr_max / (1 + self.critical / batch_size) ** self.power


START, TARGET = 3.0, 1.0  # of a made-up race's metric, which is to be small
EARLY = 3000.0  # most of the way is made in the first of so many parts of a run


def a_race(
    truth: Truth,
    settings: Sequence[tuple[int, float]],
    *,
    seconds: float = math.inf,
    scatter: float = 0.0,
    seed: int = 0,
    target: bool = True,
    goal: Literal["min", "max"] = "min",
    slower: Mapping[tuple[int, float], float] | None = None,
    step_s: Callable[[int], float] = lambda batch_size: 2e-3 + 5e-4 * batch_size,
) -> Race:
    """A race whose lanes follow a known law.

    Args:
        truth: What every setting takes.
        settings: A lane for each; given again, on another stream.
        seconds: Whoever has no target by then ends there.
        scatter: Standard deviation of log steps between lanes.
        seed: Of the scatter.
        target: Whether the job has one; else the metric only goes by it.
        goal: ``"max"`` turns the metric round.
        slower: Settings that take so many times what the law says.
        step_s: Seconds of a step of a batch.
    """
    random = np.random.default_rng(seed)
    sign = 1.0 if goal == "min" else -1.0
    lanes: list[Lane] = []
    for batch_size, lr in settings:
        whole = truth.steps(batch_size, lr) * math.exp(scatter * random.normal())
        whole *= (slower or {}).get((batch_size, lr), 1.0)
        steps, metrics = _curve(whole, min(seconds / step_s(batch_size), 1e3 * whole))
        end: Literal["target", "time", "diverged"]
        end = "target" if target and metrics[-1] <= TARGET else "time"
        if lr > truth.edge * truth.best_lr(batch_size):
            steps, metrics, end = [1, 2, 3], [START, 2 * START, math.nan], "diverged"
        lanes.append(
            Lane(
                batch_size=batch_size,
                micro_batch=min(batch_size, 128),
                lr=lr,
                seed=1000 * settings[: len(lanes)].count((batch_size, lr)),
                step_s=step_s(batch_size),
                steps=tuple(steps),
                metrics=tuple(sign * m for m in metrics),
                end=end,
            )
        )
    return Race(
        metric="evaluate",
        goal=goal,
        start=sign * START,
        target=sign * TARGET if target else None,
        lanes=tuple(lanes),
        seconds=sum(lane.seconds for lane in lanes),
    )


def raced(
    found: Measurements,
    truth: Truth,
    settings: Sequence[tuple[int, float]],
    **more: Any,
) -> Measurements:
    """The measurements with `a_race`, its steps taking what theirs take."""
    small, large = found.times[-2:]
    grown = large.step_time_s.value - small.step_time_s.value
    t1 = grown / (large.micro_batch - small.micro_batch)
    t0 = large.step_time_s.value - t1 * large.micro_batch

    def step_s(batch_size: int) -> float:
        pieces = -(-batch_size // large.micro_batch)
        return pieces * t0 + t1 * batch_size - (pieces - 1) * large.update_time_s

    race = a_race(truth, settings, step_s=step_s, **more)
    job = replace(found.job, has_evaluate=True, target=race.target, goal=race.goal)
    return replace(found, job=job, race=race)


def _curve(whole: float, most: float) -> tuple[list[int], list[float]]:
    """A metric that is START at 0 and TARGET after the whole run, evaluated often.

    A power of time: each doubling gains less than the one before, by one factor.
    """
    power = math.log(START / TARGET) / math.log1p(EARLY)
    last = max(int(most), 1)
    steps, metrics = [], []
    step = 1
    while True:
        step = min(step, last)
        steps.append(step)
        metrics.append(START / (1 + EARLY * step / whole) ** power)
        if metrics[-1] <= TARGET or step == last:
            return steps, metrics
        step = max(step + 1, math.ceil(1.02 * step))


def ran_to_target(steps: int) -> Measurements:
    """Measurements whose run met its target after so many steps."""
    found = made_up()
    job = replace(found.job, has_evaluate=True, target=1.0)
    metrics = (
        MetricPoint(step=1, examples=64, metric=3.0),
        MetricPoint(step=steps, examples=64 * steps, metric=0.9),
    )
    return replace(found, job=job, metrics=metrics)


def optimum(t0: float, t1: float, critical: float) -> float:
    """The closed form sqrt(B_crit t0 / t1)."""
    return math.sqrt(critical * t0 / t1)


def rightbatch(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command line, in a process of its own, on one thread."""
    return subprocess.run(
        [sys.executable, "-m", "rightbatch", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
