"""The training loop: to be read, and copied."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

from rightbatch.core.errors import JobError
from rightbatch.training.evaluation_time import EVALUATE_SHARE, EvaluationTime
from rightbatch.training.run_state import RunState
from rightbatch.training.trace import TraceRow

# Evaluations are spaced by this growth in examples seen, so that the time to the
# target is known within 4 % however long the run is. [assumed: a compromise with cost]
EVALUATION_GROWTH = 1.04
FIRST_EVALUATION = 4  # of today's batches [assumed]
TOO_MANY = 20  # batches skipped in a row, after which a run is given up [assumed]


def usual_evaluations(batch_size: int, examples: float) -> int:
    """How many evaluations `train_rows` makes of so many examples, none put off.

    Example:
        >>> usual_evaluations(64, 64_000), usual_evaluations(64, 0)
        (142, 0)
    """
    first = FIRST_EVALUATION * batch_size
    if examples < first:
        return 1 if examples > 0 else 0  # the last row is always one
    return 1 + math.ceil(math.log(examples / first) / math.log(EVALUATION_GROWTH))


def train_rows(
    run: RunState,
    *,
    end: float = math.inf,
    stop: Callable[[], bool] = lambda: False,
    save: Callable[[], None] = lambda: None,
    save_due: Callable[[], bool] = lambda: False,
    evaluate_share: float = EVALUATE_SHARE,
) -> Iterator[TraceRow]:
    """Train until the target is met or the examples run out; yield as we go.

    Evaluations fall at fixed numbers of examples, so two runs of one seed are alike;
    slow ones are put off by the clock, which changes nothing else. The last row is
    always an evaluation of where the run ended.

    Args:
        run: What to move on.
        end: Stop when so many examples have been seen.
        stop: Asked in every step whether to end after it; one rank's yes is enough.
        save: Called between two steps, on all ranks, whenever
        save_due: was true on any rank, or the run has ended.
        evaluate_share: Most of the training time that evaluations may take beside it.

    Raises:
        JobError: The loss became NaN or infinite, or the job's code raised.
    """
    job = run.job
    run.due = run.due or max(run.examples, FIRST_EVALUATION * job.batch_size)
    done = run.examples >= end or run.reached
    together = run.ranks.size > 1  # then what one wishes all must hear of in time
    started = time.perf_counter(), time.process_time()
    before_s, evaluations = run.time_s, EvaluationTime(evaluate_share)

    def put_off() -> bool:
        trained_s = run.time_s - before_s + time.perf_counter() - started[0]
        late = not run.ranks.first(evaluations.affords_one(trained_s))
        if late and (text := evaluations.put_off(trained_s)):
            run.tell(text)
        return late

    def lap() -> None:
        run.time_s += time.perf_counter() - started[0]
        run.process_time_s += time.process_time() - started[1]

    def wishes() -> tuple[float, float]:
        return float(stop()), float(save_due())

    while not done:
        run.stream_before = run.stream.state_dict()
        batch_size, lr = run.batch_size, run.lr
        update = run.step(wishes() if together else ())
        if run.skipped == TOO_MANY:
            raise JobError(
                f"{TOO_MANY} batches in a row were not finite",
                seen=f"loss {update.loss:g} at step {run.steps}",
                why="skipping them all trains nothing",
                fix="a lower learning rate; look for log(0) in the loss",
            )
        ended, wanted = (f > 0 for f in (update.flags if together else wishes()))
        done = ended or run.examples >= end
        if done or (run.examples >= run.due and not put_off()):
            lap()
            began = time.perf_counter()
            metric = run.evaluated()
            evaluations.spent_s += time.perf_counter() - began
            run.reached = metric is not None and job.met(metric)
            done |= run.reached
            if run.examples >= run.due:  # not where somebody interrupted
                run.due = math.ceil(run.examples * EVALUATION_GROWTH)
            events, run.events = tuple(run.events), []
            yield row_of(run, update.loss, metric, batch_size, lr, events)
            wanted |= done
            started = time.perf_counter(), time.process_time()
        if wanted:
            lap()
            save()
            started = time.perf_counter(), time.process_time()
        if done:
            return


def row_of(
    run: RunState,
    loss: float,
    metric: float | None,
    batch_size: int,
    lr: float | None,
    events: tuple[str, ...] = (),
) -> TraceRow:
    """Where the run stands."""
    noise = None if run.monitor is None else run.monitor.noise_scale.value
    pieces = run.accumulator.micro_batch_size.now
    return TraceRow(
        steps=run.steps,
        examples=run.examples,
        time_s=run.time_s,
        process_time_s=run.process_time_s,
        loss=loss,
        metric=metric,
        batch_size=batch_size,
        lr=lr,
        micro_batch=pieces if pieces < batch_size else 0,
        noise_scale=noise if noise is not None and math.isfinite(noise) else None,
        events=events,
    )
