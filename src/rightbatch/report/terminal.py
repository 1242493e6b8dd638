"""The terminal: printing as it is, and phases with a bar and the time left."""

from __future__ import annotations

import textwrap

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as LiveBar
from rich.text import Text

from rightbatch.core.progress import Phase, Progress
from rightbatch.core.units import show_seconds

WIDTH = 80
PLAIN_EVERY_S = 10.0  # how often a phase says where it is when output is piped


class TerminalProgress(Progress):
    """Prints a line a phase; in a terminal, a live one with a bar and the time left.

    Args:
        console: Where to.
        phases: How many there will be.
    """

    def __init__(self, console: Console, phases: int) -> None:
        self.console, self.phases, self.number = console, phases, 0
        self.bar: LiveBar | None = None
        self.spoken_s = 0.0

    def began(self, phase: Phase) -> None:
        """Open the live line."""
        self.number += 1
        self.spoken_s = 0.0
        if self.console.is_terminal:
            self.bar = LiveBar(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=12),
                TextColumn("{task.fields[note]}"),
                console=self.console,
                transient=True,
            )
            self.bar.start()
            total = max(phase.budget_s, 0.1)
            self.bar.add_task(self._label(phase), total=total, note="")

    def updated(self, phase: Phase, text: str) -> None:
        """Show the latest result and the time left."""
        elapsed_s = phase.elapsed_s
        left_s = phase.budget_s - elapsed_s
        note = text
        if left_s > 1:
            note += f", up to {show_seconds(round(left_s))} left"
        if self.bar is not None:
            task, room = self.bar.task_ids[0], WIDTH - 40
            self.bar.update(task, completed=elapsed_s, note=note[:room])
        elif elapsed_s - self.spoken_s > PLAIN_EVERY_S:
            self.spoken_s = elapsed_s
            self.console.print(f"{self._label(phase)} {note}"[:WIDTH], style="dim")

    def ended(self, phase: Phase, finished: bool) -> None:
        """Take the live line away; a phase that finished leaves one that lasts."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
        if finished:
            took = show_seconds(phase.elapsed_s)
            line = f"{self._label(phase)} {phase.summary}"
            room = WIDTH - len(took) - 1
            print_plain(self.console, f"{line[:room]:<{room}} {took}")

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
