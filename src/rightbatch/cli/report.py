"""The command ``report``: the page of a run folder."""

from __future__ import annotations

from pathlib import Path

import click

from rightbatch.cli.console import DECIDED
from rightbatch.cli.options import PATH


@click.command()
@click.argument("runs", type=PATH, nargs=-1, required=True, metavar="RUN…")
def report(runs: tuple[Path, ...]) -> int:
    """Write the page of a RUN folder again, from what it holds.

    Of a folder of tune or measure, or of train; several of train are compared on one
    page, in the first one's folder.
    """
    from rightbatch.core.json_io import write_text
    from rightbatch.report.run_page import recorded_run, run_page
    from rightbatch.training.run_folder import REPORT, RUNS, TRACE

    # A training run keeps the measurements of its plan beside it.
    if len(runs) == 1 and not (runs[0] / TRACE).exists():
        path = _tuning_page(runs[0])
    else:
        path = runs[0] / (REPORT if len(runs) == 1 else RUNS)
        write_text(path, run_page([recorded_run(run) for run in runs]))
    click.echo(f"{path}  {path.stat().st_size / 1e6:.2f} MB, opens offline")
    return DECIDED


def _tuning_page(run: Path) -> Path:
    from rightbatch.measure.measurements import Measurements
    from rightbatch.plan.decide import decide
    from rightbatch.plan.objectives import objective_named
    from rightbatch.report.page import Page
    from rightbatch.training.plan import Plan
    from rightbatch.training.run_folder import MEASUREMENTS, PLAN, REPORT

    measurements = Measurements.load(run / MEASUREMENTS)
    if (run / PLAN).exists():
        plan = Plan.load(run / PLAN)
        watts = 1.0 if plan.objective == "energy" else None  # any: it cancels
        choice = decide(
            measurements,
            objective_named(plan.objective, watts=watts),
            deadline_s=plan.deadline_s,
            memory_bytes=plan.memory_limit_bytes,
        ).choice
    else:
        decision = decide(measurements)
        plan, choice = decision.plan, decision.choice
    return Page(choice, plan).save(run / REPORT)
