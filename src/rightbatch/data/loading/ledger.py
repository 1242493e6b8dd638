"""A ledger of every example handed out, which proves that each came exactly once."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rightbatch.core.errors import RunFolderError
from rightbatch.core.json_io import parse_json
from rightbatch.data.loading.step_plan import Planner, StepPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerAudit:
    """What a ledger proves.

    Attributes:
        steps: Steps in the run, without those that a resume has made again.
        examples: Examples handed out in them.
        epochs: Whole epochs behind the run.
        left_out: Examples left out because ``tail="drop"``, ``skip`` or ``set_epoch``
            asked for it.
        padded: Examples that came once more because ``tail="pad"`` asked for it.
        lost: Other examples that are missing before where the run stands.
        repeated: Examples that came more than once in an epoch, every extra one.
    """

    steps: int
    examples: int
    epochs: int
    left_out: int
    padded: int
    lost: int
    repeated: int

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
            f"left out, {self.padded} padded"
        )


class Ledger:
    """A folder in which every rank writes down the examples it is handed.

    A file for each rank and segment (the time between a start or resume and the next),
    a line of JSON for each step. A resume from an earlier state makes later steps void.

    Args:
        folder: Where it lies.

    Example:
        >>> import tempfile, torch, rightbatch as rb
        >>> folder = tempfile.mkdtemp()
        >>> stream = rb.BatchStream((torch.arange(10),), 4, ledger=folder)
        >>> for batch in stream:
        ...     pass
        >>> print(rb.data.Ledger(folder).audit())
        10 examples in 3 steps, 1 whole epochs: each exactly once
        0 lost, 0 repeated; as asked: 0 left out, 0 padded
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def audit(self) -> LedgerAudit:
        """Count what every epoch has seen.

        Raises:
            RunFolderError: There is no ledger.
        """
        rows = _valid_rows(self.folder)
        length = rows[0]["length"]
        end = max(row["after"] for row in rows)
        # Every rank says the same of these.
        steps = {_place(row): row for row in rows}.values()
        left_out = sum(row["after"] - row["start"] - row["examples"] for row in steps)
        examples = lost = repeated = 0
        for epoch in range(end // length + 1):
            indices = [i for row in rows for i in row["epochs"].get(str(epoch), [])]
            counts = np.bincount(np.asarray(indices, dtype=np.int64), minlength=length)
            examples += len(indices)
            repeated += int(np.maximum(counts - 1, 0).sum())
            # Of an epoch that is not over, as many as lie behind.
            lost += min(length, end - epoch * length) - int((counts > 0).sum())
        return LedgerAudit(
            steps=sum(row["examples"] > 0 for row in steps),
            examples=examples,
            epochs=end // length,
            left_out=left_out,
            padded=sum(row["padded"] for row in steps),
            lost=lost - left_out,
            repeated=repeated,
        )


class LedgerWriter:
    """Writes what one rank of a stream is handed.

    A line is written before the stream moves on. Where it cannot be, or a Ctrl-C comes
    in between, the step comes again, and its second line counts.

    Args:
        folder: Made with the first line, if missing.
        planner: Of the stream.
    """

    def __init__(self, folder: str | Path, planner: Planner) -> None:
        self.folder, self._planner = Path(folder), planner
        self._segment = 0
        self._file: Path | None = None  # made with the first line

    def begin(self, segment: int) -> None:
        """The next line belongs to this segment: a state was loaded."""
        self._segment, self._file = segment, None

    def step(self, plan: StepPlan) -> None:
        """Write down a step that has been read."""
        length = self._planner.order.length
        # Padding is no example of the epoch: it is counted, not listed.
        fresh = len(plan.cut.indices) - plan.cut.repeats
        positions = plan.cut.positions
        if positions is None:
            positions = np.arange(plan.position, plan.position + fresh)
        parts = [m.part for m in plan.micro if not m.part.filler]
        places = [np.arange(p.start, min(p.stop, fresh)) for p in parts]
        mine = np.concatenate(places) if places else np.empty(0, dtype=np.int64)
        epochs = positions[mine] // length
        self._append(
            {
                "step": plan.before.step,
                "start": plan.before.position,
                "after": plan.after.position,
                "examples": fresh,
                "padded": plan.cut.repeats,
                "epochs": {
                    str(epoch): plan.cut.indices[mine[epochs == epoch]].tolist()
                    for epoch in np.unique(epochs).tolist()
                },
            }
        )

    def left_out(self, step: int, start: int, after: int) -> None:
        """Write down that the positions from ``start`` to before ``after`` are skipped.

        Args:
            step: Number of the step that would have had them, or that comes next.
            start: First position, over all epochs.
            after: One behind the last.
        """
        if after > start:
            row = {"step": step, "start": start, "after": after}
            self._append(row | {"examples": 0, "padded": 0, "epochs": {}})

    def _append(self, row: dict[str, Any]) -> None:
        row["length"] = self._planner.order.length
        try:
            if self._file is None:
                self._file = self._begun()
            # The line's end comes first: a line that was broken off stands alone.
            line = ("\n" + json.dumps(row)).encode()
            with self._file.open("ab", buffering=0) as file:
                while line:
                    line = line[file.write(line) :]
        except OSError as error:
            raise RunFolderError(
                f"cannot write the ledger in {self.folder}",
                seen=error.strerror or str(error),
                why="the step is not counted, and comes again",
                fix="another folder, or make room and go on",
            ) from error

    def _begun(self) -> Path:
        """The file of this rank and segment; those that it makes void are deleted.

        Files of ranks that are no more are the first rank's to delete.
        """
        rank, replaced = self._planner.rank, False
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob("segment-*-rank-*.jsonl"):
            segment, other = (int(path.stem.split("-")[place]) for place in (1, 3))
            gone = rank == 0 and other >= self._planner.world_size
            if segment >= self._segment and (other == rank or gone):
                path.unlink(missing_ok=True)
                replaced = True
        if replaced and not self._segment and not rank:
            warnings.warn(
                f"the ledger of an earlier run in {self.folder} is replaced: this run "
                "begins anew (to go on with that one, load the state first)",
                stacklevel=6,
            )
        return self.folder / f"segment-{self._segment:06d}-rank-{rank}.jsonl"


def _valid_rows(folder: Path) -> list[dict[str, Any]]:
    """The lines of all ranks, without those that a resume has made void."""
    segments: dict[int, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("segment-*-rank-*.jsonl")):
        segments.setdefault(int(path.stem.split("-")[1]), []).extend(_lines(path))
    valid: list[dict[str, Any]] = []
    for _, rows in sorted(segments.items()):
        first = min(map(_place, rows), default=(0, 0))
        valid = [row for row in valid if _place(row) < first] + rows
    if not valid:
        raise RunFolderError("there is no ledger here", seen=str(folder))
    return valid


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, each step's last one.

    A line that was broken off, by a kill or a full disk, is none: its step came again,
    or its examples are lost.
    """
    rows: list[dict[str, Any]] = []
    for line in path.read_bytes().split(b"\n"):
        try:
            row = parse_json(line)
        except ValueError:
            continue
        while rows and _place(rows[-1]) >= _place(row):
            rows.pop()
        rows.append(row)
    return rows


def _place(row: dict[str, Any]) -> tuple[int, int]:
    """Where it stands; what was left out just before a step has that step's number."""
    return row["step"], row["start"]
