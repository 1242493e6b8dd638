"""The command `tune`: its answer, its files, bad jobs, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import rightbatch as rb
from cases import rightbatch
from rightbatch.plan.decide import decide


def test_tune_answers_in_eighty_columns(tuned: tuple[Path, str]) -> None:
    folder, text = tuned
    plan = rb.Plan.load(folder / "plan.json")
    lines = text.splitlines()
    assert lines[0].startswith("rightbatch 0.")
    assert max(len(line) for line in lines) <= 80
    said = " ".join(text.split())
    for part in (plan.verdict, "B_opt", "Limits", "1/4", "4/4"):
        assert " ".join(part.split()) in said
    assert lines[-1].startswith(" next   rightbatch train digits --plan")
    assert "\x1b" not in text  # plain when piped


def test_tune_finds_a_faster_batch_than_today(tuned: tuple[Path, str]) -> None:
    plan = rb.Plan.load(tuned[0] / "plan.json")
    assert 32 <= plan.batch_size <= 256  # the grid's flat range: 32 to 200
    assert plan.today == 16
    assert plan.predicted["time_vs_today"].value < 0.9


def test_the_run_folder_holds_all_of_it(tuned: tuple[Path, str]) -> None:
    names = {p.name for p in tuned[0].iterdir()}
    assert names == {"measurements.json", "plan.json", "report.html"}
    found = rb.Measurements.load(tuned[0] / "measurements.json")
    assert len(found.times) >= 6
    assert len(found.noise) >= 2
    assert found.race is not None
    again = decide(found).plan
    assert again == rb.Plan.load(tuned[0] / "plan.json")  # nothing hidden, no chance


JOB = """
import torch, rightbatch as rb
x = torch.randn(64, 3)
def make(**change):
    given = dict(
        model=lambda: torch.nn.Linear(3, 1),
        loss=lambda model, batch: (model(batch[0]) - 1).square().mean(),
        data=(x,),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.01),
        batch_size=8,
    )
    return rb.Job(**{**given, **change})
job = make()
"""


# What is wrong, exit status, and what the message must say: one of each way to end.
BAD = {
    "nan": ("job = make(loss=lambda m, b: m(b[0]).mean() * float('nan'))", 1, "RB104"),
    "zero": ("job = make(batch_size=0)", 2, "at least 1"),
    "raises": ("job = make(); 1 / 0", 1, "ZeroDivisionError"),
    "no job": ("job = 3", 1, "no rightbatch.Job"),
}


def test_json_stands_alone_on_standard_output(tmp_path: Path) -> None:
    text = "print('noise from the user')\n"
    (tmp_path / "loud.py").write_text(JOB + text)
    done = rightbatch(
        "tune", "loud.py", "--budget", "2", "--no-race", "--json", cwd=tmp_path
    )
    assert done.returncode in (0, 3), done.stderr
    assert json.loads(done.stdout)["plan"]["job"] == "loud"
    assert "noise from the user" in done.stderr


@pytest.mark.parametrize("fault", BAD)
def test_bad_jobs_end_in_one_clear_error(fault: str, tmp_path: Path) -> None:
    line, status, message = BAD[fault]
    (tmp_path / "bad.py").write_text(JOB + line + "\n")
    done = rightbatch("tune", "bad.py", "--budget", "3", "--out", "r", cwd=tmp_path)
    assert done.returncode == status, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert done.stderr.count("error:") == 1
    kept = (
        {p.name for p in (tmp_path / "r").iterdir()}
        if (tmp_path / "r").exists()
        else set()
    )
    assert kept <= {"measurements.json"}  # no answer is left behind


def test_a_target_that_is_never_met_is_undecided(tmp_path: Path) -> None:
    text = "job = make(evaluate=lambda m: 1.0, target=0.0)\n"
    (tmp_path / "job.py").write_text(JOB + text)
    done = rightbatch("train", "job.py", "--epochs", "2", cwd=tmp_path)
    assert done.returncode == 3
    assert "not reached" in done.stdout
    late = rightbatch(
        "tune", "job.py", "--budget", "2", "--deadline", "1h", cwd=tmp_path
    )
    assert late.returncode == 3
    assert "deadline cannot be judged" in late.stderr
    tuned = rightbatch("tune", "job.py", "--budget", "2", cwd=tmp_path)
    said = " ".join(tuned.stdout.split())
    assert "target was not reached within the budget" in said
    assert tuned.returncode in (0, 3)  # by the laws alone: docs/decisions/002


@pytest.mark.slow
@pytest.mark.parametrize("lines", range(5))
def test_ctrl_c_keeps_what_was_measured(lines: int, tmp_path: Path) -> None:
    """Soon after the first line, the job's, that of the check, of times, or at once."""
    process = subprocess.Popen(
        [sys.executable, "-um", "rightbatch", "tune", "stdlib_gpt", "--out", "r"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    for _ in range(lines):
        assert process.stdout.readline(), process.communicate()[1]
    time.sleep(0.5 if lines else 0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    if not lines and process.returncode == -signal.SIGINT and not out:
        return  # Python itself was still starting: on a busy machine that takes long
    assert process.returncode == 130, err
    assert "Interrupted" in out + err
    assert "Traceback" not in out + err
    path = tmp_path / "r" / "measurements.json"
    assert path.exists() or lines < 3
    if path.exists():
        found = rb.Measurements.load(path)
        assert "next   rightbatch plan r" in out
        assert found.times or lines < 4
