"""The command `tune`: its answer, its files, bad jobs, Ctrl-C."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import rightbatch as rb
from cases import rightbatch
from launching import environment
from rightbatch.plan.decide import decide
from watched_loops import watch


def test_tune_answers_in_eighty_columns(tuned: tuple[Path, str]) -> None:
    folder, text = tuned
    plan = rb.Plan.load(folder / "plan.json")
    lines = text.splitlines()
    assert lines[0].startswith("rightbatch 0.")
    assert max(len(line) for line in lines) <= 80
    said = " ".join(text.split())
    race = f" Race By evaluate from 2.32 to 0.12: {plan.why[-1].text}"
    # On a busy machine the times may not tell how much of a step is fixed.
    optimum = [reason.text for reason in plan.why if reason.topic == "optimum"]
    for part in (plan.verdict, plan.grade, race, *optimum, "1/4", "4/4"):
        assert " ".join(part.split()) in said
    setting = rf">[ *] +{plan.batch_size} +{plan.lr:.3g} +\d+/\d+ +\d+"
    assert len([line for line in lines if re.match(setting, line)]) == 1
    assert lines[-1].startswith(" next   rightbatch train digits --plan")
    assert "\x1b" not in text  # plain when piped


def test_tune_finds_a_faster_batch_than_today(tuned: tuple[Path, str]) -> None:
    plan = rb.Plan.load(tuned[0] / "plan.json")
    assert 32 <= plan.batch_size <= 256  # the grid's flat range: 32 to 200
    assert plan.today == 16
    assert plan.predicted["time_vs_today"].value < 0.9
    assert plan.grade == "raced to the target"


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
    assert done.returncode == 3, done.stderr  # laws alone decide nothing
    plan = json.loads(done.stdout)["plan"]
    assert plan["job"] == "loud"
    assert (plan["grade"], plan["decided"]) == ("laws only", False)
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


def real_run(folder: Path) -> None:
    """Somebody's own loop on the job: its checkpoint, and the noise it saw."""
    names: dict[str, Any] = {}
    exec(JOB, names)
    job = names["job"]
    model = job.make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005)
    with watch(model, optimizer) as monitor:
        for step in range(40):
            optimizer.zero_grad()
            job.loss(model, (job.data[0][step : step + 8],)).backward()
            optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save({**state, "global_step": 40}, folder / "mine.pt")
    monitor.save(folder / "noise.json")


def test_tune_goes_on_from_a_real_run_and_its_noise(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB)
    real_run(tmp_path)
    done = rightbatch(
        *("tune", "job.py", "--budget", "2", "--out", "r"),
        *("--from", "mine.pt", "--noise", "noise.json"),
        cwd=tmp_path,
    )
    assert done.returncode in (0, 3), done.stderr
    said = " ".join(done.stdout.split())
    assert "the run begins from mine.pt: step 40, 320 examples" in said
    assert "today's lr is 0.005, not 0.01" in said
    assert "noise is that of noise.json, a run of 320 examples: none is" in said
    assert "RB121 warning" not in said
    assert max(map(len, done.stdout.splitlines())) <= 80
    found = rb.Measurements.load(tmp_path / "r" / "measurements.json")
    assert found.noise_source == "noise.json, a run of 320 examples"
    assert found.job.lr == 0.005
    swapped = ("--from", "mine.pt", "--noise", "mine.pt")
    done = rightbatch("tune", "job.py", *swapped, cwd=tmp_path)
    assert done.returncode == 1
    assert "mine.pt is not JSON" in done.stderr
    assert done.stderr.count("error:") == 1


def test_a_target_that_is_never_met_is_undecided(tmp_path: Path) -> None:
    text = "job = make(evaluate=lambda m: 1.0, target=0.0)\n"
    (tmp_path / "job.py").write_text(JOB + text)
    done = rightbatch("train", "job.py", "--epochs", "2", "--to-target", cwd=tmp_path)
    assert done.returncode == 3
    assert "not reached" in done.stdout
    late = rightbatch(
        "tune", "job.py", "--budget", "2", "--deadline", "1h", cwd=tmp_path
    )
    assert late.returncode == 3
    assert "deadline cannot be judged" in late.stderr
    tuned = rightbatch("tune", "job.py", "--budget", "4", cwd=tmp_path)
    assert " Undecided" in tuned.stdout
    assert tuned.returncode == 3


def test_rates_that_all_diverge_are_told(tmp_path: Path) -> None:
    text = "job = make(optimizer=lambda p: torch.optim.SGD(p, lr=1e6))\n"
    (tmp_path / "job.py").write_text(JOB + text)
    done = rightbatch("tune", "job.py", "--budget", "5", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert re.search(r"all \d+ runs of the race diverged", done.stdout)
    assert " next " not in done.stdout  # nothing worth training was found


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
        env=environment(),
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
