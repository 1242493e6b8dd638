"""Trials wait, run and end; what was begun and not ended waits again."""

from pathlib import Path

import pytest

import rightbatch as rb
from cases import Truth, a_race
from rightbatch.measure.measurements import Lane
from rightbatch.sweep.journal import Journal


def proposed(lanes: tuple[Lane, ...], number: int) -> tuple[int, float]:
    return 64, 0.1 * (1 + len(lanes))


def test_what_waits_comes_before_what_is_proposed(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", proposed)
    lane = a_race(Truth(), [(16, 0.05)]).lanes[0]
    journal.add(16, 0.05)
    journal.add(16, 0.05)  # once for all
    first, alike = journal.ask("0")
    assert (first.params, alike) == ({"batch_size": 16, "lr": 0.05}, 0)
    journal.tell(first, lane)
    second, _ = journal.ask("0")
    assert second.params == {"batch_size": 64, "lr": 0.2}
    assert Journal(tmp_path / "j").lanes == (lane,)
    assert journal.begun == 2


@pytest.mark.parametrize("worker", ["0", None])
def test_a_trial_of_a_worker_that_is_gone_is_taken_up(
    worker: str | None, tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "j", proposed)
    mine, _ = journal.ask("0")
    other, _ = journal.ask("1")
    again = Journal(tmp_path / "j", proposed)
    assert again.take_back(worker) == (2 if worker is None else 1)
    assert again.begun == (0 if worker is None else 1)
    repeated, repeat = again.ask("0")
    assert repeated.params == mine.params == other.params
    assert repeat == 0  # as it was: not that of the other, which is or was the first


def test_what_is_taken_up_is_no_copy_of_what_came_after_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", lambda lanes, number: (64, 0.1))
    journal.ask("0")
    later, repeat = journal.ask("1")
    journal.tell(later, a_race(Truth(), [(64, 0.1)]).lanes[0])
    journal.take_back("0")
    assert {repeat, journal.ask("0")[1]} == {0, 1}


def test_a_journal_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "j").write_text("no journal\nat all\n")
    with pytest.raises(rb.RunFolderError, match="damaged, or no journal"):
        Journal(tmp_path / "j")
