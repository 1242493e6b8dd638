"""Step time against micro-batch: interleaved rounds, medians, both clocks."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from rightbatch.core.deadline import Deadline
from rightbatch.core.errors import JobError, UnidentifiedError
from rightbatch.core.estimate import Estimate
from rightbatch.core.trees import to_device
from rightbatch.core.units import show_seconds
from rightbatch.core.user_code import READING, user_code
from rightbatch.job.job import Job
from rightbatch.job.loss import scalar_loss
from rightbatch.measure.hardware import PressureGauge
from rightbatch.measure.measurements import Contention, TimePoint
from rightbatch.measure.scatter import pooled_scatter
from rightbatch.training.run_state import RunState

MIN_SIZES = 6
LEAST_SIZES = 3  # below, no law of step time can be fitted
MIN_ROUNDS, MAX_ROUNDS = 5, 40
STAIRS_FROM = 16  # below, one example more is a good deal more work
VISIT_S = 0.012  # repeat small steps within a visit until so much has passed [assumed]
LONG_S = 0.1  # so long a step needs no step before it to fill the caches [assumed]
PAYS = 1.1  # examples per second must still grow by so much at a doubling [assumed]
TIGHT = 0.02  # stop when every median is known within 2 % [assumed]
CLIMB = 4  # from one size to a larger one that is known by it [assumed]
FULL_ROUNDS = 3  # of all sizes that must fit for one beyond today's batch [assumed]
CHEAP = 0.2  # of a round of the sizes so far: such a size is worth one visit [assumed]
# A tuning that can tell anything needs the time of so many of today's steps: about ten
# are timed, ten more are trained and measured, and half is left to race. [assumed]
USEFUL_STEPS = 50


@dataclass
class _Visits:
    """Medians of every visit to one size, and the parts of its step.

    The first visit, to caches and an allocator that do not know the size, counts only
    where there are no more than two others.
    """

    wall: list[float] = field(default_factory=list)
    process: list[float] = field(default_factory=list)
    fetch: list[float] = field(default_factory=list)

    def settled(self) -> _Visits:
        """Those that count."""
        if len(self.wall) <= FULL_ROUNDS:
            return self
        return _Visits(self.wall[1:], self.process[1:], self.fetch[1:])


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
    most_s: float = math.inf,
    example_s: float = 0.0,
    tick: Callable[[int, int], None] = lambda size, visit: None,
    keep: Callable[[tuple[TimePoint, ...]], None] = lambda points: None,
) -> tuple[tuple[TimePoint, ...], Contention, tuple[str, ...]]:
    """Time whole steps at several micro-batches in interleaved, shuffled rounds.

    Every visit is predicted before it is begun. Today's batch comes first, with its
    half and quarter, then smaller and larger ones as far as they fit. The learning
    rate is zero meanwhile: the same work is done, nothing diverges. On several ranks
    all make the same steps, and the exchange of gradients counts.

    Args:
        run: What to time; it is left somewhere else: `RunState.rewind` it.
        budget_s: Wall seconds.
        most_s: Wall seconds that the three sizes a law needs may take.
        example_s: What an example of a step is predicted to take, at the least.
        tick: Called with (size, visits so far) after every visit.
        keep: Called with the points so far after every round.

    Returns:
        The points in order of size; whether the machine was busy; notes on sizes that
        were left out.

    Raises:
        JobError: The model fails at a size above today's batch.
        UnidentifiedError: Three sizes take longer than ``most_s``.
    """
    gauge, deadline = PressureGauge(), Deadline.within(budget_s)
    last = Deadline.within(most_s)
    visits, costs, notes = _try_sizes(run, deadline, last, example_s)
    order, shuffler, updates = list(visits), random.Random(0), [_update_time(run)]
    points = _points(visits, updates[0])
    keep(points)
    for count in range(MAX_ROUNDS):
        late = not deadline.allows(sum(costs[size] for size in visits))
        known = count >= MIN_ROUNDS and all(
            _tight(v.settled().wall) for v in visits.values()
        )
        if run.ranks.first(late or known):
            break
        shuffler.shuffle(order)
        for size in order:
            costs[size] = _visit(run, size, visits[size], costs[size]) or costs[size]
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


def _try_sizes(
    run: RunState, deadline: Deadline, last: Deadline, example_s: float
) -> tuple[dict[int, _Visits], dict[int, float], tuple[str, ...]]:
    """One visit to every size that fits; growth ends where time or memory does.

    Returns:
        The visits, what the latest one to each size cost in seconds, and notes.
    """
    ranks, today = run.ranks, min(run.job.batch_size, run.job.length)
    visits: dict[int, _Visits] = {}
    notes: list[str] = []
    few = min(2 * ranks.size, run.job.length)
    if not ranks.first(last.allows(2 * few * example_s)):
        raise _too_long(run, today * example_s, last)
    costs = _first_cost(run, few)
    needed, others = _by_need(step_sizes(run.job, ranks.size), today, max(costs))
    queue, refused = [*needed, *others], False
    while queue:
        size = queue.pop(0)
        cost, so_far = _predicted(size, costs), sum(costs[s] for s in visits)
        if size in needed or len(visits) < LEAST_SIZES:
            fits = last.allows(cost)
        elif cost <= CHEAP * so_far:
            fits = deadline.allows(cost)
        else:
            rounds = 1 if size < today else FULL_ROUNDS
            fits = deadline.allows(rounds * (so_far + cost))
        if not ranks.first(fits):
            refused = True
            continue
        visit = _Visits()
        try:
            seconds = _visit(run, size, visit, cost)
        except JobError as error:
            if READING in error.what:  # no size is to blame
                raise
            if size < today:
                notes.append(f"batch {size} fails and is left out: {error.seen}")
                continue
            raise JobError(
                f"the job fails at batch size {size}",
                seen=f"{error.what}: {error.seen}",
                why="its cost there cannot be measured",
                fix=error.fix,
            ) from error
        if seconds is None:
            notes.append(f"batch {size} does not fit in memory")
            queue = [other for other in queue if other < size]
            continue
        visits[size], costs[size] = visit, seconds
        if not queue and size == max(visits) and ranks.first(_pays(visits)):
            queue += [2 * size] if 2 * size <= run.job.length else []
    if not visits and not refused:
        raise JobError("no batch size could be timed", seen="; ".join(notes))
    if refused and len(visits) < LEAST_SIZES:
        raise _too_long(run, _predicted(today, costs), last)
    kept = {size: visits[size] for size in sorted(visits)}
    return kept, costs, tuple(notes)


def _too_long(run: RunState, step_s: float, last: Deadline) -> UnidentifiedError:
    """The error that steps are too long to time even three sizes of them."""
    return UnidentifiedError(
        "the budget is too small for this job",
        seen=f"one step of {run.job.batch_size} examples takes about "
        f"{show_seconds(step_s)}; to time three sizes of step "
        f"{show_seconds(last.budget_s)} are left",
        why="without a law of step time no two batches can be compared",
        fix=f"--budget {math.ceil(USEFUL_STEPS * step_s)} at the least",
    )


def _first_cost(run: RunState, few: int) -> dict[int, float]:
    """What a step of few examples costs, once the optimizer has made its state."""
    for group in run.optimizer.param_groups:
        group["lr"] = group["lr"] * 0.0
    try:
        _step(run, few)
    except JobError as error:  # as of models of one fixed size
        if READING in error.what:
            raise
        few = min(run.job.batch_size, run.job.length)
        _step(run, few)
    return {few: run.ranks.first(_step(run, few))}


def _by_need(sizes: list[int], today: int, known: int) -> tuple[list[int], list[int]]:
    """The sizes to time first, and then the others, both in order.

    First are today's batch, its half and its quarter, and what leads there from a
    known size in steps of ``CLIMB``, so that each is predicted well by one before it.
    """
    below = [size for size in sizes if size < today]
    ends = [max((s for s in below if s <= today / k), default=today) for k in (4, 2, 1)]
    climb = []
    while ends[0] > CLIMB * known:
        near = [size for size in sizes if known < size <= CLIMB * known]
        if not near:
            break
        known = near[-1]
        climb.append(known)
    needed = list(dict.fromkeys([*climb, *ends[:2], today]))
    smaller = [s for s in [*below[:1], *reversed(below[1:])] if s not in needed]
    return needed, [*smaller, *(s for s in sizes if s > today)]


def _predicted(size: int, costs: dict[int, float]) -> float:
    """At most what a visit costs, from those made: more examples, in proportion."""
    larger = [s for s in costs if s >= size]
    if larger:
        return costs[min(larger)]
    return costs[max(costs)] * size / max(costs)


def _pays(visits: dict[int, _Visits]) -> bool:
    """Whether the largest size makes clearly more examples a second than the next."""
    rates = [size / min(visits[size].wall) for size in sorted(visits)[-2:]]
    return len(rates) < 2 or rates[1] > PAYS * rates[0]


def _step(run: RunState, size: int) -> float:
    """Seconds of one step at once."""
    started = time.perf_counter()
    run.split(size)
    run.step()
    wait_for(run.device)
    return time.perf_counter() - started


def time_steps(
    run: RunState, visit_s: float = VISIT_S
) -> tuple[list[float], list[float]]:
    """Wall and CPU seconds of each of some steps: for a short visit, one at the least.

    Collective: the first rank's clock ends the visit for all.
    """
    wall: list[float] = []
    process: list[float] = []
    until = time.perf_counter() + visit_s
    step = run.step if run.ranks.size > 1 else partial(_plain_step, run)
    while run.ranks.first(not wall or time.perf_counter() < until):
        w, p = time.perf_counter(), time.process_time()
        step()
        wait_for(run.device)
        wall.append(time.perf_counter() - w)
        process.append(time.process_time() - p)
    return wall, process


def _plain_step(run: RunState) -> None:
    """A step as a loop by hand makes it.

    `RunState.step` takes some 0.3 ms more, for what it keeps and checks: much of a step
    that takes 0.1 ms, and nobody's own loop has it.
    """
    run.optimizer.zero_grad(set_to_none=True)
    dtype = run.accumulator.gradient.dtype
    for batch in _read(run):
        value, count = scalar_loss(run.job.loss, run.model, batch, dtype)
        with user_code("the backward pass"):
            (value if count is None else value / count).backward()
    if run.job.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(run.parameters, run.job.clip_norm)
    with user_code("optimizer.step()"):
        run.optimizer.step()


def _read(run: RunState) -> list[Any]:
    """The next step's batch on the device, in its micro-batches."""
    with user_code(READING):
        return [to_device(part.data, run.device) for part in run.next_batch()]


