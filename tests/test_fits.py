"""Both laws: the truth is found, the interval holds it, nonsense is refused."""

import dataclasses
import math
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rightbatch as rb
from cases import made_up, regression_job
from reference import steps_by_grid
from rightbatch.core.estimate import Estimate
from rightbatch.fit.stairs import stair
from rightbatch.fit.step_time import fit_time
from rightbatch.measure.record import Contention, TimePoint
from rightbatch.measure.time import measure_times, step_sizes
from rightbatch.memory.envelope import fit_points
from rightbatch.memory.peak import measure_memory
from rightbatch.memory.points import MemoryPoint
from rightbatch.training.run_state import RunState


@settings(max_examples=25, deadline=None)
@given(st.floats(1e-5, 1e-1), st.floats(1e-6, 1e-2))
def test_an_affine_truth_is_found(t0: float, t1: float) -> None:
    law = fit_time(made_up(t0=t0, t1=t1).times)
    assert law.kind == "affine"
    for b in (1, 10, 100):
        assert law.seconds(b) == pytest.approx(t0 + t1 * b, rel=1e-3)
    assert law.step_seconds(16, 4) == pytest.approx(
        4 * (t0 + 16 * t1) - 3 * 0.1 * t0, rel=1e-3
    )


def test_noise_in_times_widens_the_interval_that_holds_the_truth() -> None:
    quiet, loud = (fit_time(made_up(jitter=j).times) for j in (0.01, 0.1))
    assert quiet.half_batch.relative < loud.half_batch.relative
    assert loud.half_batch.low <= 2e-3 / 5e-4 <= loud.half_batch.high


def test_a_bent_truth_is_not_forced_into_a_line() -> None:
    import dataclasses

    found = made_up()
    points = []
    for p in found.times:
        seconds = 1e-3 + 4e-4 * p.micro_batch**1.25
        rounds = (seconds,) * 9
        value = dataclasses.replace(
            p.step_time_s, value=seconds, low=seconds, high=seconds
        )
        points.append(dataclasses.replace(p, step_time_s=value, rounds=rounds))
    law = fit_time(points)
    assert law.kind == "affine-power"
    assert law.parameters[2] == pytest.approx(1.25, rel=0.01)
    assert law.held_out["affine-power"] < 0.5 * law.held_out["affine"]


def test_a_busy_machine_is_judged_by_cpu_time() -> None:
    import dataclasses

    slow = [
        dataclasses.replace(p, rounds=tuple(3 * r for r in p.rounds))
        for p in made_up().times
    ]
    busy = Contention(busy=True, stalled=0.9, reason="")
    law = fit_time(slow, busy)
    assert law.clock == "process"
    assert law.seconds(100) == pytest.approx(2e-3 + 5e-2, rel=1e-3)


def test_two_sizes_are_no_law() -> None:
    with pytest.raises(rb.UnidentifiedError, match="at least 3"):
        fit_time(made_up(sizes=(1, 2)).times)


def test_the_line_of_memory_is_safe_above() -> None:
    """A peak is convex: max(100 + b, 40 + 3 b). The upper line never falls short."""

    def peak(b: int) -> int:
        return max(100 + b, 40 + 3 * b)

    law = fit_points(
        [MemoryPoint(micro_batch=b, peak_memory_bytes=peak(b)) for b in (1, 8, 64, 128)]
    )
    assert law.peak(4096) == pytest.approx(peak(4096))
    assert law.largest(1000) == 320
    assert law.largest(10) == 0


def test_measured_times_and_memory_of_a_real_step() -> None:
    job = regression_job(examples=500, width=200)
    points, contention, notes = measure_times(RunState.start(job), budget_s=1.0)
    sizes = [p.micro_batch for p in points]
    assert sizes[: len(step_sizes(job))] == step_sizes(job)
    assert len(sizes) >= 6
    assert not notes
    assert contention.reason
    for p in points:
        assert 0 < p.fetch_time_s < 10 * p.step_time_s.value
        assert p.step_time_s.low <= p.step_time_s.value <= p.step_time_s.high
    run = RunState.start(job)
    run.step()
    small, large = (measure_memory(run, b).peak_memory_bytes for b in (100, 400))
    # 201 floats an example at the least, and no tenfold of it.
    assert 300 * 201 * 4 <= large - small <= 10 * 300 * 201 * 4


