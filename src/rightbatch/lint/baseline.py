"""Known findings, kept in a file: a check then tells the new ones only."""

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
NUMBER = re.compile(r"\d+(?:[.,]\d+)*(?:e[+-]?\d+)?")


def fingerprint(code: str, what: str) -> str:
    """What stays the same of a finding while its numbers change.

    Example:
        >>> fingerprint("RB206", "31% of all") == fingerprint("RB206", "9% of all")
        True
    """
    text = f"{code} {NUMBER.sub('#', what)}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A finding that is not told again: code and sentence."""

    code: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """The findings that were there when it was written.

    Attributes:
        findings: Compared by code and sentence, whatever the numbers in it.
    """

    findings: tuple[Known, ...]

    @classmethod
    def of(cls, findings: Iterable[Finding]) -> Baseline:
        """These findings, from now on known."""
        return cls(findings=tuple(Known(code=f.code, what=f.what) for f in findings))

    def new(self, findings: Iterable[Finding]) -> tuple[Finding, ...]:
        """Those of the findings that are not known."""
        known = {fingerprint(k.code, k.what) for k in self.findings}
        return tuple(f for f in findings if fingerprint(f.code, f.what) not in known)

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
