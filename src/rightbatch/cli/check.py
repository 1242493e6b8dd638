"""The command ``check``: what would make measurements of a job wrong."""

from __future__ import annotations

import shlex

import click

from rightbatch.cli.console import (
    DECIDED,
    FAILED,
    announce,
    folded,
    load_quietly,
    print_document,
)
from rightbatch.cli.options import JOB, JSON
from rightbatch.job.loading import as_job, load_named, look_up


@click.command()
@JOB
@JSON
def check(job: str, as_json: bool) -> int:
    """Check JOB for what would make its measurements wrong.

    JOB may also be a DataLoader or a BatchStream (train.py:loader): then what it feeds
    is audited.

    Exit status: 0 nothing to mend, 1 something (or it cannot be made), 2 no such name.
    """
    spec = look_up(job)
    console = announce(spec, as_json)
    from rightbatch.core.json_io import to_plain
    from rightbatch.data.audit.audit import audit, is_loader
    from rightbatch.lint.linter import check as find_faults
    from rightbatch.report.terminal import print_plain

    loaded = load_quietly(load_named, job, as_json)
    loader = is_loader(loaded)
    findings = audit(loaded) if loader else find_faults(as_job(job, loaded))
    if as_json:
        print_document(to_plain(findings))
    else:
        print_plain(console, folded(str(findings)))
        if findings and not loader:
            print_plain(console, f"next: rightbatch tune {shlex.quote(spec.text)}")
    return DECIDED if findings else FAILED
