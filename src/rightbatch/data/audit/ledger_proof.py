"""What a ledger proves: reads the files that all ranks have written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rightbatch.core.errors import RunFolderError


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerAudit:
    """What a ledger proves.

    Attributes:
        steps: Steps in the run, those rolled back by a resume not counted.
        examples: Examples handed out in them.
        epochs: Whole epochs behind the run.
        left_out: Examples left out because ``tail="drop"``, ``skip`` or ``set_epoch``
            asked for it.
        padded: Examples that came once more because ``tail="pad"`` asked for it.
        lost: Other examples that are missing before where the run stands.
        repeated: Examples that came more than once in an epoch, every extra one.
        rolled_back: Steps written down that a resume has made again.
    """

    steps: int
    examples: int
    epochs: int
    left_out: int
    padded: int
    lost: int
    repeated: int
    rolled_back: int

    @property
    def exact(self) -> bool:
        """Whether nothing was lost and nothing repeated."""
        return not self.lost and not self.repeated

    def __str__(self) -> str:
        verdict = "each exactly once" if self.exact else "NOT exactly once"
        return (
            f"{self.examples} examples in {self.steps} steps, {self.epochs} whole "
            f"epochs: {verdict}\n"
            f"{self.lost} lost, {self.repeated} repeated; as asked: {self.left_out} "
            f"left out, {self.padded} padded; {self.rolled_back} steps rolled back"
        )


def audit_of(folder: Path, length: int | None = None) -> LedgerAudit:
    """Count what every epoch has seen.

    Args:
        folder: The ledger.
        length: Examples in the data set; default what the ledger says.

    Raises:
        RunFolderError: There is no ledger.
    """
    rows, rolled_back = _rows(folder)
    size = length or rows[0]["length"]
    end = max(row["after"] for row in rows)
    # Every rank says the same of these.
    steps = {(row["step"], row["start"]): row for row in rows}.values()
    left_out = sum(row["after"] - row["start"] - row["examples"] for row in steps)
    examples = lost = repeated = 0
    for epoch in range(end // size + 1):
        indices = [i for row in rows for i in row["epochs"].get(str(epoch), [])]
        seen = np.bincount(np.asarray(indices, dtype=np.int64), minlength=size)
        examples += len(indices)
        repeated += int(np.maximum(seen - 1, 0).sum())
        # Of an epoch that is not over, as many as lie behind.
        lost += min(size, end - epoch * size) - int((seen > 0).sum())
    return LedgerAudit(
        steps=sum(row["examples"] > 0 for row in steps),
        examples=examples,
        epochs=end // size,
        left_out=left_out,
        padded=sum(row["padded"] for row in steps),
        lost=lost - left_out,
        repeated=repeated,
        rolled_back=rolled_back,
    )


def _rows(folder: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines that count, and how many steps a resume has made void."""
    segments: dict[int, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("segment-*-rank-*.jsonl")):
        segments.setdefault(int(path.stem.split("-")[1]), []).extend(_lines(path))
    kept: list[dict[str, Any]] = []
    void: set[tuple[int, int]] = set()
    for number, rows in sorted(segments.items()):
        first = min(map(_place, rows), default=(0, 0))
        void |= {(number, row["step"]) for row in kept if _place(row) >= first}
        kept = [row for row in kept if _place(row) < first] + rows
    if not kept:
        raise RunFolderError("there is no ledger here", seen=str(folder))
    return kept, len(void)


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, each step's last one.

    A line that was broken off, by a kill or a full disk, is none: its step came again,
    or its examples are lost.
    """
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        while rows and _place(rows[-1]) >= _place(row):
            rows.pop()
        rows.append(row)
    return rows


def _place(row: dict[str, Any]) -> tuple[int, int]:
    """Where it stands; what was left out just before a step has that step's number."""
    return row["step"], row["start"]
