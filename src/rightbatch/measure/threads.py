"""Whether torch's threads help this job here, or wait for each other."""

from __future__ import annotations

import statistics
import time

import torch

from rightbatch.core.deadline import Deadline
from rightbatch.core.errors import JobError
from rightbatch.measure.time import time_steps
from rightbatch.training.run_state import RunState

ROUNDS = 7
VISIT_S = 0.03
LONGEST_S = 3.0  # [assumed]
WORTH = 1.10  # one thread must be this much faster to be taken instead [assumed]


def pick_threads(
    run: RunState, budget_s: float = LONGEST_S
) -> tuple[int, dict[int, float]]:
    """The faster of torch's present number of threads and one, for today's batch.

    Small operations on a busy machine can be a hundred times slower with threads,
    because each waits for one that is not running. Only CPU jobs are tried. Where
    steps of today's batch are too long for the time, those of a part of it are timed.

    Args:
        run: Timed in interleaved rounds, by wall time; it is left somewhere else:
            `RunState.rewind` it.
        budget_s: Wall seconds.

    Returns:
        The number to use, and the seconds of a step by number of threads; nothing where
        not even one example could be timed. Torch's own setting is as before.
    """
    present = torch.get_num_threads()
    alone = run.ranks.size == 1  # others set their threads before they start
    if present == 1 or run.device.type != "cpu" or not alone:
        return present, {}
    for group in run.optimizer.param_groups:
        group["lr"] = group["lr"] * 0.0
    deadline = Deadline.within(budget_s)
    seconds: dict[int, list[float]] = {1: [], present: []}
    round_s = _settle_batch(run, deadline)
    try:
        while len(seconds[1]) < ROUNDS and deadline.allows(round_s):
            started = time.monotonic()
            for threads, times in seconds.items():
                torch.set_num_threads(threads)
                run.step()
                times.append(statistics.median(time_steps(run, VISIT_S)[0]))
            round_s = time.monotonic() - started
    finally:
        torch.set_num_threads(present)
    if not seconds[1]:
        return present, {}
    medians = {threads: statistics.median(t) for threads, t in seconds.items()}
    return (1 if medians[1] * WORTH < medians[present] else present), medians


def _settle_batch(run: RunState, deadline: Deadline) -> float:
    """Let the run take the largest part of today's batch of which a round fits.

    Returns:
        The seconds of a round, as far as one step of a few examples tells.
    """
    today = size = min(run.job.batch_size, run.job.length)
    few = min(2, today)
    try:
        run.split(few)
        run.step()  # makes the optimizer's state
        started = time.monotonic()
        run.step()
        few_s = time.monotonic() - started
    except JobError:  # it runs on today's batch only, it may be
        run.split(today)
        return 0.0
    # Two steps each; more examples take longer, at most in proportion.
    while size > few and not deadline.allows(4 * few_s * size / few):
        size = max(size // 2, few)
    run.split(size)
    return 4 * few_s * size / few
