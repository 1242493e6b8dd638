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
        steps: Steps in the run, those rolled back by a resume left out.
        examples: Examples handed out in them.
        epochs: Whole epochs behind the run.
        dropped: Examples left out at epochs' ends because ``tail="drop"`` asked for it.
        skipped: Examples left out because ``skip`` or ``set_epoch`` asked for it.
        padded: Examples that came once more because ``tail="pad"`` asked for it.
        lost: Other examples that are missing before where the run stands.
        repeated: Examples that came more than once in an epoch, every extra one.
        segments: Files of it per rank: a resume begins one, and one that begins at the
            same state as an earlier one replaces it.
        rolled_back: Steps in those files that a resume made again.
        earlier: Runs in this folder before, which were begun anew and set aside.
    """

    steps: int
    examples: int
    epochs: int
    dropped: int
    skipped: int
    padded: int
    lost: int
    repeated: int
    segments: int
    rolled_back: int
    earlier: int

    @property
    def exact(self) -> bool:
        """Whether nothing was lost and nothing repeated."""
        return not self.lost and not self.repeated

    def __str__(self) -> str:
        verdict = "each exactly once" if self.exact else "NOT exactly once"
        return (
            f"{self.examples} examples in {self.steps} steps, {self.epochs} whole "
            f"epochs: {verdict}\n"
            f"{self.lost} lost, {self.repeated} repeated; as asked: {self.dropped} "
            f"dropped, {self.skipped} skipped, {self.padded} padded;\n"
            f"{self.segments} segments, {self.rolled_back} steps rolled back"
            + (f", {self.earlier} earlier runs begun anew" if self.earlier else "")
        )


def audit_of(folder: Path, length: int | None = None) -> LedgerAudit:
    """Count what every epoch has seen.

    Args:
        folder: The ledger.
        length: Examples in the data set; default what the ledger says.

    Raises:
        RunFolderError: There is no ledger, or it is damaged.
    """
    rows, rolled_back, segments = _rows(folder)
    size = length or max(row.get("length", 0) for row in rows)
    if not size:
        raise RunFolderError(
            f"the ledger {folder} is damaged", seen="no row has a length"
        )
    index = np.asarray([i for r in rows for i in r["indices"]], dtype=np.int64)
    spans = [np.arange(*span) for r in rows for span in r["positions"]]
    at = np.concatenate([np.empty(0, dtype=np.int64), *spans])
    # Every rank says the same of what is left out.
    left_out = {
        (r["start"], r["after"]): (r.get("dropped", 0), r.get("skipped", 0))
        for r in rows
    }
    dropped, skipped = (sum(counts) for counts in zip(*left_out.values(), strict=True))
    end = max(r["after"] for r in rows)
    lost = repeated = 0
    for epoch in range(end // size + 1):
        seen = np.bincount(index[at // size == epoch], minlength=size)
        repeated += int(np.maximum(seen - 1, 0).sum())
        # Of an epoch that is not over, as many as lie behind.
        lost += min(size, end - epoch * size) - int((seen > 0).sum())
    return LedgerAudit(
        steps=len({r["step"] for r in rows if r["positions"]}),
        examples=len(index),
        epochs=end // size,
        dropped=dropped,
        skipped=skipped,
        padded=sum({r["step"]: r.get("padded", 0) for r in rows}.values()),
        lost=lost - dropped - skipped,
        repeated=repeated,
        segments=segments,
        rolled_back=rolled_back,
        earlier=len(list(folder.glob("earlier-*"))),
    )


def _rows(folder: Path) -> tuple[list[dict[str, Any]], int, int]:
    """The rows that count; how many steps were made void; number of segments."""
    segments: dict[int, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("segment-*-rank-*.jsonl")):
        number = int(path.stem.split("-")[1])
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            # A killed process may leave half a line, of a step not handed out.
            if line.endswith("\n"):
                segments.setdefault(number, []).append(_row(line, path))
    if not segments:
        raise RunFolderError("there is no ledger here", seen=str(folder))
    kept: list[dict[str, Any]] = []
    void: set[tuple[int, int]] = set()
    for number in sorted(segments):
        first = min(_place(row) for row in segments[number])
        void |= {(number, r["step"]) for r in kept if _place(r) >= first}
        kept = [r for r in kept if _place(r) < first]
        kept += segments[number]
    return kept, len(void), len(segments)


def _place(row: dict[str, Any]) -> tuple[int, int]:
    """Where it stands; what was left out just before a step has that step's number."""
    return row["step"], row["start"]


def _row(line: str, path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except ValueError as error:
        raise RunFolderError(
            f"the ledger {path} is damaged", seen=f"{line.strip()[:60]}..."
        ) from error
