"""A ledger of every example handed out, which proves that each came exactly once."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from rightbatch.core.errors import RunFolderError
from rightbatch.data.audit.ledger_proof import LedgerAudit, audit_of
from rightbatch.data.loading.step_plan import Planner, StepPlan


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
        0 lost, 0 repeated; as asked: 0 left out, 0 padded; 0 steps rolled back
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def audit(self, length: int | None = None) -> LedgerAudit:
        """Count what every epoch has seen.

        Args:
            length: Examples in the data set; default what the ledger says.

        Raises:
            RunFolderError: There is no ledger.
        """
        return audit_of(self.folder, length)


class LedgerWriter:
    """Writes what one rank of a stream is handed.

    A line is written before the stream moves on. Where it cannot be, or a Ctrl-C comes
    in between, the step comes again, and its second line counts.

    Args:
        folder: Where; made if missing.
        planner: Of the stream.

    Raises:
        RunFolderError: The folder cannot be made.
    """

    def __init__(self, folder: str | Path, planner: Planner) -> None:
        self.folder, self._planner = Path(folder), planner
        self._segment = 0
        self._file: Path | None = None  # made with the first line
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(
                f"cannot make the ledger {self.folder}",
                seen=error.strerror or str(error),
                fix="another folder",
            ) from error

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
                fix="make room and go on",
            ) from error

    def _begun(self) -> Path:
        """The file of this rank and segment; those that it makes void are deleted.

        Files of ranks that are no more are the first rank's to delete.
        """
        rank, replaced = self._planner.rank, False
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
