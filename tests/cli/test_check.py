"""The command `check`: what it prints, what it writes, and its exit status."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest

import rightbatch as rb
from cases import made_up, rightbatch
from rightbatch.cli.check import check
from rightbatch.lint.rules import ALL_RULES, RULES

SOURCE = """import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rightbatch as rb

x = torch.randn(64, 5)


def make(loss, net=lambda: nn.Linear(5, 1)):
    return rb.Job(
        model=net,
        loss=loss,
        data=x,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
        batch_size=8,
    )


job = make(lambda model, batch: model(batch).square().mean())
summed = make(lambda model, batch: model(batch).square().sum())
normed = make(
    lambda model, batch: model(batch).square().mean(),
    lambda: nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 1)),
)
loader = DataLoader(TensorDataset(torch.zeros(512)), batch_size=16)
stages = "stages:0=8,64=16"
"""
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Run:
    """The command in this process: its status, and what it printed."""
    (tmp_path / "checked.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "checked", raising=False)

    def run_command(*arguments: str) -> tuple[int, str]:
        capfd.readouterr()
        # With --json all that is printed goes elsewhere for good.
        with monkeypatch.context() as context:
            context.setattr(sys, "stdout", sys.stdout)
            status = check.main(list(arguments), standalone_mode=False)
        return status, capfd.readouterr().out

    return run_command


def test_a_sound_job_and_what_comes_next(run: Run) -> None:
    status, out = run("checked.py", "--select", "RB1")
    assert status == 0
    assert out.splitlines()[-2:] == [
        "nothing to mend; 10 rules",
        "next: rightbatch tune checked.py:job",
    ]


def test_the_least_severity_decides_the_status(run: Run) -> None:
    status, out = run("checked.py:normed", "--select", "RB109")
    assert status == 0
    assert "1 warning; 1 rule" in out.splitlines()
    assert max(map(len, out.splitlines())) <= 80
    status, out = run("checked.py:normed", "--select", "RB109", "--fail-on", "warning")
    assert status == 1
    assert "next" not in out
    assert run("checked.py:summed")[0] == 1


def test_known_findings_are_counted(run: Run, tmp_path: Path) -> None:
    written = run("checked.py:summed", "--select", "RB1", "--write-baseline", "b.json")
    assert written[0] == 0
    assert "known from now on, in b.json" in written[1]
    status, out = run("checked.py:summed", "--select", "RB1", "--baseline", "b.json")
    assert status == 0
    assert "nothing new" in out
    assert "1 known finding not shown" in out
    assert run("checked.py:normed", "--baseline", "b.json", "--fail-on", "note")[0] == 1
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(rb.RunFolderError, match="not JSON"):
        run("checked.py", "--baseline", "b.json")


def test_documents_for_machines(run: Run, tmp_path: Path) -> None:
    status, out = run("checked.py:summed", "--json", "--sarif", "out.sarif")
    document = json.loads(out)
    assert (status, document["known"]) == (1, 0)
    assert [f["code"] for f in document["items"]] == ["RB105"]
    sarif = json.loads((tmp_path / "out.sarif").read_text())
    (result,) = sarif["runs"][0]["results"]
    place = result["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "checked.py"
    line = SOURCE.splitlines()[place["region"]["startLine"] - 1]
    assert line.startswith("summed = ")
    status, out = run("checked.py:summed", "--sarif", "-")
    assert json.loads(out)["runs"][0]["results"] == [result]
    with pytest.raises(rb.SettingError, match="both want the output"):
        run("checked.py", "--json", "--sarif", "-")
    with pytest.raises(rb.RunFolderError, match="cannot write"):
        run("checked.py", "--select", "RB101", "--sarif", "none/x.sarif")


def test_a_loader_is_audited(run: Run) -> None:
    status, out = run("checked.py:loader")
    assert status == 1
    assert "shuffle noise" in out
    assert out.splitlines()[-1] == "1 warning; 6 rules"
    assert run("checked.py:loader", "--fail-on", "error")[0] == 0
    assert run("checked.py:loader", "--ignore", "RB201")[0] == 0
    document = json.loads(run("checked.py:loader", "--json")[1])
    assert [f["code"] for f in document["findings"]] == ["RB201"]
    assert document["batches"] == 32
    with pytest.raises(rb.SettingError, match="by its order alone"):
        run("checked.py:loader", "--ranks", "2")


def test_how_a_job_is_run_reaches_the_rules(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    setups: list[Any] = []
    monkeypatch.setitem(RULES, "RB101", lambda probe: setups.append(probe.setup))
    run(
        *("checked.py", "--select", "RB101", "--micro-batch", "2", "--ranks", "2"),
        *("--accumulation", "4", "--time-axis", "0", "--schedule", "ramp:8:16:2epochs"),
    )
    (setup,) = setups
    assert (setup.micro_batch, setup.accumulation, setup.ranks) == (2, 4, 2)
    assert setup.time_axis == 0
    assert (setup.schedule.first, setup.schedule.examples) == (8, 128)
    with pytest.raises(click.BadParameter, match="range"):
        run("checked.py", "--ranks", "0")
    with pytest.raises(rb.SettingError, match="no rule RB9"):
        run("checked.py:none", "--select", "RB9")  # before it is loaded
    _, out = run("checked.py", "--select", "RB101", "--ranks", "4")
    assert "B = 8 as 2 at once x 4 ranks" in out.splitlines()
    with pytest.raises(rb.SettingError):
        run("checked.py", "--schedule", "mountain:8")


def test_a_run_folder_is_checked_with_the_job_it_names(
    run: Run, tmp_path: Path
) -> None:
    found = made_up(today=8)
    named = replace(found, job=replace(found.job, spec="checked.py:job"))
    named.save(tmp_path / "measurements.json")
    status, out = run(".")
    assert status == 0
    assert f"{len(RULES)} rules" in out
    assert "only what was measured" not in out
    found.save(tmp_path / "measurements.json")  # of a job that is not there
    status, out = run("measurements.json")
    assert status == 0
    assert "only what was measured is checked: there is no job 'made_up'" in out
    place = json.loads(run(".", "--sarif", "-")[1])["runs"][0]
    assert place["automationDetails"]["id"].startswith("rightbatch/")


def test_rules_are_explained_without_a_job(run: Run) -> None:
    status, out = run("--explain", "rb105")
    assert status == 0
    assert out.startswith("# RB105: mean-loss\n\n")
    assert "Each counts by itself" in out
    assert max(map(len, out.splitlines())) <= 80
    status, out = run("--list-rules")
    assert status == 0
    assert all(code in out for code in ALL_RULES)
    assert max(map(len, out.splitlines())) <= 80
    with pytest.raises(rb.SettingError, match="no rule RB999"):
        run("--explain", "RB999")
    with pytest.raises(click.UsageError, match="JOB"):
        run()


def test_the_status_of_the_program(tmp_path: Path) -> None:
    (tmp_path / "checked.py").write_text(SOURCE)
    done = rightbatch("check", "checked.py:summed", "--select", "RB105", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "RB105 error: the loss is a sum" in done.stdout
