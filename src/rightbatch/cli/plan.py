"""The command ``plan``: another decision from the same measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rightbatch.cli.console import finish, keeping, make_console
from rightbatch.cli.options import JSON, OUT, PATH, deciding
from rightbatch.plan.objectives import Objective


@click.command()
@click.argument("measured", metavar="MEASUREMENTS", type=PATH)
@deciding
@OUT
@JSON
def plan(
    measured: Path,
    objective: Objective,
    limits: dict[str, Any],
    out: Path | None,
    as_json: bool,
) -> int:
    """Decide again from MEASUREMENTS, a file or a run folder."""
    from rightbatch.measure.measurements import Measurements
    from rightbatch.plan.decide import decide
    from rightbatch.training.run_folder import MEASUREMENTS, make_run_folder

    path = measured / MEASUREMENTS if measured.is_dir() else measured
    measurements = Measurements.load(path)
    decision = decide(measurements, objective, **limits)
    folder = make_run_folder(out, f"{measurements.job.name}-{objective.name}")
    with keeping(folder, as_json):
        measurements.save(folder / MEASUREMENTS)
        console = make_console(as_json)
        return finish(console, folder, decision.plan, decision.choice, as_json)
