"""Who is told how far the work has come; silent unless somebody listens."""

from __future__ import annotations


class Watcher:
    """Hears of phases and their progress; this one says nothing.

    A terminal's listener is in `report.terminal`. Fractions may go back: they are
    shares of a budget, and a phase may end early.
    """

    def phase(self, name: str, seconds: float) -> None:
        """A phase begins that may take so many seconds."""

    def progress(self, text: str) -> None:
        """Something was measured; ``text`` is the running result."""

    def done(self, text: str) -> None:
        """The phase ended with this result."""
