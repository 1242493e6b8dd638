"""A study of a real job: kept, gone on with, taken up where it was killed, refused."""

import functools
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

import rightbatch as rb
from cases import regression_job
from rightbatch.core.progress import Phase, Progress
from rightbatch.measure.measurements import Measurements
from rightbatch.sweep.batch_rate_study import Study
from rightbatch.sweep.journal import Journal
from rightbatch.sweep.studying import study
from rightbatch.training.folder_lock import FolderLock
from studied_job import job

LOAD = functools.partial(rb.load_job, f"{Path(__file__).parents[1]}/studied_job.py:job")


def states(folder: Path) -> list[str]:
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "study.journal"))
    storage = optuna.storages.JournalStorage(backend)
    trials = optuna.load_study(study_name=None, storage=storage).trials
    return [trial.state.name for trial in trials]


def test_trials_lead_to_the_target(studied: tuple[Path, Study]) -> None:
    folder, found = studied
    assert {p.name for p in folder.iterdir()} == {
        *("measurements.json", "study.json", "study.journal", ".lock")
    }
    assert found.race.target == 0.1
    assert found.best is not None
    assert len(Journal(folder / "study.journal").lanes) == 4
    today = found.race.lanes[1]  # after the measuring run, which is a lane too
    assert (today.batch_size, today.lr) == (16, 0.01)
    assert Study.load(folder / "study.json").sentences == found.sentences


def test_a_resumed_study_keeps_what_it_has(
    studied: tuple[Path, Study], tmp_path: Path
) -> None:
    folder = tmp_path / "s"
    shutil.copytree(studied[0], folder)
    Journal(folder / "study.journal", lambda lanes, number: (32, 0.02)).ask("killed")
    more = study(job(), folder, trials=6, resume=True)
    before = studied[1].race.lanes
    assert more.race.lanes[: len(before)] == before
    assert len(more.race.lanes) == len(before) + 2
    assert (32, 0.02) in {(x.batch_size, x.lr) for x in more.race.lanes}
    assert states(folder).count("FAIL") == 1  # the one that was killed


class CtrlC(Progress):
    """Presses it before the first trial."""

    def updated(self, phase: Phase, text: str) -> None:
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_leaves_what_can_be_gone_on_with(
    studied: tuple[Path, Study], tmp_path: Path
) -> None:
    folder = tmp_path / "s"
    shutil.copytree(studied[0], folder)
    stopped = study(job(), folder, trials=5, resume=True, progress=CtrlC())
    assert stopped.interrupted
    assert stopped.race.lanes == studied[1].race.lanes
    assert states(folder)[-2:] == ["FAIL", "WAITING"]
    more = study(job(), folder, trials=5, resume=True)
    assert not more.interrupted
    assert len(more.race.lanes) == len(stopped.race.lanes) + 1


def test_a_plan_is_tried_first(studied: tuple[Path, Study], tmp_path: Path) -> None:
    measurements = Measurements.load(studied[0] / "measurements.json")
    plan = replace(rb.decide(measurements).plan, batch_size=24, lr=0.03)
    folder = tmp_path / "s"
    shutil.copytree(studied[0], folder)
    (folder / "study.journal").write_text("")
    found = study(job(), folder, trials=2, plan=plan, resume=True)
    tried = [(x.batch_size, x.lr) for x in found.race.lanes]
    assert tried[1:] == [(24, 0.03), (16, 0.01)]
    with pytest.raises(rb.SettingError, match="plan's batch cannot be tried"):
        study(job(), folder, plan=replace(plan, batch_size=512), resume=True)


def test_two_workers_one_of_them_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is started again and goes on with its trial: nothing is lost."""
    kill_one = tmp_path / "kill"
    monkeypatch.setenv("KILL_ONE", str(kill_one))
    kill_one.write_text(str(os.getpid()))
    folder = tmp_path / "s"
    found = study(job(), folder, trials=6, workers=2, load=LOAD, budget_s=100.0)
    assert not kill_one.exists()  # so one was killed
    assert len(Journal(folder / "study.journal").lanes) >= 6
    assert found.best is not None
    ended = states(folder)
    assert ended.count("FAIL") == 1
    assert "RUNNING" not in ended


def refused(folder: Path, **more: object) -> Callable[[], Study]:
    given: dict[str, object] = {"job": job(), "out": folder, "resume": True}
    return functools.partial(study, **{**given, **more})


def test_what_cannot_be_is_refused(studied: tuple[Path, Study], tmp_path: Path) -> None:
    folder = studied[0]
    with pytest.raises(rb.SettingError, match="needs the job's target"):
        refused(tmp_path / "x", job=regression_job())()
    with pytest.raises(rb.SettingError, match="must be able to make the job"):
        refused(tmp_path / "x", workers=2)()
    with pytest.raises(rb.SettingError, match="number of seconds"):
        refused(tmp_path / "x", budget_s=-1.0)()
    with pytest.raises(rb.SettingError, match="of another job") as other:
        refused(folder, job=replace(job(), batch_size=32))()
    assert other.value.seen == "batch_size 16 there, 32 here"
    with pytest.raises(rb.RunFolderError, match="already holds a run"):
        refused(folder, resume=False)()
    lock = FolderLock(folder)
    with pytest.raises(rb.RunFolderError, match="another run is under way"):
        refused(folder)()
    lock.close()
    assert not (tmp_path / "x").exists()
