"""Findings: a code, a severity, and what / seen / why / fix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rightbatch.core.errors import JobError, RightbatchError
from rightbatch.core.shown_as_text import ShownAsText
from rightbatch.core.text import described

Severity = Literal["error", "warning", "note"]
# Where the examples of a batch touch each other.
Coupled = Literal["", "normalization", "loss"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing a rule found.

    Attributes:
        code: Stable code, such as ``"RB104"``; docs/checks.md lists them.
        severity: ``"error"`` ends the measuring, ``"warning"`` limits what it means.
        what: One sentence.
        seen: The numbers that showed it.
        why: Why it matters for the batch size.
        fix: What to do.
    """

    code: str
    severity: Severity
    what: str
    seen: str = ""
    why: str = ""
    fix: str = ""

    @classmethod
    def of(cls, code: str, error: RightbatchError) -> Finding:
        """The finding that says what an error says."""
        return cls(
            code=code,
            severity="error",
            what=error.what,
            seen=error.seen,
            why=error.why,
            fix=error.fix,
        )

    def __str__(self) -> str:
        head = f"{self.code} {self.severity}: {self.what}"
        return described(head, seen=self.seen, why=self.why, fix=self.fix)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Findings(ShownAsText):
    """What all rules found, and how many were run.

    Attributes:
        items: The findings.
        rules: How many rules were run.
        coupled: Where the examples of a batch touch each other: ``"normalization"``
            in training mode only, ``"loss"`` in eval mode too, ``""`` nowhere.
        split: How the batch is made, where that was not said in full.

    Example:
        >>> bool(Findings(items=(), rules=14))
        True
    """

    items: tuple[Finding, ...]
    rules: int
    coupled: Coupled = ""
    split: str = ""

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings nothing can be measured with."""
        return tuple(f for f in self.items if f.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that limit what a measurement means."""
        return tuple(f for f in self.items if f.severity == "warning")

    def raise_errors(self) -> None:
        """Raise the first error.

        Raises:
            JobError: There is one.
        """
        for f in self.errors:
            raise JobError(f"{f.code} {f.what}", seen=f.seen, why=f.why, fix=f.fix)

    def __bool__(self) -> bool:
        """Whether the job can be measured: no errors."""
        return not self.errors

    def __str__(self) -> str:
        lines = [str(f) for f in self.items] or [f"{self.rules} checks passed"]
        return "\n".join([self.split] * bool(self.split) + lines)
