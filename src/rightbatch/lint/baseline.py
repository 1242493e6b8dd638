"""Known findings, kept in a file: a check then reports the new ones only."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rightbatch.core.errors import RunFolderError
from rightbatch.core.findings import Finding
from rightbatch.core.json_io import read_json, write_json

FORMAT = "rightbatch/baseline/1"
# What was measured: a decimal, thousands, a percentage; no part of a name, such as
# "layers.2.norm" or "0.1 (Linear)".
_KINDS = (
    r"\d[\d,]*\.\d+(?:e[+-]?\d+)?",
    r"\d+e[+-]?\d+",
    r"\d{1,3}(?:,\d{3})+",
    r"\d+(?=%)",
)
MEASURED = re.compile(rf"(?<![\w.])(?:{'|'.join(_KINDS)})(?![\w.]| \()")


def fingerprint(finding: Finding | Known) -> str:
    """What stays the same of a finding while what was measured changes.

    Example:
        >>> one, other = (
        ...     Known(code="RB206", severity="warning", what=f"{share} of all tokens")
        ...     for share in ("31%", "9.5%")
        ... )
        >>> fingerprint(one) == fingerprint(other)
        True
    """
    what = MEASURED.sub("#", finding.what)
    text = f"{finding.code} {finding.severity} {what}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A finding that is not reported again."""

    code: str
    severity: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """The findings that were there when it was written.

    Attributes:
        findings: Compared by code, severity and sentence, whatever was measured in it.
    """

    findings: tuple[Known, ...]

    @classmethod
    def of(cls, findings: Iterable[Finding]) -> Baseline:
        """These findings, from now on known."""
        known = (Known(code=f.code, severity=f.severity, what=f.what) for f in findings)
        return cls(findings=tuple(known))

    def new(self, findings: Iterable[Finding]) -> tuple[Finding, ...]:
        """Those of the findings that are not known."""
        known = {fingerprint(k) for k in self.findings}
        return tuple(f for f in findings if fingerprint(f) not in known)

    def save(self, path: str | Path) -> None:
        """Write as JSON, atomically.

        Raises:
            RunFolderError: The file cannot be written.
        """
        write_json(path, self, FORMAT)

    @classmethod
    def load(cls, path: str | Path) -> Baseline:
        """Read what `save` wrote.

        Raises:
            RunFolderError: Missing, damaged, or another kind of file.
        """
        try:
            return read_json(path, cls, FORMAT)
        except RunFolderError as error:
            raise RunFolderError(
                error.what,
                seen=error.seen,
                why="what is known cannot be told from what is new",
                fix=f"rightbatch check JOB --write-baseline {path}",
            ) from error
