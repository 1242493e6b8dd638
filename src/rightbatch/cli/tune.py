"""The command ``tune``: from a job to a plan that was raced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rightbatch.cli.console import (
    DECIDED,
    UNDECIDED,
    announce,
    command_line,
    end_together,
    finish,
    first_speaks,
    keeping,
    load_quietly,
)
from rightbatch.cli.options import (
    BUDGET,
    JOB,
    JSON,
    NOISE,
    OUT,
    START,
    THREADS,
    deciding,
)
from rightbatch.job.loading import look_up
from rightbatch.plan.objectives import Objective
from rightbatch.training.run_folder import MEASUREMENTS, make_run_folder


@click.command()
@JOB
@BUDGET
@START
@NOISE
@deciding
@click.option(
    "--race/--no-race", "with_race", default=True, help="Race batches and rates."
)
@THREADS
@OUT
@JSON
def tune(
    job: str,
    budget: float,
    start: Path | None,
    noise: Path | None,
    objective: Objective,
    limits: dict[str, Any],
    with_race: bool,
    keep_threads: bool,
    out: Path | None,
    as_json: bool,
) -> int:
    """Measure JOB, race batches and rates, choose and explain.

    On several processes: torchrun --nproc-per-node N -m rightbatch tune JOB …
    """
    first = first_speaks()
    spec = look_up(job)
    folder = make_run_folder(out, spec.stem) if first else None
    with keeping(folder, as_json):
        console = announce(spec, as_json and first)
        from rightbatch.integrations.loading import load_job
        from rightbatch.report.terminal import TerminalProgress
        from rightbatch.training.ranks import join
        from rightbatch.tuning.measurement_record import Record
        from rightbatch.tuning.tune import tune as find_plan

        loaded = load_quietly(load_job, job, as_json)
        joined = join()
        path = None if folder is None else folder / MEASUREMENTS
        tuning = find_plan(
            loaded,
            objective,
            budget_s=budget,
            with_race=with_race,
            threads="present" if keep_threads else "auto",
            start=start,
            noise=noise,
            record=Record(path, spec=spec.text, command=command_line()),
            progress=TerminalProgress(console, phases=4 if with_race else 3),
            **limits,
        )
        status = DECIDED if tuning.plan.decided else UNDECIDED
        if folder is not None:
            status = finish(console, folder, tuning.plan, tuning.choice, as_json)
    return end_together(status, joined)