def test_a_size_that_fails_is_named() -> None:
    """Above today's batch it is an error; below, it is left out and noted."""

    def loss(model: Any, batch: Any) -> Any:
        if len(batch[0]) == 32:
            raise RuntimeError("not this one")
        return model(batch[0]).square().mean()

    with pytest.raises(rb.JobError, match="batch size 32") as failed:
        measure_times(RunState.start(regression_job(loss=loss)), budget_s=1.0)
    assert "not this one" in failed.value.seen
    job = regression_job(loss=loss, batch_size=64)
    points, _, notes = measure_times(RunState.start(job), budget_s=1.0)
    assert 32 not in [p.micro_batch for p in points]
    assert "batch 32 fails" in notes[0]


@pytest.mark.parametrize("length", [3, 7, 20])
def test_small_data_sets_still_have_sizes(length: int) -> None:
    sizes = step_sizes(regression_job(examples=length, batch_size=min(length, 4)))
    assert sizes == sorted(set(sizes))
    assert sizes[-1] <= length
    assert len(sizes) >= min(length, 6)


# Steps to a target


@settings(max_examples=30, deadline=None)
@given(st.floats(20, 2000), st.integers(0, 10_000))
def test_steps_fit_is_least_squares(critical: float, seed: int) -> None:
    """Against a brute-force grid, on scattered truth."""
    random = np.random.default_rng(seed)
    b = np.array([4.0, 16, 64, 256, 1024, 4096])
    steps = 300 * (1 + critical / b) * np.exp(0.05 * random.normal(size=6))
    law = rb.fit_steps(b.tolist(), steps.tolist())
    assert law.critical_batch.value == pytest.approx(steps_by_grid(b, steps), rel=2e-3)


@pytest.mark.slow
def test_steps_intervals_cover() -> None:
    # 600 sets of 7 batches with 10 % scatter; the profile interval holds the truth in
    # 95 %, accepted 91 to 98.
    random = np.random.default_rng(0)
    b = np.geomspace(8, 2048, 7)
    held = [0, 0]
    for _ in range(600):
        steps = 500 * (1 + 100 / b) * np.exp(0.1 * random.normal(size=7))
        law = rb.fit_steps(b.tolist(), steps.tolist())
        held[0] += law.critical_batch.low <= 100 <= law.critical_batch.high
        held[1] += law.min_steps.low <= 500 <= law.min_steps.high
    assert 0.91 <= held[0] / 600 <= 0.98
    assert held[1] / 600 >= 0.93


def test_an_exact_law_is_recovered() -> None:
    b = [8, 32, 128, 512]
    law = rb.fit_steps(b, [100 * (1 + 60 / x) for x in b])
    assert law.critical_batch.value == pytest.approx(60, rel=1e-4)
    assert law.min_steps.value == pytest.approx(100, rel=1e-4)
    assert law.r_squared > 0.999999
    assert law.predict(60) == pytest.approx(200, rel=1e-4)


@pytest.mark.parametrize(
    ("steps", "way"),
    [
        (lambda b: 50_000 / b, "larger batches"),  # all far below the critical batch
        (lambda b: 47.0, "smaller batches"),  # all far above it
        (lambda b: 1000 * math.exp(2 * math.sin(b)), "more runs"),  # chaos
    ],
)
def test_what_cannot_be_told_is_refused(steps: Any, way: str) -> None:
    b = [16.0, 32.0, 64.0, 128.0]
    with pytest.raises(rb.UnidentifiedError) as refused:
        rb.fit_steps(b, [steps(x) for x in b])
    assert way in refused.value.fix


