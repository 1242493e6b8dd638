"""The noise scale of a job at given weights, in one call."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from rightbatch.core.errors import JobError, SettingError
from rightbatch.core.estimate import Estimate
from rightbatch.core.findings import Findings
from rightbatch.core.guards import preserved_rng
from rightbatch.core.whole_number import whole_number
from rightbatch.job.job import Job
from rightbatch.lint.linter import check
from rightbatch.measure.noise import Comparison, compare, group_count
from rightbatch.noise.capture.per_example import PerExample
from rightbatch.noise.norms import squared_norm
from rightbatch.noise.statistics.moments import jackknife_moments, ratio
from rightbatch.noise.statistics.reading import USES, Part, by_parts
from rightbatch.noise.statistics.scale import MetricNoise, NoiseScale
from rightbatch.training.run_state import RunState

GROUP = 8  # examples in a group where the loss allows any [assumed]
MOST_GROUPS = 4096


def noise_scale(
    job: Job,
    *,
    at: nn.Module | None = None,
    budget_s: float = 60.0,
    precision: float = 0.2,
    exact: bool = False,
    group_size: int | None = None,
    micro_batch: int | None = None,
    seed: int = 0,
    tick: Callable[[float], None] = lambda done: None,
) -> NoiseScale:
    """Measure the gradient noise scale of a job at fixed weights.

    Groups of examples are drawn until the interval is narrow enough or the time is
    spent. With ``exact`` every example of the data set is looked at once: that is the
    number itself, no estimate.

    Args:
        job: What is trained.
        at: A model with the weights to measure at; default the job's initial ones.
        budget_s: Seconds to spend; one round of groups is always made.
        precision: Relative half width of the interval at which to stop.
        exact: Measure over the full data set, example by example.
        group_size: Examples in a group; needed where examples depend on each other
            (BatchNorm, contrastive losses): noise is then that of batches of this size.
        micro_batch: Largest number of examples in memory at once; default a group's.
        seed: Orders the examples drawn.
        tick: Called with the share of the work done.

    Returns:
        The noise scale; `NoiseScale.verdict` says what is known.

    Raises:
        JobError: The job cannot be measured, or its examples depend on each other and
            no ``group_size`` was given.
        SettingError: A setting makes no sense.

    Example:
        >>> import rightbatch as rb
        >>> noise = rb.noise_scale(rb.load_job("digits"), budget_s=2)
        >>> 0 < noise.noise_scale.low < noise.noise_scale.value
        True
    """
    seed = whole_number(seed, "seed", least=0)
    if group_size is not None:
        group_size = whole_number(group_size, "group_size")
    if micro_batch is not None:
        micro_batch = whole_number(micro_batch, "micro_batch")
    _check_settings(job, budget_s, precision, group_size)
    findings = check(job)
    _refuse(findings, exact, group_size)
    with preserved_rng():
        run = RunState.start(job, alone=True)
        if at is not None:
            _load(run.network, at)
        run.network.train()
        torch.manual_seed(seed)
        if exact:
            return _exact(run, micro_batch or GROUP * 8, tick)
        size = group_size or min(GROUP, max(1, job.length // 4))
        return _sampled(run, budget_s, precision, size, micro_batch or size, seed, tick)


def _sampled(
    run: RunState,
    budget_s: float,
    precision: float,
    size: int,
    micro_batch: int,
    seed: int,
    tick: Callable[[float], None],
) -> NoiseScale:
    """Ever more groups, each round twice as many, all of them compared with all."""
    job, started = run.job, time.monotonic()
    generator = torch.Generator().manual_seed(seed)
    count = group_count(sum(p.numel() for p in run.parameters))
    draws: list[Tensor] = []
    while True:
        more = count - len(draws)
        draws += [
            torch.randint(job.length, (size,), generator=generator) for _ in range(more)
        ]
        round_started = time.monotonic()
        groups = compare(
            run,
            draws,
            micro_batch=micro_batch,
            tick=lambda: tick(min(1.0, (time.monotonic() - started) / budget_s)),
        )
        took, spent = time.monotonic() - round_started, time.monotonic() - started
        estimate = _estimated(run, groups, size)
        enough = estimate.noise_scale.relative <= precision or count >= MOST_GROUPS
        if enough or spent + 2 * took > budget_s:
            return estimate
        count *= 2


def _estimated(run: RunState, groups: Comparison, size: int) -> NoiseScale:
    count = len(groups.losses)
    method = f"{count} groups of {size}, Fieller"

    def part(parameters: list[int]) -> Part:
        moments = jackknife_moments(
            groups.squares[:, parameters].sum(1),
            groups.crosses[:, parameters].sum(1),
            size,
        )
        return Part.of(moments, samples=count, n=count * size, method=method)

    own, metrics = groups.own(size), {}
    if own is not None:
        metrics["adam_curvature"] = MetricNoise(
            noise_scale=ratio(own, samples=count, n=count * size, method=method),
            use=USES["adam_curvature"],
            dominated_by={},
        )
    return replace(
        by_parts(part, _names(run), [p.numel() for p in run.parameters]),
        metrics=metrics,
        source=f"groups of {size}, drawn with replacement",
        why="at fixed weights any number of independent groups can be drawn",
        batch_size=size,
        steps=count,
        window=count * size,
        example=run.job.example,
    )


def _names(run: RunState) -> list[str]:
    names = {id(p): n for n, p in run.network.named_parameters()}
    return [names.get(id(p), "?") for p in run.parameters]


def _exact(
    run: RunState, micro_batch: int, tick: Callable[[float], None]
) -> NoiseScale:
    """Every example once: the population's own mean and variance."""
    job, model, parameters = run.job, run.network, run.parameters
    model_loss, device = job.mean_loss, run.device

    def total_loss(one: nn.Module, indices: Tensor) -> Tensor:
        loss, count = model_loss(one, job.batch(indices, device))
        return loss * len(indices) if count is None else loss

    counter = PerExample(
        model, parameters, total_loss, lambda indices, b: indices[b : b + 1]
    )
    squares = torch.zeros(len(parameters), dtype=torch.float64)
    order = torch.arange(job.length)
    run.optimizer.zero_grad(set_to_none=True)
    for part in order.split(micro_batch):
        squares += counter.squares(part, len(part)).sum(0)
        tick(min(1.0, float(part[-1] + 1) / job.length))
    zero = torch.zeros(())
    whole = torch.stack(
        [zero if p.grad is None else squared_norm(p.grad.double()) for p in parameters]
    ).double()
    signal = whole / job.length**2
    noise = squares / job.length - signal

    def part(parameters: list[int]) -> Part:
        trace, norm = float(noise[parameters].sum()), float(signal[parameters].sum())
        return Part(
            Estimate.exact(trace / norm if norm > 0 else math.inf, "examples"),
            Estimate.exact(trace),
            Estimate.exact(norm),
        )

    return replace(
        by_parts(part, _names(run), [p.numel() for p in run.parameters]),
        source=f"every example by itself ({counter.method})",
        why="exact over the full data set was asked for",
        batch_size=job.length,
        steps=job.length,
        window=job.length,
        example=job.example,
        population=job.length,
    )


