"""Two tasks of a local Ray cluster, one of them killed: nothing is lost."""

import functools
import os
from pathlib import Path

import pytest

import rightbatch as rb
from rightbatch.sweep.journal import Journal
from rightbatch.sweep.studying import study
from studied_job import job

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray's own
TESTS = Path(__file__).parents[1]


def test_two_tasks_one_of_them_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    kill_one, folder = tmp_path / "kill", tmp_path / "s"
    path = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else a busy machine starves them
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), path]))
    monkeypatch.setenv("KILL_ONE", str(kill_one))
    kill_one.write_text(str(os.getpid()))
    load = functools.partial(rb.load_job, f"{TESTS}/studied_job.py:job")
    try:
        study(job(), folder, trials=6, workers=2, load=load, ray="local", budget_s=150)
    except rb.SettingError as error:
        if not error.what.startswith("no Ray cluster answers"):
            raise
        # A container without sockets or shared memory has none; all else must work.
        pytest.skip(f"Ray cannot start here: {error.seen}")
    assert not kill_one.exists()  # so one was killed
    assert len(Journal(folder / "study.journal").lanes) >= 6