def _visit(
    run: RunState, size: int, visits: _Visits, predicted_s: float
) -> float | None:
    """Time steps of one size, once; what that cost, or None: it does not fit in memory.

    Caches hold another size at first. A long step does not mind, and counts; unless it
    took much longer than predicted, as one that compiles.
    """
    started, process_started = time.perf_counter(), time.process_time()
    run.split(size)
    if run.step().retries > 0:
        return None
    wait_for(run.device)
    first = time.perf_counter() - started
    process = [time.process_time() - process_started]
    wall = [first]
    if run.ranks.first(not LONG_S <= first <= 2 * predicted_s):
        wall, process = time_steps(run)
    visits.wall.append(statistics.median(wall))
    visits.process.append(statistics.median(process))
    fetched = time.perf_counter()
    _read(run)
    visits.fetch.append(time.perf_counter() - fetched)
    return run.ranks.first(time.perf_counter() - started)


def _update_time(run: RunState) -> float:
    times: list[float] = []
    while len(times) < 5 and sum(times) < VISIT_S:
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
    settled = {size: visit.settled() for size, visit in visits.items()}
    scatter = pooled_scatter(visit.wall for visit in settled.values())
    busy = pooled_scatter(visit.process for visit in settled.values())
    return tuple(
        TimePoint(
            micro_batch=size,
            step_time_s=_median(visit.wall, scatter),
            process_time_s=_median(visit.process, busy),
            update_time_s=update,
            fetch_time_s=statistics.median(visit.fetch),
            rounds=tuple(visit.wall),
            process_rounds=tuple(visit.process),
        )
        for size, visit in settled.items()
    )


def _median(samples: list[float], scatter: float) -> Estimate:
    """The median of some visits; of one or two, the interval by the scatter of all."""
    if len(samples) >= FULL_ROUNDS:
        return Estimate.median(samples, "s")
    middle = statistics.median(samples)
    factor = math.exp(1.96 * scatter / math.sqrt(len(samples)))
    return Estimate(
        value=middle,
        low=middle / factor,
        high=middle * factor,
        unit="s",
        n=len(samples),
        method="median, scatter of all sizes",
    )
