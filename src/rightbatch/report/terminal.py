"""The terminal: printing as it is, and phases with the time left."""

from __future__ import annotations

import textwrap
import time

from rich.console import Console
from rich.status import Status
from rich.text import Text

from rightbatch.core.progress import Phase, Progress
from rightbatch.core.units import show_seconds

WIDTH = 80
PLAIN_EVERY_S = 10.0  # how often a phase says where it is when output is piped


class LiveLine:
    """One line that is overwritten in a terminal; when piped, a line now and then."""

    def __init__(self, console: Console) -> None:
        self.console, self.spoken = console, time.monotonic()
        self.status: Status | None = None

    def show(self, text: str) -> None:
        """The latest state, cut to the width of a line."""
        if self.console.is_terminal:
            if self.status is None:
                self.status = self.console.status("")
                self.status.start()
            self.status.update(Text(text[: WIDTH - 2]))
        elif time.monotonic() - self.spoken > PLAIN_EVERY_S:
            self.spoken = time.monotonic()
            print_plain(self.console, text[:WIDTH], "dim")

    def end(self) -> None:
        """Take it away."""
        if self.status is not None:
            self.status.stop()
            self.status = None


class TerminalProgress(Progress):
    """Prints a line a phase; while it lasts, a live one with the time left.

    Args:
        console: Where to.
        phases: How many there will be.
    """

    def __init__(self, console: Console, phases: int) -> None:
        self.console, self.phases, self.number = console, phases, 0
        self.line = LiveLine(console)

    def began(self, phase: Phase) -> None:
        """Open the live line."""
        self.number += 1
        self.line = LiveLine(self.console)
        self.line.show(self._label(phase))

    def updated(self, phase: Phase, text: str) -> None:
        """Show the latest result and the time left."""
        left_s = phase.budget_s - phase.elapsed_s
        if left_s > 1:
            text += f", up to {show_seconds(round(left_s))} left"
        self.line.show(f"{self._label(phase)} {text}")

    def ended(self, phase: Phase, finished: bool) -> None:
        """Take the live line away; a phase that finished leaves one that lasts."""
        self.line.end()
        if finished:
            took = show_seconds(phase.elapsed_s)
            line = f"{self._label(phase)} {phase.summary}"
            room = WIDTH - len(took) - 1
            if len(line) > room:  # a part less, rather than half a word
                line = line[:room].rpartition(",")[0] or line[:room]
            print_plain(self.console, f"{line:<{room}} {took}")

    def _label(self, phase: Phase) -> str:
        return f" {self.number}/{self.phases}  {phase.name:<16}"


def print_plain(console: Console, text: str, style: str = "") -> None:
    """Print without markup, wrapping or highlighting of ours."""
    console.print(Text(text, style=style), soft_wrap=True)


def wrapped(label: str, text: str, width: int = WIDTH) -> str:
    """A paragraph with its label in the margin."""
    lines = textwrap.wrap(text, width - 8, break_on_hyphens=False) or [""]
    return "\n".join(
        f" {label if i == 0 else '':<7}{line}" for i, line in enumerate(lines)
    )
