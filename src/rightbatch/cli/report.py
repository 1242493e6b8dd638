"""The command ``report``: the page of a run folder."""

from __future__ import annotations

from pathlib import Path

import click

from rightbatch.cli.console import DECIDED
from rightbatch.cli.options import PATH


@click.command()
@click.argument("run", type=PATH)
def report(run: Path) -> int:
    """Write the page of a RUN folder again, from what it holds."""
    from rightbatch.measure.measurements import Measurements
    from rightbatch.plan.decide import decide
    from rightbatch.plan.objectives import objective_named
    from rightbatch.report.page import Page
    from rightbatch.training.plan import Plan
    from rightbatch.training.run_folder import MEASUREMENTS, PLAN, REPORT, TRACE
    from rightbatch.training.trace import read_trace

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
    rows = read_trace(run / TRACE) if (run / TRACE).exists() else ()
    path = Page(choice, plan, rows).save(run / REPORT)
    click.echo(f"{path}  {path.stat().st_size / 1e6:.2f} MB, opens offline")
    return DECIDED
