"""A study: batch and rate to the job's target, by trials that one journal keeps."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Literal

from rightbatch.core.errors import SettingError
from rightbatch.core.guards import preserved_rng
from rightbatch.core.progress import Progress
from rightbatch.core.units import show_number, show_seconds
from rightbatch.core.whole_number import whole_number
from rightbatch.job.job import Job
from rightbatch.measure.facts import job_facts
from rightbatch.measure.measurements import Lane, Measurements
from rightbatch.plan.choice import choose
from rightbatch.sweep.batch_rate_study import Study, study_of
from rightbatch.sweep.journal import Journal
from rightbatch.sweep.trial_worker import Orders, Trials, work
from rightbatch.sweep.worker_processes import Workers, processes
from rightbatch.training.folder_lock import FolderLock
from rightbatch.training.plan import Plan
from rightbatch.training.ranks import joined
from rightbatch.training.run_folder import (
    JOURNAL,
    MEASUREMENTS,
    STUDY,
    make_run_folder,
)
from rightbatch.tuning.measure_job import measure_job
from rightbatch.tuning.measurement_record import Record

# Seconds for checks, times and noise before the trials: of these half are used; and
# their share of a budget. [assumed]
MEASURING_S, MEASURING_SHARE = 20.0, 0.5


def study(
    job: Job,
    out: str | Path,
    *,
    trials: int = 40,
    budget_s: float | None = None,
    workers: int = 1,
    plan: Plan | None = None,
    resume: bool = False,
    load: Callable[[], Job] | None = None,
    ray: str | None = None,
    threads: Literal["present", "auto"] = "present",
    spec: str = "",
    progress: Progress | None = None,
) -> Study:
    """Find batch and learning rate to the job's target by training, again and again.

    A trial is one lane of the race of `tune`, from initial weights; it is given up
    where it diverges or takes twice the best. What is tried next follows from the law
    of batch and rate fitted to all trials. Every trial is kept in ``study.journal``,
    which Optuna reads: whatever was killed is taken up again.

    Args:
        job: With ``evaluate`` and ``target``.
        out: The study's folder; new, unless it is resumed.
        trials: How many, those of an earlier part included.
        budget_s: Seconds for measuring and trials; None: until the trials are done.
        workers: Processes that share the trials.
        plan: Tried first; then today's setting.
        resume: Go on with the study in the folder, if there is one.
        load: Makes the job again in other processes, such as
            ``functools.partial(rb.load_job, "train.py:job")``.
        ray: Address of a Ray cluster whose tasks are the workers; they must see the
            folder.
        threads: ``"auto"`` sets torch to one thread if that is faster for this job.
        spec: The job's address, for the record.
        progress: Hears of the phases.

    Raises:
        SettingError: The job has no target, or an argument makes no sense.
        RunFolderError: The folder is in use, or holds something else.
        MissingExtraError: Optuna, or Ray, is not installed.

    Example:
        >>> import tempfile, rightbatch as rb
        >>> from rightbatch.sweep.studying import study
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = study(rb.load_job("digits"), folder, trials=2, budget_s=9)
        >>> found.job
        'digits'

    References:
        Shallue et al. 2019, arXiv:1811.03600; Akiba et al. 2019, arXiv:1907.10902, for
        Optuna.
    """
    trials, workers = whole_number(trials, "trials"), whole_number(workers, "workers")
    elsewhere = workers > 1 or ray is not None
    _check(job, budget_s, elsewhere and load is None)
    began, progress, folder = time.time(), progress or Progress(), Path(out).absolute()
    path, fresh = folder / MEASUREMENTS, not (resume and (folder / JOURNAL).exists())
    if fresh:
        make_run_folder(folder, job.name)
    with contextlib.closing(FolderLock(folder)), preserved_rng():
        if fresh:
            record, share_s = (
                Record(spec=spec),
                MEASURING_SHARE * (budget_s or math.inf),
            )
            measure_job(
                job,
                record,
                progress,
                budget_s=min(MEASURING_S, share_s),
                threads=threads,
            ).run.close()
            record.measurements.save(path)
        measurements = replace(Measurements.load(path), race=None)
        tried = Trials(job, measurements, workers)
        journal = Journal(folder / JOURNAL)
        _same_job(job, measurements, tried, folder)
        orders = Orders(
            folder=folder,
            trials=trials,
            workers=workers,
            ends=None if budget_s is None else began + budget_s,
        )
        journal.take_back()
        for wanted in (plan, tried.settings[0]):
            if wanted is not None:
                pair = wanted.batch_size, wanted.lr
                tried.setting(*pair)  # refused where it does not fit
                journal.add(*pair)
        left_s = 0.0 if orders.ends is None else max(orders.ends - time.time(), 0.0)
        stopped = False
        with progress.phase("Trials", left_s) as phase:

            def tick() -> None:
                phase.update(_so_far(journal.lanes, trials))

            while journal.begun < trials and not orders.late and not stopped:
                if not elsewhere:
                    stopped = work("0", orders, lambda: job, tick, tried)
                elif load is not None:
                    start = processes if ray is None else _ray_tasks(ray)
                    stopped = start(orders, load, tick)
                journal.take_back()  # what a worker that is gone had begun
            phase.summary = _so_far(journal.lanes, trials)
        measurements = replace(measurements, race=tried.race(journal.lanes))
        measurements.save(path)
        tried.run.close()
        choice = choose(measurements)
        found = study_of(choice, interrupted=stopped and journal.begun < trials)
        found.save(folder / STUDY)
    return found


def _check(job: Job, budget_s: float | None, no_load: bool) -> None:
    """Refuse what cannot be studied."""
    if job.target is None or job.evaluate is None:
        raise SettingError(
            "a study needs the job's target: it compares times to it",
            seen=f"evaluate={'none' if job.evaluate is None else 'given'}, "
            f"target={job.target}",
            fix="Job(..., evaluate=..., target=0.1); of a Trainer's or a module's job: "
            "dataclasses.replace(job, target=0.1)",
        )
    if budget_s is not None and not 0 < budget_s < math.inf:
        raise SettingError(
            "the budget is a number of seconds", seen=f"{budget_s}", fix="budget_s=600"
        )
    if joined():
        raise SettingError(
            "a study trains each trial on one process",
            seen="torchrun",
            fix="--workers 2, without torchrun",
        )
    if no_load:
        raise SettingError(
            "other processes must be able to make the job themselves",
            seen="load=None",
            fix='load=functools.partial(rb.load_job, "train.py:job")',
        )


def _same_job(
    job: Job, measurements: Measurements, tried: Trials, folder: Path
) -> None:
    """Refuse to go on with the study of another job."""
    kept = measurements.job
    now = job_facts(tried.run, kept.spec, kept.coupled)
    changed = [
        f.name for f in fields(kept) if getattr(kept, f.name) != getattr(now, f.name)
    ]
    if changed:
        name = changed[0]
        raise SettingError(
            f"the study in {folder} is of another job",
            seen=f"{name} {getattr(kept, name)} there, {getattr(now, name)} here",
            why="trials of different jobs cannot be compared",
            fix="another --out",
        )


def _ray_tasks(address: str) -> Workers:
    """Ray is imported where it is asked for."""
    from rightbatch.sweep.ray_workers import ray_tasks

    return functools.partial(ray_tasks, address)


def _so_far(lanes: Sequence[Lane], trials: int) -> str:
    """How far it is, and the best run yet."""
    met = [lane for lane in lanes if lane.end == "target"]
    text = f"{len(lanes)} of {max(trials, len(lanes))}, {len(met)} to the target"
    if not met:
        return text
    best = min(met, key=lambda lane: lane.seconds)
    took = show_seconds(best.seconds)
    return f"{text}, {took} at B = {best.batch_size}, lr {show_number(best.lr)}"
