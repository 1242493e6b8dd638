"""The command ``measure``: the facts of a job on this machine, and no decision."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from rightbatch.cli.console import (
    DECIDED,
    begin,
    command_line,
    load_quietly,
    print_document,
)
from rightbatch.cli.options import BUDGET, JOB, JSON, NOISE, OUT, START, THREADS


@click.command()
@JOB
@BUDGET
@START
@NOISE
@THREADS
@OUT
@JSON
def measure(
    job: str,
    budget: float,
    start: Path | None,
    noise: Path | None,
    keep_threads: bool,
    out: Path | None,
    as_json: bool,
) -> int:
    """Measure JOB's step time, memory and noise; decide nothing."""
    with begin(job, out, as_json) as (console, spec, folder):
        from rightbatch.core.json_io import to_plain
        from rightbatch.integrations.loading import load_job
        from rightbatch.report.answer import files_lines, job_lines
        from rightbatch.report.terminal import TerminalProgress, print_plain
        from rightbatch.training.any_checkpoint import load_start
        from rightbatch.training.run_folder import MEASUREMENTS
        from rightbatch.tuning.given_noise import given_noise
        from rightbatch.tuning.measure_job import measure_job
        from rightbatch.tuning.measurement_record import Record

        path = folder / MEASUREMENTS
        record = Record(path, spec=spec.text, command=command_line())
        measure_job(
            load_quietly(load_job, job, as_json),
            record,
            TerminalProgress(console, phases=3),
            budget_s=budget,
            threads="present" if keep_threads else "auto",
            start=None if start is None else load_start(start),
            noise=None if noise is None else given_noise(noise),
        )
        if as_json:
            print_document(to_plain(record.measurements))
            return DECIDED
        print_plain(console, job_lines(record.measurements))
        following = f"rightbatch plan {shlex.quote(str(path))}"
        print_plain(console, files_lines([("saved", str(path)), ("next", following)]))
        return DECIDED
