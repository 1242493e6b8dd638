"""The command ``doctor``: this machine, as rightbatch sees it."""

from __future__ import annotations

import click

from rightbatch.cli.console import DECIDED, print_document
from rightbatch.cli.options import JSON


@click.command()
@JSON
def doctor(as_json: bool) -> int:
    """Say what was detected on this machine, and what follows."""
    from rightbatch.report.doctor import examine, lines

    facts = examine()
    if as_json:
        print_document(facts)
    else:
        click.echo(lines(facts))
    return DECIDED
