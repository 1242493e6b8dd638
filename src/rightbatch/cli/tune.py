"""The command ``tune``: from a job to a plan that was raced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rightbatch.cli.console import begin, command_line, finish, load_quietly
from rightbatch.cli.options import BUDGET, JOB, JSON, OUT, THREADS, deciding
from rightbatch.job.loading import load_job
from rightbatch.plan.objectives import Objective


@click.command()
@JOB
@BUDGET
@deciding
@click.option("--race/--no-race", "with_race", default=True, help="Race the plan.")
@THREADS
@OUT
@JSON
def tune(
    job: str,
    budget: float,
    objective: Objective,
    limits: dict[str, Any],
    with_race: bool,
    keep_threads: bool,
    out: Path | None,
    as_json: bool,
) -> int:
    """Measure JOB here, decide its batch and rate, race, and explain."""
    with begin(job, out, as_json) as (console, spec, folder):
        from rightbatch.report.terminal import TerminalProgress
        from rightbatch.training.run_folder import MEASUREMENTS
        from rightbatch.tuning.record import Record
        from rightbatch.tuning.tune import tune as find_plan

        path = folder / MEASUREMENTS
        tuning = find_plan(
            load_quietly(load_job, job, as_json),
            objective,
            budget_s=budget,
            with_race=with_race,
            threads="present" if keep_threads else "auto",
            record=Record(path, spec=spec.text, command=command_line()),
            progress=TerminalProgress(console, phases=4 if with_race else 3),
            **limits,
        )
        return finish(console, folder, tuning.plan, tuning.choice, as_json)
