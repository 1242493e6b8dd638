"""`train --compare`: its table, page and numbers; what it refuses."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import rightbatch as rb
from cases import rightbatch
from rightbatch.cli.main import cli

JOB = """
import torch, rightbatch as rb
x = torch.randn(128, 3, generator=torch.Generator().manual_seed(0))
job = rb.Job(
    model=lambda: torch.nn.Linear(3, 1),
    loss=lambda model, batch: (model(batch[0]) - 1).square().mean(),
    data=(x,),
    optimizer=lambda params: torch.optim.SGD(params, lr=0.01),
    batch_size=8,
    evaluate=lambda model: float((model(x[:9]) - 1).square().mean()),
)
"""


def test_a_comparison_leaves_page_and_numbers(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB)
    given = ("--epochs", "2", "--seeds", "2", "--rule", "linear", "--keep-threads")
    done = rightbatch(
        "train", "job.py", "--compare", "8,32", *given, "--out", "r", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    said = " ".join(done.stdout.split())
    assert "18 runs, up to about" in said  # 8, 32 and 32 linear; 2 seeds; 3 budgets
    assert "B = 8 at" in said
    assert {p.name for p in (tmp_path / "r").iterdir()} == {
        "comparison.json",
        "comparison.html",
    }
    kept = json.loads((tmp_path / "r" / "comparison.json").read_text())
    assert kept["format"] == "rightbatch/comparison/1"
    assert len(kept["runs"]) == 18


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--compare", "16,64", "--plan", "p.json"], "by itself, on one process"),
        (["--compare", "16,64", "--resume"], "by itself, on one process"),
        (["--compare", "16,64", "--schedule", "noise"], "by itself, on one process"),
        (["--compare", "16;64"], "no list of batches"),
        (["--compare", "16"], "two or more"),
        (["--compare", "16,64", "--at", "steps"], "budgets are some of"),
        (["--seeds", "3"], "belong to --compare"),
    ],
)
def test_what_it_cannot_do_is_said(
    arguments: list[str], reason: str, tmp_path: Path
) -> None:
    out = tmp_path / "r"
    done = CliRunner().invoke(
        cli, ["train", "digits", *arguments, "--keep-threads", "--out", str(out)]
    )
    assert isinstance(done.exception, rb.SettingError)
    assert reason in str(done.exception)
    assert not out.exists()


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = CliRunner().invoke(cli, ["train", "digits", "--compare", "16,64"])
    assert "2 processes" in str(done.exception)
