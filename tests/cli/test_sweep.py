"""`sweep`: its answer, page and numbers; what it refuses."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import rightbatch as rb
from cases import rightbatch
from rightbatch.cli.console import UNDECIDED
from rightbatch.cli.main import cli

JOB = f"{Path(__file__).parents[1]}/studied_job.py:job"


def test_a_sweep_leaves_page_and_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    given = ("--trials", "2", "--budget", "20", "--keep-threads", "--out", "r")
    done = rightbatch("sweep", JOB, *given, cwd=tmp_path)
    assert done.returncode == UNDECIDED, done.stderr
    assert "Not sure: " in " ".join(done.stdout.split())
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "Soonest at the target: B = " in " ".join(done.stdout.split())
    assert "next   rightbatch plan r" in done.stdout
    assert (tmp_path / "r" / "study.html").stat().st_size < 2e6
    more = ("--trials", "3", "--resume", "--out", "r", "--json")
    monkeypatch.chdir(tmp_path)
    again = CliRunner().invoke(cli, ["sweep", JOB, "--keep-threads", *more])
    assert again.exception is None
    study = json.loads(capfd.readouterr().out)["study"]
    assert len(study["race"]["lanes"]) == 4  # the measuring run, and three trials


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--resume"], "needs the folder of the study"),
        (["--branch", "runs/x", "--trials", "3"], "--trials belongs to a study"),
        (["--plan", "none.json", "--out", "x"], "none.json"),
    ],
)
def test_what_it_cannot_do_is_said(
    arguments: list[str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["sweep", "digits", *arguments])
    assert isinstance(done.exception, rb.RightbatchError)
    assert reason in str(done.exception)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("more", [[], ["--branch", "runs/x"]])
def test_several_processes_are_refused(
    more: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = CliRunner().invoke(cli, ["sweep", "digits", *more])
    assert "2 processes" in str(done.exception)
