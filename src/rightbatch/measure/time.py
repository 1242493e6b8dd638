"""Step time against micro-batch: interleaved rounds, medians, both clocks."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from rightbatch.core.errors import JobError
from rightbatch.core.estimate import Estimate
from rightbatch.core.trees import to_device
from rightbatch.job.job import Job
from rightbatch.measure.hardware import PressureGauge
from rightbatch.measure.measurements import Contention, TimePoint
from rightbatch.training.run_state import RunState

MIN_SIZES = 6
MIN_ROUNDS, MAX_ROUNDS = 5, 40
STAIRS_FROM = 16  # below, one example more is a good deal more work
VISIT_S = 0.012  # repeat small steps within a visit until so much has passed [assumed]
PAYS = 1.1  # examples per second must still grow by so much at a doubling [assumed]
TIGHT = 0.02  # stop when every median is known within 2 % [assumed]


@dataclass
class _Visits:
    """Medians of every visit to one size, and the parts of its step."""

    wall: list[float] = field(default_factory=list)
    process: list[float] = field(default_factory=list)
    fetch: list[float] = field(default_factory=list)


def step_sizes(job: Job, ranks: int = 1) -> list[int]:
    """Micro-batches to time first: doubling from 1 past twice today's batch.

    At least six where the data set allows; none beyond the data set. `measure_times`
    goes on doubling while larger ones pay. One size just past a power of two tells
    whether step time climbs in stairs.
    """
    top = min(job.length, max(2 * job.batch_size, 128))
    sizes = [ranks]
    while sizes[-1] * 2 <= top:
        sizes.append(sizes[-1] * 2)
    if len(sizes) < MIN_SIZES:  # a tiny data set: take what whole numbers there are
        sizes = sorted({round(1 + (top - 1) * i / 7) for i in range(8)})
    stair = 2 ** (min(job.batch_size, top // 2).bit_length() - 1) + 1
    if stair > STAIRS_FROM and len(sizes) > MIN_SIZES:
        sizes = sorted({*sizes, stair})
    sizes = [size for size in sizes if size % ranks == 0]
    if job.batch_size <= top:
        sizes = sorted({*sizes, job.batch_size})
    return sizes


def measure_times(
    run: RunState,
    *,
    budget_s: float,
    sizes: list[int] | None = None,
    tick: Callable[[int, int], None] = lambda size, visit: None,
    keep: Callable[[tuple[TimePoint, ...]], None] = lambda points: None,
) -> tuple[tuple[TimePoint, ...], Contention, tuple[str, ...]]:
    """Time whole steps at several micro-batches in interleaved, shuffled rounds.

    The learning rate is zero meanwhile: the same work is done, nothing diverges. On
    several ranks all make the same steps, and the exchange of gradients counts.

    Args:
        run: What to time; it is left somewhere else: `RunState.rewind` it.
        budget_s: Wall seconds; three rounds are made even when they take longer.
        sizes: Micro-batches; default `step_sizes`.
        tick: Called with (size, visits so far) after every visit.
        keep: Called with the points so far after every round.

    Returns:
        The points in order of size; whether the machine was busy; notes on sizes that
        were left out.

    Raises:
        JobError: The model fails at a size above 1.
    """
    _step(run, min(run.job.batch_size, run.job.length))  # makes the optimizer's state
    for group in run.optimizer.param_groups:
        group["lr"] = group["lr"] * 0.0
    gauge, started = PressureGauge(), time.monotonic()
    sizes = sizes or step_sizes(run.job, run.ranks.size)
    visits, notes = _warm_up(run, sizes, budget_s)
    order, shuffler, updates = list(visits), random.Random(0), []
    points: tuple[TimePoint, ...] = ()
    for count in range(MAX_ROUNDS):
        elapsed = time.monotonic() - started
        late = count >= 3 and elapsed * (1 + 1 / count) > budget_s
        known = count >= MIN_ROUNDS and all(_tight(v.wall) for v in visits.values())
        if run.ranks.first(late or known):
            break
        shuffler.shuffle(order)
        for size in order:
            _visit(run, size, visits[size])
            tick(size, len(visits[size].wall))
        updates.append(_update_time(run))
        points = _points(visits, statistics.median(updates))
        keep(points)
    on_cpu = run.device.type == "cpu"
    ratios = [p.step_time_s.value / max(p.process_time_s.value, 1e-9) for p in points]
    contention = gauge.contention(statistics.median(ratios) if on_cpu else 1.0)
    if not on_cpu or run.ranks.size > 1:
        # CPU time says nothing of a step on an accelerator, or of waiting for others.
        contention = replace(contention, busy=False)
    return points, contention, notes


def _warm_up(
    run: RunState, sizes: list[int], budget_s: float
) -> tuple[dict[int, _Visits], tuple[str, ...]]:
    """Two unmeasured steps at every size; growth ends where time or memory does."""
    visits: dict[int, _Visits] = {}
    notes: list[str] = []
    queue, rate = list(sizes), 0.0
    today = min(run.job.batch_size, run.job.length)
    while queue:
        size = queue.pop(0)
        try:
            fits = _step(run, size)
            # The best of them: one stall must not end the growth.
            seconds = run.ranks.first(min(time_steps(run)[0])) if fits else math.inf
        except JobError as error:
            if size < today:
                notes.append(f"batch {size} fails and is left out: {error.seen}")
                continue
            raise JobError(
                f"the job fails at batch size {size}",
                seen=f"{error.what}: {error.seen}",
                why="its cost there cannot be measured",
                fix=error.fix,
            ) from error
        if not fits:
            notes.append(f"batch {size} does not fit in memory")
            break
        visits[size] = _Visits()
        enough = len(visits) >= MIN_SIZES and size >= today
        if enough and seconds * 2 > budget_s / 10:
            break
        larger = 2 * size
        pays = size / seconds > PAYS * rate
        if not queue and pays and larger <= run.job.length:
            queue.append(larger)
        rate = size / seconds
    if not visits:
        raise JobError("no batch size could be timed", seen="; ".join(notes))
    return visits, tuple(notes)


def _step(run: RunState, size: int) -> bool:
    """One step at once; whether it fitted in memory whole."""
    run.split(size)
    fitted = run.step().retries == 0
    wait_for(run.device)
    return fitted


def time_steps(
    run: RunState, visit_s: float = VISIT_S
) -> tuple[list[float], list[float]]:
    """Wall and CPU seconds of each of some steps: for a short visit, one at the least.

    Collective: the first rank's clock ends the visit for all.
    """
    wall: list[float] = []
    process: list[float] = []
    until = time.perf_counter() + visit_s
    while run.ranks.first(not wall or time.perf_counter() < until):
        w, p = time.perf_counter(), time.process_time()
        run.step()
        wait_for(run.device)
        wall.append(time.perf_counter() - w)
        process.append(time.process_time() - p)
    return wall, process


def _visit(run: RunState, size: int, visits: _Visits) -> None:
    _step(run, size)  # the caches still hold another size
    wall, process = time_steps(run)
    visits.wall.append(statistics.median(wall))
    visits.process.append(statistics.median(process))
    w = time.perf_counter()
    for part in run.next_batch():
        to_device(part.data, run.device)
    visits.fetch.append(time.perf_counter() - w)


def _update_time(run: RunState) -> float:
    times = []
    for _ in range(5):
        wait_for(run.device)
        started = time.perf_counter()
        run.optimizer.step()
        wait_for(run.device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def wait_for(device: torch.device) -> None:
    """Let an accelerator finish what was queued, so that a clock means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    elif device.type == "xpu":
        torch.xpu.synchronize(device)


def _tight(samples: list[float]) -> bool:
    return Estimate.median(samples, "s").relative < TIGHT


def _points(visits: dict[int, _Visits], update: float) -> tuple[TimePoint, ...]:
    return tuple(
        TimePoint(
            micro_batch=size,
            step_time_s=Estimate.median(visit.wall, "s"),
            process_time_s=Estimate.median(visit.process, "s"),
            update_time_s=update,
            fetch_time_s=statistics.median(visit.fetch),
            rounds=tuple(visit.wall),
            process_rounds=tuple(visit.process),
        )
        for size, visit in sorted(visits.items())
    )
