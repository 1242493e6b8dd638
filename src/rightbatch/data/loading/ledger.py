"""A ledger of every example handed out, which proves that each came exactly once."""

from __future__ import annotations

import json
import os
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from rightbatch.core.errors import RunFolderError
from rightbatch.data.audit.ledger_proof import LedgerAudit, audit_of
from rightbatch.data.loading.step_plan import StepPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """Who writes into a ledger.

    Attributes:
        segment: Times that a state was loaded.
        rank: Of this process.
        world_size: Number of processes.
        length: Examples in the data set.
    """

    segment: int
    rank: int
    world_size: int
    length: int


class Ledger:
    """A folder in which every rank writes down each example as it is handed out.

    A file per segment (the time between a start or resume and the next) and rank, a
    line per step. A resume from an earlier state makes later steps void.

    Args:
        folder: Where; made if missing.

    Example:
        >>> import tempfile, torch, rightbatch as rb
        >>> from rightbatch.data.loading.ledger import Ledger
        >>> folder = tempfile.mkdtemp()
        >>> stream = rb.BatchStream((torch.arange(10),), 4, ledger=folder)
        >>> for batch in stream:
        ...     pass
        >>> print(Ledger(folder).audit())
        10 examples in 3 steps, 1 whole epochs: each exactly once
        0 lost, 0 repeated; as asked: 0 dropped, 0 skipped, 0 padded;
        1 segments, 0 steps rolled back
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._file: Path | None = None

    def write(self, plan: StepPlan, at: Writer) -> None:
        """Write down a step that has been handed out: it outlives this process."""
        start, fresh = plan.before.position, len(plan.cut.indices) - plan.cut.repeats
        # Padding is no example of the epoch: it was asked for, and is left out here.
        places = plan.cut.positions
        places = np.arange(start, start + fresh) if places is None else places
        mine = [m for m in plan.micro if not m.part.filler]
        own = np.concatenate([places[m.part.start : m.part.stop] for m in mine] or [[]])
        index = np.concatenate(
            [m.piece.indices[: max(0, fresh - m.part.start)] for m in mine] or [[]]
        )
        turn = np.argsort(own)
        self._append(
            at,
            {
                "step": plan.before.step,
                "start": start,
                "after": plan.after.position,
                "dropped": plan.after.position - start - fresh,
                "padded": plan.cut.repeats,
                "positions": _spans(own[turn]),
                "indices": index[turn].astype(int).tolist(),
            },
        )

    def leave_out(
        self, step: int, start: int, after: int, kind: str, at: Writer
    ) -> None:
        """Write down that positions from one to before another are left out.

        Args:
            step: Number of the step that would have had them, or that comes next.
            start: First position, over all epochs.
            after: One behind the last.
            kind: ``"dropped"`` or ``"skipped"``.
            at: Who writes.
        """
        if after > start:
            row = {"step": step, "start": start, "after": after, kind: after - start}
            self._append(at, row | {"positions": [], "indices": []})

    def _append(self, at: Writer, row: dict[str, Any]) -> None:
        try:
            if self._file is None:
                self._file = self._opened(at.segment, at.rank, at.world_size)
            if not (whole := self._file.stat().st_size):
                row = {"length": at.length, "ranks": at.world_size} | row
            line = (json.dumps(row) + "\n").encode()
            try:
                with self._file.open("ab", buffering=0) as file:
                    while line:
                        line = line[file.write(line) :]
            except BaseException:  # a full disk, Ctrl-C: no half of a line
                self.back_to(whole)
                raise
        except OSError as error:
            raise RunFolderError(
                f"cannot write the ledger in {self.folder}",
                seen=error.strerror or str(error),
                why="the step is not counted, and comes again",
                fix="make room and go on; if its files were removed: "
                "stream.load_state_dict(stream.state_dict()) begins new ones",
            ) from error

    def mark(self) -> int:
        """Where this process's file ends: bytes, 0 before its first row."""
        file = self._file
        return 0 if file is None or not file.exists() else file.stat().st_size

    def back_to(self, mark: int) -> None:
        """Take back what was written since: its step was not handed out."""
        if self._file is not None:
            with suppress(OSError):  # the error that led here is the one to tell
                os.truncate(self._file, mark)

    def prepare(self) -> None:
        """See that it can be written.

        Raises:
            RunFolderError: It cannot.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(
                f"cannot make the ledger {self.folder}",
                seen=error.strerror or str(error),
                fix="another folder",
            ) from error

    def restart(self) -> None:
        """The next step belongs to another segment."""
        self._file = None

    def audit(self, length: int | None = None) -> LedgerAudit:
        """Count what every epoch has seen.

        Args:
            length: Examples in the data set; default what the ledger says.

        Raises:
            RunFolderError: There is no ledger, or it is damaged.
        """
        return audit_of(self.folder, length)

    def _opened(self, segment: int, rank: int, world_size: int) -> Path:
        self.prepare()
        # Each rank's own files; those of ranks that are no more are the first's.
        own = []
        for path in sorted(self.folder.glob("segment-*-rank-*.jsonl")):
            number, other = int(path.stem.split("-")[1]), int(path.stem.split("-")[3])
            if other == rank or (not rank and other >= world_size):
                own.append((path, number, other))
        if segment == 0 and any(path.stat().st_size for path, _, _ in own):
            self._set_aside([path for path, _, _ in own], rank)
            own = []
        for path, number, other in own:  # what a resume has rolled back
            if number > segment or (number == segment and other != rank):
                path.unlink(missing_ok=True)
        path = self.folder / f"segment-{segment:06d}-rank-{rank}.jsonl"
        path.write_text("", encoding="utf-8")
        return path

    def _set_aside(self, files: list[Path], rank: int) -> None:
        """Keep an earlier run's files in a folder of their own."""
        run = 1
        while any((aside := self.folder / f"earlier-{run}").glob(f"*-rank-{rank}.*")):
            run += 1
        aside.mkdir(exist_ok=True)
        for path in files:
            path.rename(aside / path.name)
        if rank == 0:
            warnings.warn(
                f"{self.folder} has the ledger of an earlier run, and this one begins "
                f"anew: it is kept in {aside.name} (to go on, load the state first)",
                stacklevel=6,
            )


def _spans(places: Int64[np.ndarray, " n"]) -> list[list[int]]:
    """Ascending places as runs of neighbours: first, and one behind the last."""
    if not len(places):
        return []
    ends = np.flatnonzero(np.diff(places) != 1)
    first = places[np.concatenate([[0], ends + 1])]
    last = places[np.concatenate([ends, [len(places) - 1]])]
    return [[int(a), int(b) + 1] for a, b in zip(first, last, strict=True)]
