"""The command `train`: schedules, going on, several processes, Ctrl-C, bad input."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from launching import TESTS, environment, launched
from rightbatch.data.loading.ledger import Ledger
from rightbatch.training.checkpoint import Checkpoints

JOB = f"{TESTS / 'resumed_job.py'}:plain"
TRAIN = ("-m", "rightbatch", "train")


def train(*arguments: str, ranks: int = 1) -> Any:
    return subprocess.run(
        launched(*TRAIN, *arguments, "--keep-threads", ranks=ranks),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env=environment(),
    )


def weights(folder: Path) -> torch.Tensor:
    found = Checkpoints(folder / "checkpoints").newest()
    assert found is not None
    return torch.cat([v.flatten() for v in found[1]["model"].values()])


def test_a_decay_is_taken_up_and_the_run_gone_on_with(tmp_path: Path) -> None:
    out = str(tmp_path / "r")
    rate = "warmup:64+cosine:6epochs:0.05"
    begin = ("--rate", rate, "--schedule", "smith:128")
    done = train(JOB, "--out", out, *begin, "--epochs", "3", "--json")
    assert done.returncode == 0, done.stderr
    assert " until  3 epochs: as asked for\n" in done.stderr
    document = json.loads(done.stdout)
    assert document["batch_size"] > 32
    assert any("the rate would be" in event for event in document["events"])
    more = train(JOB, "--out", out, "--epochs", "6", "--resume")
    assert more.returncode == 0, more.stderr
    assert "gone on from step" in " ".join(more.stdout.split())
    lines = [line for line in more.stdout.splitlines() if out not in line]
    assert max(map(len, lines)) <= 80
    other = train(JOB, "--out", out, "--schedule", "smith:64", *begin[:2], "--resume")
    assert other.returncode == 2
    assert "begun with another schedule" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--schedule", "cubic:3"], "cannot be read"),
        (["--schedule", "smith:512"], "takes the place of a decay"),
        (["--schedule", "noise"], "needs a plan"),
        (["--schedule", "ramp:32:4096:2epochs"], "exceeds the data set"),
        (["--resume"], "needs the folder"),
        (["--shard"], "several processes"),
        (["--micro-batch", "64"], "larger than the batch"),
        (["--rule", "cubic"], "no scaling rule"),
        (["--rate", "warmup:9k+cosine:2k"], "as long as the whole"),
        (["--evaluate-share", "-1"], "must not be negative"),
    ],
)
def test_bad_input_is_one_clear_error(
    arguments: list[str], reason: str, tmp_path: Path
) -> None:
    out = [] if "--resume" in arguments else ["--out", str(tmp_path / "r")]
    done = train(JOB, "--epochs", "30", *arguments, *out)
    assert done.returncode == 2
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "r" / "run.json").exists()


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_processes_train_the_same_model_as_one(how: str, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    shape = ("--epochs", "2", "--schedule", "stages:0=16,600=32", "--micro-batch", "4")
    alone = train(JOB, *shape, "--out", str(one))
    assert alone.returncode == 0, alone.stderr
    more = ["--shard"] if how == "fsdp" else []
    done = train(JOB, *shape, *more, "--out", str(two), "--ledger", ranks=2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Done") == 1  # only the first rank speaks
    assert (weights(one) - weights(two)).norm() <= 1e-5 * weights(one).norm()
    audit = Ledger(two / "ledger").audit()
    assert (audit.lost, audit.repeated) == (0, 0)
    again = train(JOB, "--epochs", "3", *more, "--out", str(two), "--resume", ranks=2)
    assert again.returncode == 0, again.stderr[-2000:]


@pytest.mark.slow
def test_a_killed_rank_is_survived_by_a_restart(tmp_path: Path) -> None:
    out = tmp_path / "r"
    arguments = [JOB, "--epochs", "40", "--out", out, "--resume", "--ledger"]
    arguments += ["--save-every", "0.2", "--keep-threads", "--batch-size", "16"]
    process = subprocess.Popen(
        launched(*TRAIN, *arguments, ranks=2, restarts=3),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    ends = time.monotonic() + 90
    while len(list(out.glob("checkpoints/*.json"))) < 2 and time.monotonic() < ends:
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    os.kill(int(children.split()[-1]), signal.SIGKILL)
    error = process.communicate(timeout=150)[1]
    assert process.returncode == 0, error[-1500:]
    found = Checkpoints(out / "checkpoints").newest()
    assert found is not None
    assert found[1]["examples"] >= 40 * 512
    audit = Ledger(out / "ledger").audit()
    assert (audit.lost, audit.repeated) == (0, 0)


@pytest.mark.slow
def test_ctrl_c_while_training_saves_a_whole_step(tmp_path: Path) -> None:
    process = subprocess.Popen(
        launched(*TRAIN, "stdlib_gpt", "--epochs", "50", "--out", "r"),
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment(),
    )
    trace = tmp_path / "r" / "trace.jsonl"
    for _ in range(300):
        time.sleep(0.1)
        if trace.exists() and trace.read_text().count("\n") >= 2:
            break
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted" in out
    saved = list((tmp_path / "r" / "checkpoints").glob("step-*.json"))
    assert saved
