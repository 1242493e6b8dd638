"""Workers of a study as processes of this machine."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.context import SpawnProcess

from rightbatch.core.errors import JobError
from rightbatch.job.job import Job
from rightbatch.sweep.trial_worker import Orders, work
from rightbatch.training.interrupt import Interrupt

Workers = Callable[[int, Orders, Callable[[], Job], Callable[[], None]], bool]
REBORN = 3  # times that a worker which was killed is started again [assumed]
LOOK_S = 0.2  # between looks at them


def processes(
    workers: int, orders: Orders, load: Callable[[], Job], tick: Callable[[], None]
) -> bool:
    """Let so many processes train until there are enough trials.

    One that is killed begins again, with the trial that it was at.

    Args:
        workers: How many.
        orders: What all are told.
        load: Makes the job in each.
        tick: Called now and then.

    Returns:
        Whether it was interrupted.

    Raises:
        JobError: One failed, or was killed again and again.
    """
    context = multiprocessing.get_context("spawn")

    def begun(name: str) -> SpawnProcess:
        process = context.Process(target=work, args=(name, orders, load), daemon=True)
        process.start()
        return process

    with Interrupt() as interrupt:
        living = {str(number): begun(str(number)) for number in range(workers)}
        deaths = 0
        while living:
            for name, process in list(living.items()):
                process.join(LOOK_S / workers)
                code = process.exitcode
                if code is None:
                    continue
                del living[name]
                if code and not interrupt.asked:
                    deaths += 1
                    if code > 0 or deaths > REBORN * workers:
                        for other in living.values():
                            other.terminate()
                        raise JobError(
                            "a worker of the study failed",
                            seen=f"exit status {code}; what it said is above",
                            fix="--workers 1 shows the error itself; --resume goes on",
                        )
                    living[name] = begun(name)
            tick()
    return interrupt.asked
