"""Phases of a long piece of work, told to whoever listens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Phase:
    """A part of the work that is under way.

    Attributes:
        name: For people, such as ``"Race"``.
        budget_s: Seconds it may take; it may well end sooner.
        summary: What it came to, in a few words; set it before the phase ends.
    """

    def __init__(self, name: str, budget_s: float, progress: Progress) -> None:
        self.name, self.budget_s, self.summary = name, budget_s, ""
        self._progress, self._started = progress, time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._started

    def update(self, text: str) -> None:
        """Say how far it is: the latest result, in a few words."""
        self._progress.updated(self, text)


class Progress:
    """Opens phases and says nothing; `report.terminal` has one that prints them.

    Example:
        >>> with Progress().phase("Race", budget_s=20.0) as phase:
        ...     phase.update("round 1 of 8: plan")
        ...     phase.summary = "8 rounds"
    """

    @contextmanager
    def phase(self, name: str, budget_s: float) -> Iterator[Phase]:
        """A phase that lasts as long as the ``with`` block."""
        phase, finished = Phase(name, budget_s, self), False
        self.began(phase)
        try:
            yield phase
            finished = True
        finally:
            self.ended(phase, finished)

    def began(self, phase: Phase) -> None:
        """Called when a phase begins."""

    def updated(self, phase: Phase, text: str) -> None:
        """Called with every `Phase.update`."""

    def ended(self, phase: Phase, finished: bool) -> None:
        """Called when a phase ends; ``finished`` is False where an error ended it."""
