"""The training loop: to be read, and copied."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rightbatch.errors import JobError
from rightbatch.training import Training

# Evaluations are spaced by this growth in examples seen, so that the time to the
# target is known within 4 % however long the run is. [assumed: a compromise with cost]
EVALUATION_GROWTH = 1.04
FIRST_EVALUATION = 4  # of today's batches [assumed]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRow:
    """One line of ``trace.jsonl``: where a run stood at an evaluation.

    Attributes:
        steps: Optimizer updates so far.
        examples: Examples seen so far.
        time_s: Wall seconds spent on training, evaluations left out.
        process_time_s: CPU seconds of this process for the same.
        loss: Mean loss of the last batch.
        metric: The job's ``evaluate``, or None where it has none.
    """

    steps: int
    examples: int
    time_s: float
    process_time_s: float
    loss: float
    metric: float | None


def train_rows(
    training: Training,
    batch_size: int,
    *,
    micro_batch: int | None = None,
    max_examples: float = math.inf,
    time_limit_s: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[TraceRow]:
    """Train until the target, the examples or the time run out; yield as we go.

    Evaluations fall at fixed numbers of examples, so two runs of one seed are alike.
    The last row is always an evaluation of where the run ended.

    Args:
        training: The run to move on; steps and examples count from where it is.
        batch_size: Examples per optimizer step.
        micro_batch: Largest number of examples in memory at once.
        max_examples: Stop when so many have been seen.
        time_limit_s: Stop when training took so many seconds of ``clock``.
        clock: What ``time_limit_s`` is measured by.
        stop: Asked after every step whether to end here.

    Raises:
        JobError: The loss became NaN or infinite.
    """
    job = training.job
    due = max(training.examples, FIRST_EVALUATION * job.batch_size)
    wall = process = limited = 0.0
    while True:
        started = (time.perf_counter(), time.process_time(), clock())
        while True:
            loss = training.step(batch_size, micro_batch)
            out_of_time = limited + clock() - started[2] >= time_limit_s
            done = training.examples >= max_examples or out_of_time or stop()
            if done or training.examples >= due:
                break
        last_loss = float(loss)  # waits for the device, so before the clocks are read
        wall += time.perf_counter() - started[0]
        process += time.process_time() - started[1]
        limited += clock() - started[2]
        if not math.isfinite(last_loss):
            raise JobError(
                f"the loss became {last_loss} at step {training.steps}",
                seen=f"batch {batch_size}, {training.examples} examples seen",
                why="the run has diverged: most often the learning rate is too high",
                fix="lower the learning rate in the job's optimizer",
            )
        metric = job.evaluated(training.model) if job.evaluate else None
        yield TraceRow(
            steps=training.steps,
            examples=training.examples,
            time_s=wall,
            process_time_s=process,
            loss=last_loss,
            metric=metric,
        )
        if done or (metric is not None and job.met(metric)):
            return
        due = math.ceil(training.examples * EVALUATION_GROWTH)
