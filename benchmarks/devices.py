"""The tests marked ``cuda`` on this machine's GPU, and their figures in docs/gpu.md.

    make gpu

Without a CUDA device it says so, and changes nothing. The table is written between the
markers of the page, with whatever failed as such; the exit status is the tests'.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rightbatch.core.json_io import write_text
from rightbatch.core.machine import summary

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "gpu.md"
BEGIN, END = "<!-- devices: begin -->\n", "<!-- devices: end -->"

Row = tuple[str, str, str]  # what was looked at, what was seen, the outcome


class Rows:
    """A pytest plugin: a row for every figure that a test recorded.

    Attributes:
        rows: In the order of the tests; one that recorded nothing has its name.
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        """After every phase of a test."""
        if report.when != "call" and not (report.skipped or report.failed):
            return
        outcome = report.outcome
        if report.skipped:  # where, and why
            outcome = f"skipped: {report.longrepr[-1].removeprefix('Skipped: ')}"
        name = report.nodeid.split("::")[-1].partition("[")[0].removeprefix("test_")
        figures = report.user_properties or [(name.replace("_", " "), "")]
        self.rows += [(what, str(seen), outcome) for what, seen in figures]


def table(rows: Sequence[Row], machine: str) -> str:
    """The rows in Markdown, and where they were seen.

    Example:
        >>> print(table([("watts", "300", "passed")], "a GPU"))
        On a GPU:
        <BLANKLINE>
        | what | seen | outcome |
        | --- | --- | --- |
        | watts | 300 | passed |
        <BLANKLINE>
    """
    lines = [f"On {machine}:", "", "| what | seen | outcome |", "| --- | --- | --- |"]
    cells = ((cell.replace("|", "/") for cell in row) for row in rows)
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in cells), ""])


def with_table(page: str, text: str) -> str:
    """The page with another text between its markers."""
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{PAGE} has lost its markers")
    return before + BEGIN + text + END + after


def main() -> int:
    """Run the tests, print and write the table."""
    if not torch.cuda.is_available():
        print("not run: no CUDA device")
        return 0
    plugin = Rows()
    status = pytest.main(["-m", "cuda", str(ROOT / "tests" / "devices")], [plugin])
    versions = f"{torch.cuda.get_device_name()}, {summary()}"
    text = table(plugin.rows, versions)
    print(text)
    write_text(PAGE, with_table(PAGE.read_text(encoding="utf-8"), text))
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