@pytest.mark.parametrize(
    ("b", "s"),
    [([1, 2], [3]), ([1, 2, 0], [1, 1, 1]), ([1, 2, 3], [1, math.nan, 1]), ([], [])],
)
def test_bad_runs_are_refused(b: list[float], s: list[float]) -> None:
    with pytest.raises((rb.SettingError, rb.UnidentifiedError)):
        rb.fit_steps(b, s)


def test_threads_are_picked_by_time_and_left_as_they_were() -> None:
    from rightbatch.measure.threads import WORTH, pick_threads

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        picked, seconds = pick_threads(RunState.start(regression_job()))
        assert torch.get_num_threads() == 2
        assert set(seconds) == {1, 2}
        assert picked == (1 if seconds[1] * WORTH < seconds[2] else 2)
    finally:
        torch.set_num_threads(before)
    torch.set_num_threads(1)
    assert pick_threads(RunState.start(regression_job())) == (1, {})


class Slow:
    """A data set whose examples take a while to come."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, i: int) -> torch.Tensor:
        time.sleep(2e-4)
        return torch.full((3,), float(i))


def test_waiting_for_data_is_no_busy_machine() -> None:
    job = rb.Job(
        model=lambda: torch.nn.Linear(3, 1),
        loss=lambda model, batch: model(batch).square().mean(),
        data=Slow(),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.01),
        batch_size=8,
    )
    points, contention, _ = measure_times(RunState.start(job), budget_s=1.0)
    if contention.stalled is None:
        pytest.skip("the kernel keeps no account of waiting here")
    assert contention.busy == (contention.stalled > 0.1)
    if not contention.busy:
        law = fit_time(points, contention)
        largest = points[-1]
        assert law.seconds(largest.micro_batch) > 0.5 * largest.step_time_s.value
        assert largest.step_time_s.value > 2e-4 * largest.micro_batch


def test_larger_sizes_are_timed_while_they_pay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A step of constant cost: every doubling doubles the rate, to the data's end."""
    now = 0.0
    clock = SimpleNamespace(
        perf_counter=lambda: now, monotonic=lambda: now, process_time=lambda: now
    )
    monkeypatch.setattr("rightbatch.measure.time.time", clock)

    def loss(model: Any, batch: Any) -> Any:
        nonlocal now
        now += 2e-3
        return model(batch[0][:1]).square().mean()

    job = regression_job(examples=2048, batch_size=16, loss=loss)
    points, _, _ = measure_times(RunState.start(job), budget_s=3.0)
    assert points[-1].micro_batch == 2048
    assert points[-1].step_time_s.value == pytest.approx(2e-3)


def test_stairs_are_noticed_and_left_out_of_the_law() -> None:
    """40 % more at 65 than at 64 is a stair; 1/64 more is what the line says."""
    found = made_up(sizes=(1, 2, 4, 8, 16, 32, 64, 128))
    plain = fit_time(found.times)

    def with_65(factor: float) -> tuple[TimePoint, ...]:
        seconds = factor * plain.seconds(65)
        rounds = tuple(seconds * (1 + 0.001 * i) for i in range(-3, 4))
        point = dataclasses.replace(
            found.times[-1],
            micro_batch=65,
            step_time_s=Estimate.median(rounds, "s"),
            rounds=rounds,
        )
        return tuple(sorted((*found.times, point), key=lambda p: p.micro_batch))

    edge, jump = stair(with_65(1.4)) or (0, None)
    assert edge == 64
    assert jump is not None
    assert jump.value == pytest.approx(1.4, abs=0.02)
    level = stair(with_65(1.0))
    assert level is not None
    assert level[1].value == pytest.approx(1.0, abs=0.02)
    assert stair(found.times) is None
    assert fit_time(with_65(1.4)).seconds(128) == pytest.approx(plain.seconds(128))
    plan = rb.decide(dataclasses.replace(found, times=with_65(1.4))).plan
    assert any("stairs: 65 examples" in text for text in plan.limits)
    calm = rb.decide(dataclasses.replace(found, times=with_65(1.0))).plan
    assert not any("stairs" in text for text in calm.limits)
