"""Workers of a study as processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.context import SpawnProcess

from rightbatch.core.errors import JobError
from rightbatch.job.job import Job
from rightbatch.sweep.trial_worker import Orders, work
from rightbatch.training.interrupt import Interrupt

Workers = Callable[[Orders, Callable[[], Job], Callable[[], None]], bool]
REBORN = 3  # times that a worker which was killed is started again [assumed]
LOOK_S = 0.2  # between looks at them


def processes(
    orders: Orders, load: Callable[[], Job], tick: Callable[[], None]
) -> bool:
    """Let a process for each worker train until there are enough trials.

    One that is killed begins again, with the trial that it was at.

    Args:
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
        names = [f"{os.getpid()}.{number}" for number in range(orders.workers)]
        living = {name: begun(name) for name in names}
        deaths = 0
        while living:
            for name, process in list(living.items()):
                if (
                    interrupt.asked
                ):  # which a signal to this process alone tells no other
                    process.terminate()
                process.join(LOOK_S / orders.workers)
                code = process.exitcode
                if code is None:
                    continue
                del living[name]
                if code and not interrupt.asked:
                    deaths += 1
                    if code > 0 or deaths > REBORN * orders.workers:
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
