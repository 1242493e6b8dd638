"""The command line: arguments are understood before torch is imported."""

from __future__ import annotations

import os
import sys

import click

from rightbatch.cli.advise import advise
from rightbatch.cli.check import check
from rightbatch.cli.cluster import cluster
from rightbatch.cli.console import (
    ASKED,
    DECIDED,
    FAILED,
    INTERRUPTED,
    UNDECIDED,
    USAGE,
    folded,
    note_interrupts,
    report_bug,
)
from rightbatch.cli.doctor import doctor
from rightbatch.cli.lab import lab
from rightbatch.cli.measure import measure
from rightbatch.cli.memory import memory
from rightbatch.cli.options import Commands
from rightbatch.cli.plan import plan
from rightbatch.cli.report import report
from rightbatch.cli.sweep import sweep
from rightbatch.cli.train import train
from rightbatch.cli.tune import tune
from rightbatch.core.errors import RightbatchError, SettingError, UnidentifiedError
from rightbatch.job.built_in import BUILT_IN


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    epilog="JOB is file.py:name, package.module:name, or a built-in job: "
    f"{', '.join(BUILT_IN)}.  Exit status: 0 decided, 1 error, 2 usage, 3 undecided, "
    "130 interrupted.",
)
@click.version_option(package_name="rightbatch", message="rightbatch %(version)s")
def cli() -> None:
    """Find, explain and run the right batch size for a PyTorch training job."""


COMMANDS = (
    tune,
    measure,
    memory,
    plan,
    train,
    sweep,
    report,
    check,
    cluster,
    lab,
    advise,
    doctor,
)
for command in COMMANDS:
    cli.add_command(command)


def main() -> None:
    """Run the command line; every failure is one clear message."""
    note_interrupts()
    try:
        status = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        status = USAGE if isinstance(error, click.UsageError) else FAILED
    except RightbatchError as error:
        click.echo(folded(f"error: {error}"), err=True)
        status = _status(error)
    except (KeyboardInterrupt, click.Abort):
        status = _interrupted()
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone; nothing is left to say
        status = DECIDED
    except Exception as error:
        if ASKED:  # Ctrl-C while a library is imported may end in any error
            status = _interrupted()
        else:
            click.echo(report_bug(error), err=True)
            status = FAILED
    if status == INTERRUPTED:
        # Python ends by the signal itself, whatever status is asked for, if Ctrl-C came
        # while it was running source text (as every dataclass does when it is made).
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(INTERRUPTED)
    sys.exit(status if isinstance(status, int) else DECIDED)


def _interrupted() -> int:
    click.echo("\nInterrupted.", err=True)
    return INTERRUPTED


def _status(error: RightbatchError) -> int:
    if isinstance(error, UnidentifiedError):
        return UNDECIDED
    return USAGE if isinstance(error, SettingError) else FAILED


if __name__ == "__main__":
    main()
