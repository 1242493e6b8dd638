"""The command ``tune``: from a job to a plan that was raced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rightbatch.cli.console import begin, command_line, finish, keeping, quiet_load
from rightbatch.cli.options import BUDGET, JOB, JSON, OUT, THREADS, deciding
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
    """Measure JOB here, decide its batch and rate, race it, and explain."""
    console, spec, folder = begin(job, out, as_json)
    with keeping(console, folder):
        from rightbatch.plan.decide import Decision
        from rightbatch.report.terminal import TerminalProgress
        from rightbatch.training.run_folder import MEASUREMENTS
        from rightbatch.tuning.record import Record
        from rightbatch.tuning.tune import tune as find_plan

        tuning = find_plan(
            quiet_load(job, as_json),
            objective,
            budget_s=budget,
            with_race=with_race,
            threads="present" if keep_threads else "auto",
            record=Record(
                folder / MEASUREMENTS, spec=spec.text, command=command_line()
            ),
            progress=TerminalProgress(console, phases=4 if with_race else 3),
            **limits,
        )
        decision = Decision(plan=tuning.plan, choice=tuning.choice)
        return finish(console, folder, decision, as_json)
