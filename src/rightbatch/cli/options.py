"""The command line's own types, and the options that commands share."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from rightbatch.cli.completion import offer_jobs
from rightbatch.core import units
from rightbatch.core.errors import SettingError
from rightbatch.plan.objectives import objective_named


class _Parsed(click.ParamType[float]):
    """A value with a unit, as `rightbatch.core.units` reads it."""

    def __init__(self, name: str, quantity: units.Quantity) -> None:
        self.name, self.quantity = name, quantity

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> float:
        """Parse, or fail as a usage error."""
        if isinstance(value, float):
            return value
        try:
            return self.quantity.parse(value)
        except SettingError as error:
            self.fail(f"{error.what} (such as {error.fix})", param, ctx)


DURATION = _Parsed("duration", units.DURATION)
COUNT = _Parsed("count", units.COUNT)
MEMORY = _Parsed("memory", units.MEMORY)
BANDWIDTH = _Parsed("bandwidth", units.BANDWIDTH)
LATENCY = _Parsed("latency", units.LATENCY)
PATH: click.Path = click.Path(path_type=Path)


class Commands(click.Group):
    """Commands in the order in which they were added; says what was probably meant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All of them, the main one first."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or name the nearest."""
        if args and self.get_command(ctx, args[0]) is None:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"There is no command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)


def deciding(command: Callable[..., int]) -> Callable[..., int]:
    """The options of a command that decides, passed on as ``objective`` and ``limits``.

    ``limits`` are keyword arguments of `decide` and of `tune`.
    """

    @functools.wraps(command)
    def decide(
        *,
        objective: str,
        watts: float | None,
        price: float | None,
        deadline: float | None,
        memory: float | None,
        **others: Any,
    ) -> int:
        return command(
            objective=objective_named(objective, watts=watts, price=price),
            limits={"deadline_s": deadline, "memory_bytes": memory},
            **others,
        )

    options = [
        click.option(
            "--objective",
            type=click.Choice(["time", "examples", "money", "energy"]),
            default="time",
            show_default=True,
            help="What is to be least.",
        ),
        click.option("--deadline", type=DURATION, help="Longest time to the target."),
        click.option("--memory", type=MEMORY, help="Most memory a step may take."),
        click.option("--watts", type=float, help="Power while training, for energy."),
        click.option("--price", type=float, help="Price of an hour, for money."),
    ]
    for option in reversed(options):
        decide = option(decide)
    return decide


JOB = click.argument("job", shell_complete=offer_jobs)
THREADS = click.option(
    "--keep-threads", is_flag=True, help="Never fall back to one CPU thread."
)
OUT = click.option("--out", type=PATH, help="Run folder; default runs/NAME-DATE-TIME.")
JSON = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document instead."
)
START = click.option(
    "--from",
    "start",
    type=PATH,
    help="A checkpoint of any trainer to begin from; the plan is for the rest.",
)
NOISE = click.option(
    "--noise",
    type=PATH,
    help="What a NoiseMonitor saved of a real run; then none is measured.",
)
BUDGET = click.option(
    "--budget",
    type=DURATION,
    default="60",
    show_default=True,
    help="Seconds for measuring and racing.",
)
