"""What a run leaves in its folder: settings, trace and checkpoints."""

from __future__ import annotations

import contextlib
import time
import warnings
from pathlib import Path
from typing import Any

from rightbatch.core.errors import RightbatchError, RunFolderError, SettingError
from rightbatch.core.json_io import (
    MISREAD,
    delete_temporaries,
    read_plain,
    write_json,
)
from rightbatch.core.text import first_line
from rightbatch.core.torch_private import is_out_of_memory
from rightbatch.training.checkpoint import Checkpoints
from rightbatch.training.fingerprint import FORMAT, changes, fingerprint
from rightbatch.training.folder_lock import FolderLock
from rightbatch.training.run_folder import (
    CHECKPOINTS,
    JOB,
    KNOWN,
    RUN,
    TRACE,
    make_run_folder,
)
from rightbatch.training.run_state import RunState
from rightbatch.training.settings import Settings
from rightbatch.training.trace import Trace, TraceRow, read_trace


class RunFiles:
    """What a run leaves in its folder, written by the first rank.

    Args:
        folder: Of the run.
        run: What is saved.
        every_s: Seconds between checkpoints.
    """

    def __init__(self, folder: Path, run: RunState, every_s: float) -> None:
        self.folder, self.run, self.every_s = folder, run, every_s
        self.first = run.ranks.rank == 0
        self.checkpoints = Checkpoints(folder / CHECKPOINTS)
        self.rows: tuple[TraceRow, ...] = ()
        self.last: Path | None = None
        self.resumed = False
        self._saved = time.monotonic()
        self._trace: Trace | None = None
        self._lock: FolderLock | None = None
        self._failure: RunFolderError | None = None

    def open(self, settings: Settings, going_on: bool, accept: bool = False) -> None:
        """Go on from the newest checkpoint, or begin: the folder is written now.

        Args:
            settings: Of the run.
            going_on: With the run in the folder.
            accept: Also where the job computes something else since it was begun.

        Raises:
            RunFolderError: Another run is under way there, it holds one, or cannot be
                read or written.
            SettingError: The run is of another job, or of one that has changed.
        """
        now: dict[str, str] = {}
        if self.first:
            if not going_on and not self._untrained():
                make_run_folder(self.folder, self.run.job.name)
            self._lock = FolderLock(self.folder)
            for folder in (self.folder, self.checkpoints.folder):
                delete_temporaries(folder)
            stream = self.run.stream
            now = fingerprint(
                self.run.job,
                self.run.network,
                data=stream.fingerprint,
                workers=stream.num_workers > 0,
            )
        if going_on:
            self._restore()
            self.resumed = True
            if self.first:
                self._compare(now, accept)
        if self.first:
            settings.save(self.folder / RUN)
            write_json(self.folder / JOB, now, FORMAT)
            self._trace = Trace(self.folder / TRACE, self.rows)
        if not going_on:  # to go back to, whatever happens
            self.save()
            if self._failure is not None:
                raise self._failure

    def _compare(self, now: dict[str, str], accept: bool) -> None:
        """Refuse a job that has changed since the run was begun, or tell of it."""
        path = self.folder / JOB
        if not path.exists():
            warnings.warn(
                f"{path} is missing: whether the job has changed since the run was "
                "begun is not known",
                stacklevel=3,
            )
            return
        changed = "; ".join(changes(read_plain(path, FORMAT), now))
        if changed and not accept:
            raise SettingError(
                "the job has changed since the run was begun",
                seen=changed,
                why="from here on it would be another run: with other data some "
                "examples are lost and others seen twice, with another loss or model "
                "the steps before have served another end",
                fix="the job as it was; another --out for a new run; or, if it is "
                "meant, --accept-changes (accept_changes=True)",
            )
        if changed:
            self.run.tell(
                f"gone on, as was asked, with a job that has changed: {changed}"
            )

    def _untrained(self) -> bool:
        """Whether a run was begun here that ended before it had trained anything."""
        held = {name for name in KNOWN if (self.folder / name).exists()}
        trace = self.folder / TRACE
        trained = trace.exists() and trace.stat().st_size > 0
        trained |= any(self.checkpoints.folder.glob("step-*[1-9]*.pt"))
        return bool(held) and held <= {RUN, TRACE, CHECKPOINTS, JOB} and not trained

    def due(self) -> bool:
        """Whether it is time; only the first rank's clock counts."""
        return self.first and time.monotonic() - self._saved >= self.every_s

    def save(self, stream: dict[str, Any] | None = None) -> None:
        """Write a checkpoint; collective. What fails is told, and training goes on."""
        state = self.run.state(stream)
        self._saved = time.monotonic()
        if not self.first:
            return
        about = {
            "job": self.run.job.name,
            "examples": self.run.examples,
            "batch_size": self.run.batch_size,
            "world_size": self.run.ranks.size,
        }
        try:
            self.last = self.checkpoints.save(state, steps=self.run.steps, about=about)
            self._failure = None
        except RunFolderError as error:
            self._failure = error
            warnings.warn(f"{error.what}: {error.seen}; training goes on", stacklevel=2)

    def save_before(self, error: Exception) -> None:
        """Keep the steps made, before an error ends the run between two of them.

        Only on one rank: others are where nobody knows.
        """
        run = self.run
        if run.ranks.size > 1 or not run.between_steps:
            return
        with contextlib.suppress(Exception):  # which would hide the first
            self.save()
        if self._failure is None and isinstance(error, RightbatchError):
            error.fix += f"; step {run.steps} is saved, and --resume goes on from it"

    def write(self, row: TraceRow) -> None:
        """Append a row to the trace."""
        if self._trace is not None:
            self._trace.write(row)

    def roll_back(self) -> None:
        """After an update that cannot be trusted: to the last checkpoint, in place."""
        steps, told = self.run.steps, list(self.run.events)
        pieces = self.run.accumulator.micro_batch_size
        smaller = pieces.shrink(self.run.batch_size) or 1
        self._restore()
        self.run.accumulator.plan_micro_batch(smaller)  # for good
        self.run.events = told
        self.run.tell(
            f"memory ran out inside the optimizer at step {steps + 1}: back to this "
            f"one, in micro-batches of {smaller}"
        )
        if self.first:
            if self._trace is not None:
                self._trace.close()
            self._trace = Trace(self.folder / TRACE, self.rows)

    def close(self) -> None:
        """Close the trace, and let the next run in."""
        if self._trace is not None:
            self._trace.close()
        if self._lock is not None:
            self._lock.close()

    def finish(self) -> None:
        """The run has ended.

        Raises:
            RunFolderError: The last checkpoint or row could not be written.
        """
        if self._failure is not None:
            raise self._failure
        if self._trace is not None:
            self._trace.finish()

    def _restore(self) -> None:
        found = self.checkpoints.newest()
        ranks = self.run.ranks
        if found is None:
            raise RunFolderError(
                f"{self.folder} holds no checkpoint to go on from",
                fix="begin the run again, with another --out",
            )
        ranks.agree("the checkpoint", found[0].name, "one folder that all ranks see")
        self.last, state = found
        trace = self.folder / TRACE
        rows = read_trace(trace) if trace.exists() else ()
        try:
            if (self.folder / JOB).exists():  # where that is compared, and more
                state["stream"]["fingerprint"] = self.run.stream.fingerprint
            self.run.restore(state)
            self.rows = tuple(row for row in rows if row.steps <= self.run.steps)
        except (*MISREAD, RuntimeError) as error:
            if isinstance(error, RightbatchError) or is_out_of_memory(error):
                raise
            raise RunFolderError(
                f"the checkpoint {found[0]} holds no state of this run",
                seen=f"{type(error).__name__}: {first_line(error, 120)}",
                why="it was not written by this version, or was changed since",
                fix="copy another checkpoint back, or begin again in another --out",
            ) from error


def has_checkpoint(folder: Path, resume: bool | str) -> bool:
    """Whether there is a run to go on with, and that was asked for.

    Raises:
        SettingError: ``resume`` is none of its values.
        RunFolderError: There is none, and there should be.
    """
    if resume not in (True, False, "auto"):
        raise SettingError(
            "resume must be True, False or 'auto'", seen=f"resume={resume!r}"
        )
    there = bool(Checkpoints(folder / CHECKPOINTS).paths())
    if resume is True and not there:
        raise RunFolderError(
            f"{folder} holds no run to go on with",
            seen="no checkpoints" if folder.exists() else "no such folder",
            fix="leave --resume out to begin one",
        )
    return there and bool(resume)
