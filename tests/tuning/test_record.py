"""The record: on the disk after every change, whenever the work is broken off."""

import itertools
from pathlib import Path

import pytest

import rightbatch as rb
from cases import made_up, regression_job
from rightbatch.core.progress import Phase, Progress
from rightbatch.tuning.measurement_record import Record


def test_every_change_is_saved_and_phases_are_timed(tmp_path: Path) -> None:
    path, found = tmp_path / "measurements.json", made_up()
    record = Record(path, spec="train.py:job", command="rightbatch tune train.py")
    with record.timed(Progress().phase("Check the job", 1.0)):
        record.start(found.job, found.machine, ())
    assert rb.Measurements.load(path).command == "rightbatch tune train.py"
    record.update(times=found.times)
    saved = rb.Measurements.load(path)
    assert saved == record.measurements
    assert saved.times == found.times
    assert list(saved.seconds or {}) == ["Check the job"]


class Interrupting(Progress):
    """Ctrl-C at the n-th thing that is told."""

    def __init__(self, n: int) -> None:
        self.left, self.fired = n, False

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0 and not self.fired:
            self.fired = True
            raise KeyboardInterrupt

    def began(self, phase: Phase) -> None:
        self._count()

    def updated(self, phase: Phase, text: str) -> None:
        self._count()

    def ended(self, phase: Phase, finished: bool) -> None:
        self._count()


def test_an_interrupt_at_any_moment_leaves_a_file_that_can_be_read(
    tmp_path: Path,
) -> None:
    job, fired = regression_job(examples=512), 0
    for n in itertools.chain((0, 1, 2, 3), itertools.count(7, 60)):
        path = tmp_path / f"{n}.json"
        progress = Interrupting(n)
        try:
            rb.tune(job, budget_s=1, record=Record(path), progress=progress)
        except KeyboardInterrupt:
            fired += 1
        assert progress.fired == (progress.left < 0)
        if path.exists():
            assert rb.Measurements.load(path).job.batch_size == 16
        else:
            assert n < 2  # before the job was checked there is nothing to keep
        if not progress.fired:
            break  # the whole tuning was gone through
    assert fired >= 5


def test_a_record_is_not_asked_before_it_was_started() -> None:
    with pytest.raises(AssertionError, match="not started"):
        _ = Record().measurements
