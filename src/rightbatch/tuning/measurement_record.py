"""The record of a job's measurements while they are made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rightbatch.core.findings import Finding
from rightbatch.core.progress import Phase
from rightbatch.measure.measurements import JobFacts, Machine, Measurements
from rightbatch.training.ranks import Ranks


class Record:
    """Measurements as they grow; where there is a file, every change is saved to it.

    Args:
        path: The file, such as ``runs/x/measurements.json``; its folder exists.
        spec: The job's address, such as ``"train.py:job"``; empty for the job's name.
        command: What was typed.
    """

    def __init__(
        self, path: Path | None = None, *, spec: str = "", command: str = ""
    ) -> None:
        self.path, self.spec, self.command = path, spec, command
        self._measurements: Measurements | None = None

    @property
    def measurements(self) -> Measurements:
        """What is known by now; there is nothing before `start`."""
        assert self._measurements is not None, "the record was not started"
        return self._measurements

    def start(
        self, job: JobFacts, machine: Machine, findings: tuple[Finding, ...]
    ) -> None:
        """Begin with what is known of the job and of the machine.

        Raises:
            RunFolderError: The file cannot be written; so for every change.
        """
        started = datetime.now().astimezone().isoformat(timespec="seconds")
        self._save(
            Measurements(
                version=version("rightbatch"),
                command=self.command,
                started=started,
                job=job,
                machine=machine,
                findings=findings,
            )
        )

    def update(self, **changes: Any) -> None:
        """Replace these fields of the measurements."""
        self._save(replace(self.measurements, **changes))

    def share(self, ranks: Ranks) -> None:
        """Go by what the first rank has measured, on all of them. Collective."""
        self._measurements = ranks.from_first(self.measurements)

    @contextmanager
    def timed(self, opened: AbstractContextManager[Phase]) -> Iterator[Phase]:
        """A phase whose time is recorded: ``record.timed(progress.phase(...))``."""
        with opened as phase:
            yield phase
        self._save(self.measurements.spent(phase.name, phase.elapsed_s))

    def _save(self, measurements: Measurements) -> None:
        self._measurements = measurements
        if self.path is not None:
            measurements.save(self.path)
