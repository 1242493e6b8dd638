"""A DataLoader's workers: how they begin, how they end, and what to say of it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any

from torch import Tensor
from torch.utils.data import get_worker_info

from rightbatch.core.errors import JobError
from rightbatch.core.torch_private import (
    worker_died,
    worker_processes,
    worker_timed_out,
)

TRIES = 3  # to start workers
BEGIN_S = 10.0  # a forked worker that has not begun by then hardly will [assumed]
CHECK_S = 5.0  # how often the wait for workers is looked at, as torch does
LONG_S = 60.0  # a wait that is worth a word [assumed]
LAST_WORDS_S = 1.0  # a worker whose socket is gone is a process this much longer


class Begin:
    """A worker's first act: there ``get_worker_info().dataset`` is the user's own.

    Args:
        begun: Shared; which workers have come so far.
        then: The user's own first act.
    """

    def __init__(self, begun: Tensor, then: Callable[[int], None] | None) -> None:
        self.begun, self.then = begun, then

    def __call__(self, worker: int) -> None:
        """In the worker, before it reads anything."""
        self.begun[worker] = True
        info: Any = get_worker_info()
        object.__setattr__(info, "dataset", info.dataset.data)
        if self.then is not None:
            self.then(worker)


def exit_codes(loaded: Any) -> list[int | None]:
    """Of the workers, once one of them has ended."""
    workers = worker_processes(loaded)
    ends = [worker.sentinel for worker in workers]
    whoever_dies(lambda: wait(ends, timeout=LAST_WORDS_S), len(workers))
    return [worker.exitcode for worker in workers]


def whoever_dies(act: Callable[[], object], workers: int) -> None:
    """Act; of each death torch tells by an error wherever we are, then once more."""
    for _ in range(1 + workers):
        try:
            act()
            return
        except RuntimeError:
            continue


class Ended(Exception):
    """Workers have to be started anew, which is no error unless it helps nothing.

    They have left with status 0, as where a Ctrl-C reaches them, of which the loop is
    told by its own; or they never began.

    Attributes:
        trouble: What to raise if it helps nothing.
        warning: What to say if they are started anew.
    """

    def __init__(self, trouble: JobError, warning: str = "") -> None:
        super().__init__()
        self.trouble, self.warning = trouble, warning


def forks(options: dict[str, Any]) -> bool:
    """Whether a loader with these options forks its workers."""
    chosen = options.get("multiprocessing_context")
    if chosen is None or isinstance(chosen, str):
        return (chosen or multiprocessing.get_start_method()) == "fork"
    return bool(chosen.get_start_method() == "fork")


def stillborn(missing: int, workers: int, waited: float) -> Ended:
    """What to raise where forked workers never came to their first line.

    Python before 3.11.10 can lock up a child that is forked while another thread,
    such as one of gloo's, enters or leaves Python (python/cpython#112275). A new
    one most likely lives.
    """
    return Ended(
        JobError(
            "data workers do not begin",
            seen=f"{missing} of {workers} within {waited:.0f} s",
            why="the stream's state is intact, at the last whole step",
            fix="multiprocessing_context='forkserver', or Python 3.11.10 or newer",
        ),
        f"{missing} of {workers} data workers did not begin within {waited:.0f} s "
        "after they were forked, as happens where other threads use Python "
        "(python/cpython#112275); all are started anew, and nothing is lost",
    )


def worker_trouble(error: BaseException) -> JobError | None:
    """What to tell where a worker died or stands still; None for what data raised."""
    text = str(error)
    if text.startswith("Caught"):  # raised in a worker, which lives
        return None
    seen = text.splitlines()[0] if text else repr(error)
    intact = "the examples it was reading were not handed out; the stream's state is "
    intact += "intact, at the last whole step"
    if worker_timed_out(error):
        return JobError(
            "a data worker did not answer in time",
            seen=seen,
            why=intact,
            fix="a larger timeout, or find what its data set waits for",
        )
    if not worker_died(error):
        return None
    return JobError(
        "a data worker died",
        seen=seen,
        why=intact,
        fix="go on, and new workers are started; if it was killed for memory: fewer "
        "num_workers or a smaller prefetch_factor; if none ever came: with spawn, "
        "workers must be able to import the data set's class",
    )
