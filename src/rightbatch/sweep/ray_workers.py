"""Workers of a study as tasks of a Ray cluster that sees the study's folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from rightbatch.core.errors import JobError, MissingExtraError, SettingError
from rightbatch.job.job import Job
from rightbatch.sweep.trial_worker import Orders, work
from rightbatch.training.interrupt import Interrupt

try:
    import ray
except ImportError as error:
    raise MissingExtraError(
        "--ray needs Ray", fix="pip install 'rightbatch[ray]'"
    ) from error

REBORN = 3  # times that Ray starts a task again whose worker was killed [assumed]
LOOK_S = 0.5


def ray_tasks(
    address: str,
    orders: Orders,
    load: Callable[[], Job],
    tick: Callable[[], None],
) -> bool:
    """Let a task for each worker train until there are enough trials.

    Args:
        address: Of the cluster; ``"local"`` starts one here.
        orders: What all are told.
        load: Makes the job in each.
        tick: Called now and then.

    Returns:
        Whether it was interrupted.

    Raises:
        SettingError: There is no such cluster.
        JobError: A task failed.
    """
    try:
        ray.init(address, log_to_driver=False, include_dashboard=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise SettingError(
            f"no Ray cluster answers at {address}",
            seen=f"{type(error).__name__}: {error}"[:200],
            fix="--ray local, or the address that `ray start --head` prints",
        ) from error
    task = ray.remote(max_retries=REBORN, num_cpus=1)(_work)
    try:
        with Interrupt() as interrupt:
            here = os.getcwd()
            names = [f"{os.getpid()}.{number}" for number in range(orders.workers)]
            left = [task.remote(name, orders, load, here) for name in names]
            while left and not interrupt.asked:
                done, left = ray.wait(left, timeout=LOOK_S)
                ray.get(done)
                tick()
    except ray.exceptions.RayError as error:
        raise JobError(
            "a worker of the study failed on the cluster",
            seen=f"{error}"[:400],
            fix="--workers 1 without --ray shows the error itself; --resume goes on",
        ) from error
    finally:
        ray.shutdown()
    return interrupt.asked


def _work(name: str, orders: Orders, load: Callable[[], Any], folder: str) -> None:
    os.chdir(folder)  # where the job's address is meant
    work(name, orders, load)