def _load(model: nn.Module, other: nn.Module) -> None:
    try:
        model.load_state_dict(other.state_dict())
    except RuntimeError as error:
        raise SettingError(
            "`at` is not the job's model",
            seen=str(error).splitlines()[-1].strip()[:70],
            fix="a model made by the job's own factory, trained further",
        ) from error


def _check_settings(
    job: Job, budget_s: float, precision: float, group_size: int | None
) -> None:
    if not isinstance(job, Job):
        raise SettingError(
            "the first argument is no job",
            seen=repr(job)[:60],
            fix='a Job; rb.load_job("digits") gives a built-in one',
        )
    if not budget_s > 0:
        raise SettingError(
            f"budget_s={budget_s} leaves no time", fix="seconds, above 0"
        )
    if not precision > 0:
        raise SettingError(
            f"precision={precision} can never be reached", fix="0.2 for ± 20 %"
        )
    if group_size is not None and group_size > job.length:
        raise SettingError(
            f"group_size={group_size} is not between 1 and the data set's {job.length}"
        )


def _refuse(findings: Findings, exact: bool, group_size: int | None) -> None:
    for finding in findings.items:
        if finding.severity == "error":
            raise JobError(
                finding.what, seen=finding.seen, why=finding.why, fix=finding.fix
            )
    if findings.coupled and (group_size is None or exact):
        raise JobError(
            "the examples of a batch touch each other",
            seen=f"in a {findings.coupled}, see rb.check(job)",
            why="an example has no gradient of its own: the noise is defined only for "
            "batches of one size, and is another one at each",
            fix="group_size=B for the noise of batches of B examples",
        )
