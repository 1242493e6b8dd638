"""Whether torch's threads help this job here, or wait for each other."""

from __future__ import annotations

import statistics
import time

import torch

from rightbatch.measure.time import time_steps
from rightbatch.training.run_state import RunState

ROUNDS, LEAST_ROUNDS = 7, 2
VISIT_S = 0.03
LONGEST_S = 3.0  # after which no further round is begun [assumed]
WORTH = 1.10  # one thread must be this much faster to be taken instead [assumed]


def pick_threads(run: RunState) -> tuple[int, dict[int, float]]:
    """The faster of torch's present number of threads and one, for today's batch.

    Small operations on a busy machine can be a hundred times slower with threads,
    because each waits for one that is not running. Only CPU jobs are tried.

    Args:
        run: Timed at today's batch size, in interleaved rounds, by wall time; it is
            left somewhere else: `RunState.rewind` it.

    Returns:
        The number to use, and the seconds of a step by number of threads. Torch's own
        setting is as before.
    """
    present = torch.get_num_threads()
    alone = run.ranks.size == 1  # others set their threads before they start
    if present == 1 or run.device.type != "cpu" or not alone:
        return present, {}
    run.split(min(run.job.batch_size, run.job.length))
    for group in run.optimizer.param_groups:
        group["lr"] = group["lr"] * 0.0
    seconds: dict[int, list[float]] = {1: [], present: []}
    started = time.monotonic()
    try:
        for count in range(ROUNDS):
            if count >= LEAST_ROUNDS and time.monotonic() - started > LONGEST_S:
                break
            for threads, times in seconds.items():
                torch.set_num_threads(threads)
                run.step()
                times.append(statistics.median(time_steps(run, VISIT_S)[0]))
    finally:
        torch.set_num_threads(present)
    medians = {threads: statistics.median(t) for threads, t in seconds.items()}
    return (1 if medians[1] * WORTH < medians[present] else present), medians
